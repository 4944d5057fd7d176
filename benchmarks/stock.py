"""What people write today: stock diffusers pipelines, one call per image or in batches.

Needs torch, diffusers and Pillow alone. Each contestant loads its model once and is then called with tasks and a
folder; it returns when every picture is a file there.
"""

import shutil
import tempfile
import time
from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import diffusers
import torch

from pipeline.recipe import RenderTask
from pipeline.rendering.loading import DTYPES
from pipeline.schedulers import scheduler_of


class Contestant(Protocol):
    """Renders tasks into a folder."""

    def __call__(self, tasks: Sequence[RenderTask], folder: Path) -> None:
        """Return when every picture is a file."""


def seconds(contestant: Contestant, tasks: Sequence[RenderTask]) -> float:
    """Time to render the tasks into a fresh folder."""
    folder = Path(tempfile.mkdtemp(prefix="darkroom-benchmark-"))
    try:
        began = time.perf_counter()
        contestant(tasks, folder)
        return time.perf_counter() - began
    finally:
        shutil.rmtree(folder)


class Stock:
    """A diffusers pipeline as people load it, with the scheduler of the tasks."""

    def __init__(self, folder: Path, class_name: str, dtype: str, device: str) -> None:
        stock_class: Any = getattr(diffusers, class_name)
        self.pipeline = stock_class.from_pretrained(folder, dtype=DTYPES[dtype]).to(device)
        self.pipeline.set_progress_bar_config(disable=True)

    def use(self, scheduler: str) -> None:
        """Set the scheduler of the next calls."""
        found = scheduler_of(scheduler)
        own = getattr(diffusers, found.kind.class_name)
        self.pipeline.scheduler = own.from_config(self.pipeline.scheduler.config, **found.settings)


class Loop(Stock):
    """B0: one call per image, Pillow's default PNG, saved in turn."""

    def __call__(self, tasks: Sequence[RenderTask], folder: Path) -> None:
        for task in tasks:
            recipe = task.recipe
            self.use(recipe.scheduler)
            image = self.pipeline(
                recipe.prompt,
                guidance_scale=recipe.guidance_scale,
                num_inference_steps=recipe.num_inference_steps,
                width=recipe.width,
                height=recipe.height,
                generator=torch.Generator("cpu").manual_seed(recipe.seed),
            ).images[0]
            image.save(folder / f"{task.task_id}.png")


class Batched(Stock):
    """B1: tasks grouped by guidance and steps, lists of prompts and generators, saved in turn. B2: compiled."""

    def __init__(
        self, folder: Path, class_name: str, dtype: str, device: str, batch: int, *, compiled: bool = False
    ) -> None:
        super().__init__(folder, class_name, dtype, device)
        self._batch = batch
        if compiled:
            name = "unet" if hasattr(self.pipeline, "unet") else "transformer"
            network = getattr(self.pipeline, name).to(memory_format=torch.channels_last)
            setattr(self.pipeline, name, torch.compile(network, dynamic=False))

    def __call__(self, tasks: Sequence[RenderTask], folder: Path) -> None:
        for chunk in self.chunks(tasks):
            recipe = chunk[0].recipe
            self.use(recipe.scheduler)
            images = self.pipeline(
                [task.recipe.prompt for task in chunk],
                guidance_scale=recipe.guidance_scale,
                num_inference_steps=recipe.num_inference_steps,
                width=recipe.width,
                height=recipe.height,
                generator=[torch.Generator("cpu").manual_seed(task.recipe.seed) for task in chunk],
            ).images
            for task, image in zip(chunk, images, strict=True):
                image.save(folder / f"{task.task_id}.png")

    def chunks(self, tasks: Sequence[RenderTask]) -> Iterator[list[RenderTask]]:
        """The tasks of each call."""
        groups: dict[Any, list[RenderTask]] = defaultdict(list)
        for task in tasks:
            r = task.recipe
            groups[r.guidance_scale, r.num_inference_steps, r.scheduler, r.width, r.height].append(task)
        for group in groups.values():
            yield from (group[start : start + self._batch] for start in range(0, len(group), self._batch))
