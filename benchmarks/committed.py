"""A run as launches leave it, with drawn pictures in place of rendered ones; all else is done as launches do it."""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

import pipeline
from pipeline.config import load_job
from pipeline.identity import IdSet
from pipeline.output.index import load_index
from pipeline.output.part import PartWriter, RunFacts
from pipeline.output.run import NumericsProfile, Run, write_run
from pipeline.planning.tasks import Space, plan_batch
from pipeline.prepare import Prepared, numbered_batches, prepare, select
from pipeline.recipe import Recipe, RenderTask
from pipeline.rendering.results import Failed, Outcome, Rendered
from pipeline.storage.base import ObjectStore

PART_ROWS = 1_000
THREADS = 8
FINGERPRINT = "f" * 32
WHEN = datetime(2026, 1, 1, tzinfo=UTC)

Fails = Callable[[dict[str, Any]], bool]


def write_run_of(
    store: ObjectStore, folder: Path, rows: list[dict[str, Any]], fails: Fails = lambda _: False, **settings: Any
) -> int:
    """Commit all that a job asks for and that is not committed yet, as a launch with the built-in model would.

    Returns how many tasks that were.

    ``rows`` are the manifest's, which is written into ``folder``; ``settings`` are keys with ``__`` for the dot;
    ``fails`` says which planned tasks become failures.
    """
    manifest = folder / "prompts.parquet"
    names = dict.fromkeys(name for row in rows for name in row)
    pq.write_table(pa.Table.from_pylist([{name: row.get(name) for name in names} for row in rows]), manifest)
    given = {"manifest": str(manifest), "model.id": "shapes", "output.uri": store.uri}
    keys = {name.replace("__", "."): value for name, value in settings.items()}
    prepared = prepare(load_job(None, (given | keys).items(), date(2026, 1, 1)))
    run = _run(prepared)
    write_run(store, run)
    facts = RunFacts(
        model_id=run.model_id,
        model_fingerprint=FINGERPRINT,
        dtype="float32",
        darkroom_version=pipeline.__version__,
        packing=prepared.packing,
    )
    tasks = 0
    with ThreadPoolExecutor(THREADS) as pool:
        for shard in _shards(prepared, run, load_index(store).all()):
            writer = PartWriter(store, shard, facts)
            list(pool.map(partial(_put, writer, fails), shard.to_pylist()))
            tasks += writer.commit().num_rows
    return tasks


def _run(prepared: Prepared) -> Run:
    return Run(
        model_id=prepared.source.model_id,
        model_revision=None,
        constants=prepared.constants(FINGERPRINT, "float32"),
        numerics=NumericsProfile(rows=16, compiled=False, threads=1, device="cpu", versions={}),
        job=prepared.job.model_dump(mode="json"),
        created_at=WHEN.isoformat(),
        darkroom_version=pipeline.__version__,
        packing=prepared.packing,
    )


def _shards(prepared: Prepared, run: Run, committed: IdSet) -> Iterator[pa.Table]:
    space = Space(axes=prepared.axes, family=prepared.model.family, run_digest=run.constants.digest())
    selection = select(prepared, limit=None, sample=None)
    for batch in numbered_batches(prepared.manifest):
        for table in plan_batch(batch, space, selection, committed):
            yield from (table.slice(start, PART_ROWS) for start in range(0, table.num_rows, PART_ROWS))


def _put(writer: PartWriter, fails: Fails, row: dict[str, Any]) -> None:
    writer.put(_outcome(row, fails(row)), WHEN)


def _outcome(row: dict[str, Any], fails: bool) -> Outcome:
    names = (
        "prompt", "negative_prompt", "seed", "guidance_scale", "num_inference_steps", "scheduler", "width", "height",
    )  # fmt: skip
    task = RenderTask(task_id=row["task_id"].hex(), recipe=Recipe(**{name: row[name] for name in names}))
    if fails:
        return Failed(task=task, stage="decode", verdict="nan_latents", error="FloatingPointError: NaN in the latents")
    return Rendered(task=task, pixels=draw(row), prompt_truncated=False, rows=16, render_s=0.1, device="cpu")


def draw(row: dict[str, Any]) -> NDArray[np.uint8]:
    """A disc on a ground: colours by prompt and seed, its size by guidance, how soft it is by steps; RGB 0..255."""
    height, width = row["height"], row["width"]
    colours = np.random.default_rng([row["seed"], *row["prompt"].encode()[:64]]).integers(40, 230, (2, 3))
    y, x = np.mgrid[0:height, 0:width]
    away = np.hypot(x - width / 2, y - height / 2) / min(width, height)
    radius = 0.12 + 0.04 * min(row["guidance_scale"] or 1.0, 8.0)
    inside = np.clip((radius - away) * row["num_inference_steps"] + 0.5, 0, 1)[..., None]
    pixels: NDArray[np.uint8] = (colours[0] * inside + colours[1] * (1 - inside)).astype(np.uint8)
    return pixels
