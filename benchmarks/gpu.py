"""The engine on one GPU, without Ray and without downloads: Stable Diffusion 1.5 and XL with random weights.

    python -m benchmarks.gpu --json figures.json
    python -m benchmarks.gpu --architecture sd15 --sections work --work W3 --contestants B1 engine
    python -m benchmarks.gpu --architecture tiny --device cpu

Needs torch, diffusers, transformers and Pillow. Sections run in the order of what decides, Stable Diffusion XL first:

``table``       calls of the denoiser by rows, dtype and compile
``attention``   the same by torch's kernels
``decoder``     images decoded per second
``work``        against what people write today: B0 a loop, B1 batches, B2 compiled batches
``waits``       30 steps while torch raises an error for every wait
``processes``   two processes, the same bytes
``stages``      where the time goes
``parity``      against the stock pipeline
``invariance``  an image does not depend on its neighbours

What does not fit into memory is said and passed over; when the time is used up, nothing new starts. The figures are
saved after every row.
"""

import argparse
import gc
import os
import platform
import subprocess
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory
from typing import Any

import diffusers
import torch
import transformers

from benchmarks.architectures import ARCHITECTURES, SEED, build
from benchmarks.figures import Figures, Row
from benchmarks.sections import SECTIONS
from benchmarks.subject import COMPILED, COMPILED_ENGINE, CONTESTANTS, ENGINE, Settings, Subject
from pipeline.rendering.determinism import set_up_process
from pipeline.rendering.loading import DTYPES

GOALS = (
    ("sd15", "W1", "images/s", 12.5, "512², 20 steps, on an H200"),
    ("sd15", "W2", "x B1", 1.2, "512²"),
    ("sd15", "W3", "x B1", 3.0, "512²"),
    ("sdxl", "W4", "images/s", 1.55, "1024², 20 steps, on an H200"),
)
"""Architecture, work, column, at least, at what."""
_STEPS_OF_GOALS = 20

TABLE_ROWS: Mapping[str, tuple[int, ...]] = {"sd15": (8, 16, 32, 64), "sdxl": (4, 8, 16, 32), "tiny": (2, 4)}
TASKS: Mapping[str, int] = {"sd15": 120, "sdxl": 48, "tiny": 12}
"""Images per run."""
BY_DEVICE: Mapping[str, Mapping[str, Any]] = {
    "cuda": {"dtype": ["bfloat16"], "compile": True, "steps": [10, 20, 50], "pairs": 2, "loop_tasks": 16, "seconds": 2},
    "cpu": {"dtype": ["float32"], "compile": False, "steps": [2, 4, 6], "pairs": 1, "loop_tasks": 4, "seconds": 0.2},
}
"""Defaults."""


def parser() -> argparse.ArgumentParser:
    options = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    add = options.add_argument
    add("--architecture", nargs="+", choices=list(ARCHITECTURES), default=["sdxl", "sd15"])
    add("--sections", nargs="+", choices=list(SECTIONS), default=list(SECTIONS))
    add("--device", choices=list(BY_DEVICE), default="cuda" if torch.cuda.is_available() else "cpu")
    add("--dtype", nargs="+", choices=list(DTYPES), help="all in the table, the first in the other sections")
    add("--compile", action=argparse.BooleanOptionalAction, help="measure with torch.compile too")
    add("--scheduler", default="euler")
    add("--steps", type=int, nargs=3, help="fewest, usual and most inference steps")
    add("--rows", type=int, nargs="+", help="rows in the table")
    add("--compiled-rows", type=int, nargs="+", default=[], help="those with compile; else the best without")
    add("--engine-rows", type=int, help="rows of the engine; else the table's best, or Darkroom's own choice")
    add("--seconds", type=float, help="for each cell of the table")
    add("--tasks", type=int, help="images per run; W2 has 15 groups, which fill B1's calls from 15 x --batch on")
    add("--loop-tasks", type=int, help="of these, what contestants render that take them one at a time")
    add("--parity-tasks", type=int, default=4)
    add("--pairs", type=int, help="rounds of the work")
    add("--batch", type=int, help="images per call of B1 and B2; else half the engine's rows")
    add("--work", nargs="+", choices=["W1", "W2", "W3", "W4"], default=["W1", "W2", "W3", "W4"])
    add("--contestants", nargs="+", choices=CONTESTANTS, default=list(CONTESTANTS))
    add("--roof-tflops", type=float, help="of the device; else a bfloat16 product of large matrices is timed")
    add("--threads", type=int, default=1, help="CPU threads, on a CPU")
    add("--models", type=Path, help="folder to keep the models in, and to take those from that are there")
    add("--budget-s", type=float, default=720, help="seconds after which nothing new starts")
    add("--json", type=Path, help="file for all figures")
    return options


def settings_of(given: argparse.Namespace, architecture: str) -> Settings:
    contestants = [name for name in given.contestants if given.compile or name not in COMPILED]
    return Settings(
        device=given.device,
        dtypes=tuple(given.dtype),
        compile=given.compile,
        scheduler=given.scheduler,
        steps=tuple(given.steps),
        table_rows=tuple(given.rows or TABLE_ROWS[architecture]),
        compiled_rows=tuple(given.compiled_rows),
        engine_rows=given.engine_rows,
        seconds=given.seconds,
        tasks=given.tasks or TASKS[architecture],
        loop_tasks=given.loop_tasks,
        parity_tasks=given.parity_tasks,
        pairs=given.pairs,
        batch=given.batch,
        work=tuple(given.work),
        contestants=tuple(contestants),
        roof_tflops=given.roof_tflops,
    )


