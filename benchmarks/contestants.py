"""Darkroom without Ray as a contestant; its rivals are in ``stock``."""

from collections.abc import Sequence
from pathlib import Path

import pyarrow as pa

from pipeline.distributed.runner import LeaseRunner
from pipeline.output.part import PartWriter, RunFacts
from pipeline.planning.tasks import TASK_FIELDS
from pipeline.recipe import RenderTask
from pipeline.rendering.counters import EngineCounters
from pipeline.rendering.engine import Engine
from pipeline.rendering.loading import LoadedModel, load_model
from pipeline.storage.local import LocalStore

FACTS = RunFacts(model_id="benchmark", model_fingerprint="0" * 32, dtype="", darkroom_version="")


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
        runner = LeaseRunner(self._engine, lambda shard: PartWriter(store, shard, FACTS))
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
