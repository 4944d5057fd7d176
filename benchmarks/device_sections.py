"""Sections of ``benchmarks.gpu`` about the device itself: attention backends, the decoder, waits, equal bytes."""

import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from contextlib import nullcontext
from dataclasses import replace
from hashlib import sha256
from pathlib import Path
from statistics import median
from typing import Any

import torch
from torch.nn.attention import SDPBackend, sdpa_kernel

from benchmarks.figures import Figures
from benchmarks.subject import Subject
from pipeline.recipe import RenderTask
from pipeline.rendering.calibration import measure
from pipeline.rendering.engine import Engine
from pipeline.rendering.results import Failed

BACKENDS: Mapping[str, SDPBackend | None] = {
    "torch's choice": None,
    "flash": SDPBackend.FLASH_ATTENTION,
    "cudnn": SDPBackend.CUDNN_ATTENTION,
    "efficient": SDPBackend.EFFICIENT_ATTENTION,
}
DECODER_ROWS = (1, 2, 4, 8)
STEPS_WITHOUT_WAITS = 30
SCHEDULERS_WITHOUT_WAITS = ("euler", "unipc", "euler_ancestral")


def attention(subject: Subject, figures: Figures) -> None:
    """The denoiser's calls, not compiled, with each of torch's kernels for attention; what a device lacks is a note."""
    figures.table(f"{subject.name} attention", ("backend", "rows", "evaluations/s", "ms/call"))
    for name, backend in BACKENDS.items():
        if not figures.may_start(f"{subject.name} attention {name}"):
            continue
        with figures.surviving({"backend": name}), nullcontext() if backend is None else sdpa_kernel(backend):
            found = measure(subject.model(False), subject.rows, subject.side, subject.side, subject.settings.seconds)
            figures.row({
                "backend": name,
                "rows": subject.rows,
                "evaluations/s": found.evaluations_per_s,
                "ms/call": found.call_s * 1e3,
            })  # fmt: skip


def decoder(subject: Subject, figures: Figures) -> None:
    """Images decoded per second, with the conversion to uint8 and the finite check, by latents per call."""
    figures.table(f"{subject.name} decoder", ("compile", "rows", "images/s", "ms/call", "peak GiB", "first s"))
    on_gpu = subject.settings.device != "cpu"
    for compiled in (False, True) if subject.settings.compile else (False,):
        adapter = subject.model(compiled).adapter
        side = subject.side // adapter.latent_factor
        for rows in DECODER_ROWS:
            what: dict[str, Any] = {"compile": compiled, "rows": rows}
            if not figures.may_start(f"{subject.name} decoder compile {compiled} rows {rows}"):
                continue
            with figures.surviving(what), torch.no_grad():
                latents = torch.randn(rows, adapter.latent_channels, side, side, device=adapter.device)
                if on_gpu:
                    torch.cuda.reset_peak_memory_stats()
                first_s = _seconds(lambda: adapter.decode(latents), on_gpu)  # noqa: B023  # called at once
                times = [_seconds(lambda: adapter.decode(latents), on_gpu) for _ in range(3)]  # noqa: B023
                call_s = median(times)
                figures.row({
                    **what,
                    "images/s": rows / call_s,
                    "ms/call": call_s * 1e3,
                    "peak GiB": torch.cuda.max_memory_allocated() / 2**30 if on_gpu else None,
                    "first s": first_s,
                })  # fmt: skip


def _seconds(work: Callable[[], object], on_gpu: bool) -> float:
    began = time.perf_counter()
    work()
    if on_gpu:
        torch.cuda.synchronize()
    return time.perf_counter() - began


def waits(subject: Subject, figures: Figures) -> None:
    """Steps of a full batch while torch raises an error for every wait; on a CPU they are only counted."""
    figures.table(f"{subject.name} waits", ("scheduler", "steps", "host ms/step", "waited"))
    for scheduler in SCHEDULERS_WITHOUT_WAITS:
        what: dict[str, Any] = {"scheduler": scheduler}
        if not figures.may_start(f"{subject.name} waits {scheduler}"):
            continue
        with figures.surviving(what):
            engine = Engine(subject.model(False), subject.rows)
            tasks = subject.varied(max(1, subject.rows // 2), (STEPS_WITHOUT_WAITS + 10,))
            engine.add(_with_scheduler(task, scheduler) for task in tasks)
            for _ in range(4):
                engine.step()
            seconds = _steps_without_waits(engine, subject.settings.device != "cpu")
            figures.row({**what, "steps": STEPS_WITHOUT_WAITS, "host ms/step": seconds * 1e3, "waited": False})


def _steps_without_waits(engine: Engine, on_gpu: bool) -> float:
    """Seconds of the host per step; raises ``RuntimeError`` where it waits for a GPU."""
    times = []
    if on_gpu:
        torch.cuda.set_sync_debug_mode("error")
    try:
        for _ in range(STEPS_WITHOUT_WAITS):
            began = time.perf_counter()
            assert not engine.step(), "no image may end meanwhile"
            times.append(time.perf_counter() - began)
    finally:
        if on_gpu:
            torch.cuda.set_sync_debug_mode("default")
    return median(times)


def _with_scheduler(task: RenderTask, scheduler: str) -> RenderTask:
    return replace(task, recipe=replace(task.recipe, scheduler=scheduler))


def processes(subject: Subject, figures: Figures) -> None:
    """The same images in two fresh processes, compiled where that is measured: equal bytes."""
    figures.table(f"{subject.name} processes", ("compile", "images", "byte-equal"))
    for compiled in (True,) if subject.settings.compile else (False,):
        what: dict[str, Any] = {"compile": compiled}
        if figures.may_start(f"{subject.name} processes"):
            with figures.surviving(what):
                first, second = (_digests_elsewhere(subject, compiled) for _ in range(2))
                figures.row({**what, "images": len(first), "byte-equal": first == second})


def _digests_elsewhere(subject: Subject, compiled: bool) -> list[str]:
    command = [sys.executable, "-m", "benchmarks.device_sections", subject.name, str(subject.folder), subject.dtype,
               subject.settings.device, str(subject.rows), str(int(compiled))]  # fmt: skip
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=Path(__file__).parents[1])
    if done.returncode:
        raise RuntimeError(f"a process failed: {done.stderr.strip().splitlines()[-1]}")
    return done.stdout.split()


def digests(subject: Subject, compiled: bool) -> list[str]:
    """Of the pixels of some images, in the order of the tasks."""
    tasks = subject.varied(subject.rows + 1, (4, 7))
    engine = Engine(subject.model(compiled), subject.rows)
    pixels = {}
    for outcome in engine.render(tasks):
        if isinstance(outcome, Failed):
            raise RuntimeError(f"a task failed: {outcome.error}")
        pixels[outcome.task.task_id] = outcome.pixels.tobytes()
    return [sha256(pixels[task.task_id]).hexdigest() for task in tasks]


def main() -> None:
    """Print the digests of one process; ``processes`` starts it."""
    name, folder, dtype, device, rows, compiled = sys.argv[1:]
    subject = Subject.of_folder(name, Path(folder), dtype=dtype, device=device, rows=int(rows))
    print("\n".join(digests(subject, compiled == "1")))


if __name__ == "__main__":
    main()