def about(given: argparse.Namespace) -> dict[str, Any]:
    """What the figures depend on beside the options."""
    gpu = torch.cuda.get_device_properties(0) if given.device == "cuda" else None
    return {
        "machine": f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs",
        "gpu": gpu and gpu.name,
        "gpu GiB": gpu and round(gpu.total_memory / 2**30, 1),
        "python": platform.python_version(),
        "torch": torch.__version__,
        "diffusers": diffusers.__version__,
        "transformers": transformers.__version__,
        "seed": SEED,
        "roof TFLOP/s": round(given.roof_tflops, 2),
        "clock, power, limit, temperature": clock_and_power() if gpu else None,
    }


def matmul_tflops(device: str, seconds: float) -> float:
    """Of a bfloat16 product of large random matrices, the median over so many seconds."""
    side = 8192 if device == "cuda" else 512
    left, right = (torch.randn(side, side, device=device, dtype=torch.bfloat16) for _ in range(2))
    times: list[float] = []
    ends = time.perf_counter() + seconds
    while len(times) < 25 or time.perf_counter() < ends:
        began = time.perf_counter()
        left @ right
        if device == "cuda":
            torch.cuda.synchronize()
        times.append(time.perf_counter() - began)
    return 2 * side**3 / median(times[5:]) / 1e12


def clock_and_power() -> str | None:
    """What the driver says of the device right now; None where nobody can be asked."""
    query = "clocks.sm,power.draw,power.limit,temperature.gpu"
    try:
        asked = ["nvidia-smi", f"--query-gpu={query}", "--format=csv,noheader"]
        done = subprocess.run(asked, capture_output=True, text=True, timeout=20, check=True)
    except (OSError, subprocess.SubprocessError):
        return None
    return done.stdout.strip().splitlines()[0]


def goals(given: argparse.Namespace, figures: Figures) -> list[Row]:
    """Each goal of the architectures asked for, with the best figure of the engine."""
    found: list[Row] = []
    for architecture, work, column, least, at in GOALS:
        if architecture not in given.architecture:
            continue
        comparable = column != "images/s" or given.steps[1] == _STEPS_OF_GOALS
        seen = [
            row[column]
            for row in figures.rows(f"{architecture} work")
            if comparable and row["work"] == work and row["contestant"] in (ENGINE, COMPILED_ENGINE)
        ]
        best = max((figure for figure in seen if isinstance(figure, float)), default=None)
        reached = None if best is None or given.device != "cuda" else best >= least
        found.append({"goal": f"{architecture} {work} {column} >= {least}, {at}", "measured": best, "reached": reached})
    return found


def say(goal: Row) -> None:
    verdict = "not judged" if goal["reached"] is None else "reached" if goal["reached"] else "not reached"
    measured = f"{goal['measured']:.3g}" if goal["measured"] else "not measured"
    print(f"goal: {goal['goal']}: {measured}, {verdict}", flush=True)


@contextmanager
def model_folder(name: str, given: argparse.Namespace) -> Iterator[Path]:
    """A model of this architecture, in the first dtype: made, or taken from ``--models``."""
    with TemporaryDirectory(prefix="darkroom-benchmark-") as temporary:
        parent = given.models or Path(temporary)
        folder = parent / f"{name}-{given.dtype[0]}"
        if not folder.exists():
            parent.mkdir(parents=True, exist_ok=True)
            unfinished = parent / f"{folder.name}.unfinished"
            build(ARCHITECTURES[name], unfinished, dtype=given.dtype[0], device=given.device).rename(folder)
            gc.collect()  # what was built is on the device as well
        yield folder


def measure_architecture(name: str, given: argparse.Namespace, figures: Figures) -> None:
    began = time.perf_counter()
    with model_folder(name, given) as folder:
        subject = Subject(name, folder, settings_of(given, name))
        subject.model(False)
        print(f"\n{name}: {subject.architecture.class_name}, {subject.side} px, {subject.dtype}, random weights made "
              f"and loaded in {time.perf_counter() - began:.1f} s", flush=True)  # fmt: skip
        for section in given.sections:
            SECTIONS[section](subject, figures)
    del subject
    gc.collect()
    torch.compiler.reset()


def main() -> None:
    options = parser()
    options.set_defaults(**BY_DEVICE[options.parse_known_args()[0].device])
    given = options.parse_args()
    set_up_process()
    for kit in (diffusers.utils.logging, transformers.utils.logging):
        kit.disable_progress_bar()
    if given.compile:
        # B2 has a shape for every size of batch; past the limit torch would go on uncompiled.
        torch._dynamo.config.recompile_limit = 64
    if given.device == "cpu":
        torch.set_num_threads(given.threads)
    given.roof_tflops = given.roof_tflops or matmul_tflops(given.device, 5.0 if given.device == "cuda" else 0.0)
    facts = about(given)
    print("; ".join(f"{name} {fact}" for name, fact in facts.items() if fact is not None), flush=True)
    figures = Figures(given.json, given.budget_s, about=facts, options={k: str(v) for k, v in vars(given).items()})
    for name in given.architecture:
        if figures.may_start(name):
            measure_architecture(name, given, figures)
    found = goals(given, figures)
    figures.close(found)
    for goal in found:
        say(goal)


if __name__ == "__main__":
    main()
