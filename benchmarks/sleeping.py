"""A worker that sleeps instead of rendering: Ray, the driver and the commit are real, and torch is not loaded."""

import sys
import time
import uuid
from collections import deque
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from pipeline.distributed.spec import WorkerSpec
from pipeline.distributed.worker import RenderWorker
from pipeline.model.facts import read_facts
from pipeline.model.family import Family
from pipeline.recipe import RenderTask
from pipeline.rendering.counters import EngineCounters
from pipeline.rendering.results import Outcome, Rendered
from pipeline.schedulers import evaluations

_POLL_S = 0.5


@dataclass(frozen=True, slots=True, kw_only=True)
class SleepingSpec(WorkerSpec):
    """What such a worker is told besides."""

    evaluation_s: float
    gate: Path
    """A folder where each worker leaves a file when it is ready."""
    workers: int
    """None begins before there are so many files."""


class SleepingRenderer:
    """A ``Renderer`` that sleeps a fixed time per evaluation, one task at a time; every picture is grey."""

    def __init__(self, family: Family, evaluation_s: float) -> None:
        self._family, self._evaluation_s = family, evaluation_s
        self._waiting: deque[RenderTask] = deque()
        self._counters = EngineCounters()

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def counters(self) -> EngineCounters:
        return self._counters

    def add(self, tasks: Iterable[RenderTask], *, grouped: bool = False) -> None:
        self._waiting.extend(tasks)

    def drop_waiting(self) -> list[RenderTask]:
        dropped = [*self._waiting]
        self._waiting.clear()
        return dropped

    def step(self) -> list[Outcome]:
        return [self._outcome(self._waiting.popleft())] if self._waiting else []

    def render(self, tasks: Iterable[RenderTask]) -> Iterator[Outcome]:
        self.add(tasks)
        while self.busy:
            yield from self.step()

    def _outcome(self, task: RenderTask) -> Outcome:
        recipe, began = task.recipe, time.monotonic()
        calls, rows = (
            evaluations(recipe.scheduler, recipe.num_inference_steps),
            self._family.rows(recipe.guidance_scale),
        )
        time.sleep(calls * rows * self._evaluation_s)
        slept_s = time.monotonic() - began
        self._counters += EngineCounters(
            evaluations=calls * rows,
            megapixel_evaluations=calls * rows * recipe.megapixels,
            denoiser_calls=calls,
            denoise_s=slept_s,
        )
        pixels = np.full((recipe.height, recipe.width, 3), 128, np.uint8)
        return Rendered(
            task=task, pixels=pixels, prompt_truncated=False, rows=rows, render_s=slept_s, device="cpu"
        )  # fmt: skip


class SleepingWorker(RenderWorker):
    """The worker of production but for its renderer. All begin together."""

    def _load(self, spec: WorkerSpec) -> None:
        super()._load(spec)
        assert isinstance(spec, SleepingSpec)
        (spec.gate / uuid.uuid4().hex).write_text(f"torch loaded: {'torch' in sys.modules}")
        while len(list(spec.gate.iterdir())) < spec.workers:
            time.sleep(_POLL_S)

    def _renderer(self, spec: WorkerSpec, folder: Path, loras: Sequence[tuple[Path, float]]) -> SleepingRenderer:
        assert isinstance(spec, SleepingSpec)
        return SleepingRenderer(read_facts(folder).family, spec.evaluation_s)
