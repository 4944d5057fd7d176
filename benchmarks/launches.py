"""What a step of the engine launches outside the network, on a pretend GPU: ``python -m benchmarks.launches``.

Launches are kernels and copies; waits are moments in which the host stands still until the GPU is done. Each scheduler
is run with 1 and with 16 tasks in a batch of the same size, in the middle of their steps; the difference is what a task
adds. Exits with 1 above the budget: 0 launches per task, 8 per batch, 0 waits. A scheduler that clips, as its
configuration says, is no table of numbers: each task steps its own, outside the budget.
"""

import argparse
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest.mock import patch

import torch
from torch import Tensor

from benchmarks.pretend_gpu import CUDA, PretendGpu
from benchmarks.work import task
from pipeline.rendering import preparation
from pipeline.rendering.adapter import Rows
from pipeline.rendering.engine import Engine
from pipeline.rendering.loading import LoadedModel, load_model
from tests import tiny_models

MOST_PER_TASK, MOST_PER_BATCH, MOST_WAITS = 0, 8, 0
FAMILIES: Mapping[str, Callable[[], Any]] = {
    "stable_diffusion": tiny_models.stable_diffusion,
    "stable_diffusion_xl": tiny_models.stable_diffusion_xl,
    "stable_diffusion_3": tiny_models.stable_diffusion_3,
    "flux": tiny_models.flux,
    "pixart": tiny_models.pixart,
}
TASKS, STEPS, STEADY_AFTER = 16, 12, 5
DTYPES = ("float32", "bfloat16")


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """One scheduler of one family in one dtype."""

    family: str
    scheduler: str
    dtype: str
    alone: int
    """Launches per step with one task in the batch."""
    full: int
    """With ``TASKS`` of them."""
    waits: int
    """Of the host per step, with ``TASKS`` of them."""
    clips: bool
    """It is not linear, so the budget does not hold for it."""

    @property
    def per_task(self) -> float:
        return (self.full - self.alone) / (TASKS - 1)

    @property
    def within(self) -> bool:
        """Whether it is within the budget."""
        if self.clips:
            return True
        return self.per_task <= MOST_PER_TASK and self.full <= MOST_PER_BATCH and self.waits <= MOST_WAITS

    def __str__(self) -> str:
        return f"{self.family:20} {self.scheduler:18} {self.dtype:9} {self.per_task:8.1f} {self.full:9} {self.waits:6}"


class _AtOnce:
    """An executor without a thread: modes of torch that see every operation belong to one thread."""

    def __init__(self, *_: Any) -> None:
        pass

    def submit(self, work: Callable[..., None], *args: Any) -> Future[None]:
        work(*args)
        return Future()


@contextmanager
def on_pretend_gpu(model: LoadedModel) -> Iterator[tuple[PretendGpu, LoadedModel]]:
    """Move a model that is loaded on the CPU to a pretend GPU, where tasks are prepared without a thread."""
    with PretendGpu() as gpu, patch.object(preparation, "ThreadPoolExecutor", _AtOnce):
        for part in model.adapter.stock.components.values():
            if isinstance(part, torch.nn.Module):
                gpu.send_module(part)
        yield gpu, replace(model, adapter=replace(model.adapter, device=CUDA), device=str(CUDA))


def count(model: LoadedModel, schedulers: Sequence[str], dtype: str) -> Iterator[Counted]:
    """Count the steps of each scheduler with a model that is loaded on the CPU."""
    with on_pretend_gpu(model) as (gpu, on_gpu):
        adapter = on_gpu.adapter

        def predict(latents: Tensor, timesteps: Tensor, conditioning: Rows) -> Tensor:
            answer: Tensor = gpu.send(torch.full(latents.shape, 0.1, dtype=latents.dtype))
            return answer

        object.__setattr__(adapter, "predict", predict)
        for scheduler in schedulers:
            alone, _ = _steady(gpu, on_gpu, scheduler, 1)
            full, waits = _steady(gpu, on_gpu, scheduler, TASKS)
            side = tiny_models.SIZE_PX
            yield Counted(
                family=adapter.family.name, scheduler=scheduler, dtype=dtype, alone=alone, full=full, waits=waits,
                clips=adapter.trajectory(scheduler, STEPS, side, side).alone is not None,
            )  # fmt: skip


def _steady(gpu: PretendGpu, model: LoadedModel, scheduler: str, tasks: int) -> tuple[int, int]:
    """The most launches and waits of one of three steps in the middle of so many tasks."""
    family = model.adapter.family
    engine = Engine(model, 2 * TASKS)
    side = tiny_models.SIZE_PX
    engine.add(task(family, scheduler, side, f"cat {n % 4}", n, 7.5 if n % 2 else 1.0, STEPS) for n in range(tasks))
    for _ in range(STEADY_AFTER):
        assert not engine.step(), "a task has failed"
    counted = []
    for _ in range(3):
        gpu.reset()
        assert not engine.step(), "a task has failed"
        counted.append((gpu.launches, gpu.waits))
    return max(launches for launches, _ in counted), max(waits for _, waits in counted)


def all_counted(families: Sequence[str], dtypes: Sequence[str]) -> Iterator[Counted]:
    """Every scheduler of these families."""
    with TemporaryDirectory(prefix="darkroom-benchmark-") as folder:
        for family in families:
            saved = tiny_models.save(FAMILIES[family](), Path(folder) / family)
            for dtype in dtypes:
                model = load_model(saved, dtype=dtype, device="cpu")
                yield from count(model, model.adapter.family.schedulers(), dtype)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--family", nargs="+", choices=list(FAMILIES), default=list(FAMILIES))
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=list(DTYPES))
    given = parser.parse_args()
    print(f"{'family':20} {'scheduler':18} {'dtype':9} per task per batch  waits")
    above = 0
    for counted in all_counted(given.family, given.dtype):
        note = "  clips" if counted.clips else "" if counted.within else "  above the budget"
        print(f"{counted}{note}", flush=True)
        above += not counted.within
    print(f"budget: {MOST_PER_TASK} per task, {MOST_PER_BATCH} per batch, {MOST_WAITS} waits; above it: {above}")
    sys.exit(1 if above else 0)


if __name__ == "__main__":
    main()
