"""Preparation beside the engine: a thread turns tasks that wait into what a slot of the batch starts with."""

import time
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import CancelledError, Future, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass
from functools import lru_cache
from itertools import islice

import torch
from torch import Tensor

from pipeline.recipe import RenderTask
from pipeline.rendering.adapter import Adapter, Rows, Text
from pipeline.rendering.backlog import LOOKAHEAD, Pending
from pipeline.rendering.determinism import alone_with_torch
from pipeline.rendering.devices import device_error, out_of_memory
from pipeline.rendering.prompts import Prompts
from pipeline.rendering.results import Failed, Stage, failure
from pipeline.rendering.trajectory import Trajectory

CACHED_TRAJECTORIES = 512
"""Tables, one per scheduler, step count and size: 14 kB for 50 steps, and up to half a second to build."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Prepared:
    """A task that can take a slot."""

    trajectory: Trajectory
    latent: Tensor
    """(channels, height, width) in latent pixels, float32: the latent before the first step."""
    rows: Rows
    """Inputs of the denoiser by name, each (1 or 2, …): unconditional, conditional; or only the latter."""
    guidance: float
    """The weight in ``Adapter.combine``; 1 where there is one row."""
    generator: torch.Generator
    """The source of the noise of stochastic steps; the first noise has been drawn from it."""
    prompt_truncated: bool
    seconds: float
    """The time of the preparation, that of texts encoded for it included."""


class Preparation:
    """Prepare tasks in a thread of its own. The methods are for the engine's thread."""

    def __init__(self, adapter: Adapter, on_begin: Callable[[RenderTask], None] = lambda _: None) -> None:
        """``on_begin`` gets each task before any work for it begins."""
        self._adapter, self._prompts, self._on_begin = adapter, Prompts(adapter), on_begin
        self._trajectory = lru_cache(maxsize=CACHED_TRAJECTORIES)(adapter.trajectory)
        self._thread = ThreadPoolExecutor(1, "prepare")

    def start(self, waiting: Iterable[Pending], most: int) -> None:
        """Have the first ``most`` waiting tasks prepared, and return at once.

        Where a call of the text encoders has room, the texts of later tasks are encoded along.
        """
        upcoming = list(islice(waiting, max(most, LOOKAHEAD)))
        fresh: list[tuple[Pending, Future[Prepared | Failed]]] = [
            (pending, Future()) for pending in upcoming[:most] if pending.prepared is None
        ]
        for pending, future in fresh:
            pending.prepared = future
        if fresh:
            self._thread.submit(self._prepare_all, fresh, upcoming)

    def result(self, pending: Pending) -> Prepared | Failed:
        """Wait for the preparation of a task, and return it or why there is none.

        Raises what the device raised: it is out of memory, or of no use any more.
        """
        while True:
            self.start([pending], 1)
            future, pending.prepared = pending.prepared, None
            assert future is not None
            with suppress(CancelledError):  # the device had no memory for one before it
                prepared: Prepared | Failed = future.result()
                return prepared

    def forget_undone(self, tasks: Iterable[Pending]) -> None:
        """Forget the preparations that are under way, or that the device has broken: another one may find memory."""
        for pending in tasks:
            future = pending.prepared
            if future is not None and (future.cancel() or not future.done() or future.exception() is not None):
                pending.prepared = None

    @alone_with_torch
    def _prepare_all(
        self, waiting: "Sequence[tuple[Pending, Future[Prepared | Failed]]]", upcoming: Sequence[Pending]
    ) -> None:
        broken = False
        for pending, future in waiting:
            if broken:
                future.cancel()
            if not future.set_running_or_notify_cancel():
                continue
            try:
                future.set_result(self._prepare(pending, upcoming))
            except BaseException as error:  # noqa: BLE001  # whatever it is belongs to who waits for the task
                # The frames of its traceback hold tensors, and themselves until Python looks for such cycles.
                future.set_exception(error.with_traceback(None) if out_of_memory(error) else error)
                broken = True

    def _prepare(self, pending: Pending, upcoming: Sequence[Pending]) -> Prepared | Failed:
        recipe, adapter, began = pending.task.recipe, self._adapter, time.perf_counter()
        stage: Stage = "encode"
        self._on_begin(pending.task)
        try:
            conditioning = self._prompts.conditioning(adapter.texts(recipe), self._texts(upcoming))
            stage = "denoise"
            trajectory = self._trajectory(recipe.scheduler, recipe.num_inference_steps, recipe.width, recipe.height)
            generator = torch.Generator("cpu").manual_seed(recipe.seed)
            latent = adapter.sent(adapter.first_noise(recipe, generator).float()) * trajectory.initial
            own = {name: tensor.expand(adapter.rows(recipe), *tensor.shape[1:])
                   for name, tensor in adapter.extras(recipe).items()}  # fmt: skip
        except Exception as error:  # the task boundary: what a recipe breaks is that task's failure
            if device_error(error):
                raise
            return failure(pending.task, stage, error)
        return Prepared(
            trajectory=trajectory,
            latent=latent,
            rows={**conditioning.rows, **own},
            guidance=adapter.guidance(recipe),
            generator=generator,
            prompt_truncated=conditioning.prompt_truncated,
            seconds=time.perf_counter() - began,
        )

    def _texts(self, tasks: Sequence[Pending]) -> Iterator[Text]:
        """Yield the texts of tasks to come. One without text fails in its own turn."""
        for pending in tasks:
            with suppress(TypeError):
                texts = self._adapter.texts(pending.task.recipe)
                self._on_begin(pending.task)
                yield from texts
