"""The host's time per step outside the network, against the former way, one scheduler of diffusers for each task."""

import time
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass, replace
from inspect import signature
from statistics import median
from typing import Any

import torch
from torch import Tensor

from benchmarks.work import task
from pipeline.recipe import RenderTask
from pipeline.rendering.adapter import Adapter, Rows
from pipeline.rendering.engine import Engine
from pipeline.rendering.loading import LoadedModel
from pipeline.rendering.timetables import build_scheduler
from pipeline.schedulers import scheduler_of

TASKS, STEPS, BLOCKS, TIMED = 64, 50, 4, 10
SCHEDULERS: Mapping[str, tuple[tuple[str, ...], float]] = {
    "euler": (("euler",), 10.0),
    "unipc": (("unipc",), 50.0),
    "euler, unipc, dpmsolver++, ddim": (("euler", "unipc", "dpmsolver++", "ddim"), 10.0),
}
"""Schedulers of the tasks in turn, and the least ratio to the former way."""


@dataclass(frozen=True, slots=True, kw_only=True)
class HostTime:
    """One mix of schedulers."""

    schedulers: str
    former_ms: float
    """Per step, the median."""
    ours_ms: float
    required: float

    @property
    def ratio(self) -> float:
        return self.former_ms / self.ours_ms

    def __str__(self) -> str:
        line = f"{self.schedulers:32} {self.former_ms:10.2f} {self.ours_ms:8.2f} {self.ratio:6.0f} {self.required:9.0f}"
        return line if self.ratio >= self.required else f"{line}  below"


class FormerSteps:
    """All tasks of a batch, each with a scheduler of its own that is stepped on the host: the engine before tables."""

    def __init__(self, adapter: Adapter, tasks: Sequence[RenderTask]) -> None:
        self._adapter = adapter
        self._latents, self._schedulers, self._told = list[Tensor](), list[Any](), list[dict[str, Any]]()
        pristine: dict[str, Any] = {}
        for own in tasks:
            text, steps = own.recipe.scheduler, own.recipe.num_inference_steps
            if text not in pristine:
                pristine[text] = build_scheduler(adapter.schedulers, scheduler_of(text), steps)
            scheduler, generator = deepcopy(pristine[text]), torch.Generator().manual_seed(own.recipe.seed)
            takes_generator = "generator" in signature(scheduler.step).parameters
            self._told.append({"generator": generator} if takes_generator else {})
            self._schedulers.append(scheduler)
            noise = adapter.first_noise(own.recipe, generator)[None]
            self._latents.append(noise * scheduler.init_noise_sigma)
        self._guidance, self._taken = [own.recipe.guidance_scale or 1.0 for own in tasks], 0

    def step(self, predict: Callable[[Tensor], Tensor]) -> None:
        """Scale and gather the inputs, predict, and step every scheduler."""
        inputs = [
            scheduler.scale_model_input(latent, scheduler.timesteps[self._taken])
            for latent, scheduler in zip(self._latents, self._schedulers, strict=True)
        ]
        predicted = predict(torch.cat([latent.expand(2, -1, -1, -1) for latent in inputs]))
        for number, rows in enumerate(torch.split(predicted, 2)):
            unconditional, conditional = rows.chunk(2)
            combined = unconditional + self._guidance[number] * (conditional - unconditional)
            scheduler = self._schedulers[number]
            self._latents[number] = scheduler.step(
                combined,
                scheduler.timesteps[self._taken],
                self._latents[number],
                return_dict=False,
                **self._told[number],
            )[0]
        self._taken += 1


def host_times(model: LoadedModel, side_px: int) -> list[HostTime]:
    """Time both ways in turns, with a network that answers at once.

    Images are as small as can be: on a GPU the arithmetic is the device's time, and what is left is the host's.
    """
    answers: dict[torch.Size, Tensor] = {}

    def predicted(latents: Tensor) -> Tensor:
        if latents.shape not in answers:
            answers[latents.shape] = torch.randn(latents.shape, generator=torch.Generator().manual_seed(0)) * 0.1
        return answers[latents.shape]

    def predict(latents: Tensor, timesteps: Tensor, conditioning: Rows) -> Tensor:
        return predicted(latents)

    adapter = replace(model.adapter)
    object.__setattr__(adapter, "predict", predict)
    found = []
    for name, (schedulers, required) in SCHEDULERS.items():
        tasks = [
            task(adapter.family, schedulers[n % len(schedulers)], side_px, f"cat {n % 4}", n, 7.5, STEPS)
            for n in range(TASKS)
        ]
        former = FormerSteps(adapter, tasks)
        engine = Engine(replace(model, adapter=adapter), 2 * TASKS)
        engine.add(tasks)
        engine.step()
        seconds: dict[str, list[float]] = {"former": [], "ours": []}
        with torch.no_grad():
            for _ in range(BLOCKS):  # not step by step: each would find the other's data in the caches
                seconds["former"] += [_timed(lambda: former.step(predicted)) for _ in range(TIMED)]  # noqa: B023
                seconds["ours"] += [_timed(engine.step) for _ in range(TIMED)]
        former_ms, ours_ms = (1e3 * median(seconds[way]) for way in ("former", "ours"))
        found.append(HostTime(schedulers=name, former_ms=former_ms, ours_ms=ours_ms, required=required))
    return found


def _timed(work: Callable[[], object]) -> float:
    began = time.perf_counter()
    work()
    return time.perf_counter() - began
