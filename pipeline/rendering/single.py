"""The fallback: one call of the diffusers pipeline per image, slower than the engine but correct for any class."""

import inspect
import time
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import partial
from typing import Any

import numpy as np
import torch

from pipeline.errors import ModelError, RenderError
from pipeline.recipe import Recipe, RenderTask
from pipeline.rendering.counters import EngineCounters
from pipeline.rendering.determinism import alone_with_torch
from pipeline.rendering.device_memory import Patience, read_memory
from pipeline.rendering.devices import device_error, device_name, out_of_memory
from pipeline.rendering.results import Outcome, Rendered, failure, not_finite
from pipeline.rendering.timetables import ModelSchedulers
from pipeline.schedulers import evaluations, scheduler_of

_DECIDED = (
    "prompt", "negative_prompt", "width", "height", "num_inference_steps", "timesteps", "sigmas", "guidance_scale",
    "generator", "latents", "num_images_per_prompt", "output_type", "return_dict", "callback_on_step_end",
    "callback_on_step_end_tensor_inputs",
)  # fmt: skip
"""Arguments of the pipeline's call that the recipe or this module sets."""


class SingleEngine:
    """A renderer with the methods of ``Engine``. Each step renders one whole image."""

    def __init__(
        self,
        stock: Any,
        *,
        schedulers: ModelSchedulers,
        device: str,
        call: Mapping[str, Any],
        clock: Callable[[], float] = time.perf_counter,
        patience: Patience | None = None,
        on_begin: Callable[[RenderTask], None] = lambda _: None,
    ) -> None:
        """``stock`` is a loaded diffusers pipeline, ``call`` has further arguments of its every call.

        ``patience`` waits for memory that other processes hold, ``on_begin`` gets each task before its call.
        """
        self._on_begin = on_begin
        self._stock, self._schedulers, self._call, self._clock = stock, schedulers, dict(call), clock
        self._device_name = device_name(device)
        self._patience = patience or Patience(partial(read_memory, device))
        self._parameters = inspect.signature(type(stock).__call__).parameters
        free = [name for name in self._parameters if name not in ("self", *_DECIDED)]
        for name in call:
            if name not in free:
                raise ModelError(
                    f"{type(stock).__name__} takes no such argument",
                    where="model.call",
                    value=name,
                    allowed=", ".join(free),
                )
        self._waiting: deque[RenderTask] = deque()
        self._counters = EngineCounters()

    @property
    def busy(self) -> bool:
        """Whether tasks wait."""
        return bool(self._waiting)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

    @property
    def counters(self) -> EngineCounters:
        """The counters of all work so far."""
        return self._counters

    def add(self, tasks: Iterable[RenderTask], *, grouped: bool = False) -> None:
        """Append to the backlog. Tasks are rendered in the order in which they come."""
        self._waiting.extend(tasks)

    def drop_waiting(self) -> list[RenderTask]:
        """Remove and return the tasks that have not begun. They will have no outcome."""
        dropped = list(self._waiting)
        self._waiting.clear()
        return dropped

    def render(self, tasks: Iterable[RenderTask]) -> Iterator[Outcome]:
        """Add tasks and yield the outcomes of all that wait, in their order."""
        self.add(tasks)
        while self.busy:
            yield from self.step()

    @alone_with_torch
    def step(self) -> list[Outcome]:
        """Render the next task. Errors of the device are raised."""
        if self._patience.doze() or not self._waiting:
            return []
        task, began = self._waiting.popleft(), self._clock()
        self._on_begin(task)
        try:
            images = self._draw(task.recipe)
        except Exception as error:  # the task boundary: what a recipe breaks is that task's failure
            if out_of_memory(error):
                if not self._patience.wait_for_others(error):
                    what = f"not even one image of this size fits on {self._device_name}"
                    raise self._patience.too_small(what, error) from error
                self._waiting.appendleft(task)
                return []
            if device_error(error):
                raise
            return [failure(task, "denoise", error)]
        self._patience.progressed()
        elapsed_s = self._clock() - began
        count = evaluations(task.recipe.scheduler, task.recipe.num_inference_steps)
        self._counters += EngineCounters(
            evaluations=count,
            megapixel_evaluations=count * task.recipe.megapixels,
            denoiser_calls=count,
            denoise_s=elapsed_s,
        )
        if not np.isfinite(images).all():
            return [not_finite(task)]
        return [
            Rendered(
                task=task,
                pixels=(images * 255).round().astype(np.uint8),
                prompt_truncated=None,
                rows=1,
                render_s=elapsed_s,
                device=self._device_name,
            )
        ]

    def _draw(self, recipe: Recipe) -> Any:
        """Return the image, (height, width, 3), float 0..1."""
        found = scheduler_of(recipe.scheduler)
        if found.listed is not None and found.listed not in self._parameters:
            raise RenderError(f"{type(self._stock).__name__} takes no list of {found.listed}")
        generator = torch.Generator("cpu").manual_seed(recipe.seed)
        self._stock.scheduler = self._schedulers.make(found, recipe.num_inference_steps)
        step = self._stock.scheduler.step
        if "generator" in inspect.signature(step).parameters:
            # Pipelines for flow matching give it none, so ``stochastic_sampling`` would ignore the seed.
            self._stock.scheduler.step = partial(step, generator=generator)
        told: dict[str, Any] = {
            "num_inference_steps": recipe.num_inference_steps,
            "timesteps": found.timesteps and list(found.timesteps),
            "sigmas": found.sigmas and list(found.sigmas),
            "guidance_scale": recipe.guidance_scale,
            "negative_prompt": recipe.negative_prompt if (recipe.negative_prompt or "").strip() else None,
            "use_resolution_binning": False,
            "clean_caption": False,
        }
        asked = {name: value for name, value in told.items() if value is not None and name in self._parameters}
        with torch.no_grad():
            return self._stock(
                prompt=recipe.prompt,
                width=recipe.width,
                height=recipe.height,
                generator=generator,
                output_type="np",
                **{**asked, **self._call},
            ).images[0]
