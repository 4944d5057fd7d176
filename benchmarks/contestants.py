"""Ways to render the same tasks with the same weights: what people write today, and Darkroom without Ray.

Each contestant loads its model once and is then called with tasks and a folder; it returns when every picture is a
file there.
"""

from collections import defaultdict
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol

import diffusers
import pyarrow as pa
import torch

from pipeline.distributed.runner import ShardRunner
from pipeline.output.part import PartWriter, RunFacts
from pipeline.planning.tasks import TASK_FIELDS
from pipeline.recipe import RenderTask
from pipeline.rendering.engine import Engine, EngineCounters
from pipeline.rendering.loading import DTYPES, LoadedModel, load_model
from pipeline.schedulers import scheduler_of
from pipeline.storage.local import LocalStore

FACTS = RunFacts(model_id="benchmark", model_fingerprint="0" * 32, dtype="", darkroom_version="")


class Contestant(Protocol):
    """Renders tasks into a folder."""

    def __call__(self, tasks: Sequence[RenderTask], folder: Path) -> None:
        """Return when every picture is a file."""


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
        for chunk in self._chunks(tasks):
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

    def _chunks(self, tasks: Sequence[RenderTask]) -> Iterator[list[RenderTask]]:
        groups: dict[Any, list[RenderTask]] = defaultdict(list)
        for task in tasks:
            r = task.recipe
            groups[r.guidance_scale, r.num_inference_steps, r.scheduler, r.width, r.height].append(task)
        for group in groups.values():
            yield from (group[start : start + self._batch] for start in range(0, len(group), self._batch))


class Darkroom:
    """The engine with encoding, storing and committing beside it, in shards, as a worker runs it; no Ray."""

    def __init__(self, model: LoadedModel, rows: int, shard_images: int = 64) -> None:
        self._engine, self._shard_images = Engine(model, rows), shard_images

    @classmethod
    def load(cls, folder: Path, dtype: str, device: str, rows: int, *, compiled: bool = False) -> "Darkroom":
        """With the model of a folder."""
        return cls(load_model(folder, dtype=dtype, device=device, compiled=compiled), rows)

    @property
    def counters(self) -> EngineCounters:
        """Of the engine."""
        return self._engine.counters

    def __call__(self, tasks: Sequence[RenderTask], folder: Path) -> None:
        store = LocalStore(folder)
        runner = ShardRunner(self._engine, lambda shard: PartWriter(store, shard, FACTS))
        shards = [
            shard_table(tasks[start : start + self._shard_images]) for start in range(0, len(tasks), self._shard_images)
        ]
        done = [runner.submit(shard) for shard in shards]
        failed = [row for table in done for row in table.result().to_pylist() if row["status"] != "ok"]
        runner.close()
        if failed:
            raise RuntimeError(f"a task failed: {failed[0]['error']}")


def shard_table(tasks: Sequence[RenderTask]) -> pa.Table:
    """Tasks as planning makes them."""
    texts = [("prompt", pa.string()), ("negative_prompt", pa.string()), ("manifest_file", pa.string())]
    schema = pa.schema([*(pa.field(*text) for text in texts), pa.field("manifest_row", pa.int64()), *TASK_FIELDS])
    rows = [
        {
            "prompt": task.recipe.prompt, "negative_prompt": None, "manifest_file": "benchmark", "manifest_row": number,
            "task_id": bytes.fromhex(task.task_id), "seed": task.recipe.seed,
            "guidance_scale": task.recipe.guidance_scale, "num_inference_steps": task.recipe.num_inference_steps,
            "scheduler": task.recipe.scheduler, "width": task.recipe.width, "height": task.recipe.height,
            "evaluations": 0,
        }
        for number, task in enumerate(tasks)
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=schema)
