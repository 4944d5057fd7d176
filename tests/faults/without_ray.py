"""A launch in this process: what the driver and one worker do to a store, in their order, without Ray."""

import uuid
from collections import deque
from collections.abc import Container, Iterable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.config import load_job
from pipeline.distributed.binding import ModelFiles, bind, find_model
from pipeline.distributed.runner import LeaseRunner
from pipeline.distributed.spec import Device, Pool
from pipeline.identity import IdSet
from pipeline.output.finalize import finalize
from pipeline.output.index import load_index
from pipeline.output.launch_note import LaunchNote, kept_alive, read_notes, write_note
from pipeline.output.layout import Layout
from pipeline.output.part import PartWriter, RunFacts
from pipeline.output.requests import write_requests
from pipeline.output.run import Run, read_run
from pipeline.planning.requests import requests
from pipeline.planning.shards import ShardSize, cut
from pipeline.planning.tasks import Space, plan_batch
from pipeline.prepare import Prepared, check_run, numbered_batches, prepare, select
from pipeline.recipe import RenderTask
from pipeline.rendering.counters import EngineCounters
from pipeline.rendering.renderer import Renderer
from pipeline.rendering.results import Failed, Outcome, Rendered
from pipeline.storage.base import ObjectStore

_POOL = Pool(workers=1, gpus=0.0, cpus=1)
_CPU = Device(name="cpu", memory_bytes=None)


class Painter:
    """A `Renderer` without a network: pixels follow from a task's id alone, and some prompts fail."""

    counters = EngineCounters()

    def __init__(self, fails: Container[str] = (), shade: int = 0) -> None:
        """Another ``shade`` is another device, whose pixels differ."""
        self._fails, self._shade = fails, shade
        self._waiting: deque[RenderTask] = deque()

    @property
    def busy(self) -> bool:
        return bool(self._waiting)

    @property
    def waiting(self) -> int:
        return len(self._waiting)

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
        if task.recipe.prompt in self._fails:
            return Failed(task=task, stage="decode", verdict="error", error="ValueError: no")
        return Rendered(
            task=task, pixels=painted(task, self._shade), prompt_truncated=False, rows=2, render_s=0.0, device="cpu"
        )


def painted(task: RenderTask, shade: int = 0) -> NDArray[np.uint8]:
    """(height, width, 3) RGB 0..255"""
    colours = np.frombuffer(bytes.fromhex(task.task_id), np.uint8) ^ np.uint8(shade)
    return np.resize(colours, (task.recipe.height, task.recipe.width, 3))


@dataclass(frozen=True, slots=True, kw_only=True)
class Plan:
    """A job, understood, and the files of its model."""

    prepared: Prepared
    model: ModelFiles

    def space(self, run: Run) -> Space:
        prepared = self.prepared
        return Space(axes=prepared.axes, family=prepared.model.family, run_digest=run.constants.digest())

    def shards(self, run: Run, committed: IdSet) -> list[pa.Table]:
        """What is planned and not committed."""
        images = self.prepared.job.render.shard_images
        assert images != "auto"
        size = ShardSize(megapixel_evaluations=0.0, min_images=images, max_images=images)
        selection, space = select(self.prepared, limit=None, sample=None), self.space(run)
        batches = numbered_batches(self.prepared.manifest)
        return list(
            cut((table for one in batches for table in plan_batch(one, space, selection, committed)), lambda _: size)
        )


def plan_of(folder: Path, prompts: list[str], layout: Layout, seeds: str, model: str = "shapes") -> Plan:
    """A job over these prompts, two images a shard."""
    manifest = folder / "m.parquet"
    pq.write_table(pa.table({"prompt": prompts}), manifest)
    keys = {
        "manifest": str(manifest), "model.id": model, "sweep.seeds": seeds, "sweep.num_inference_steps": 2,
        "output.layout": layout, "render.shard_images": 2, "render.rows": 4, "render.compile": False,
    }  # fmt: skip
    prepared = prepare(load_job(None, list(keys.items()), date(2026, 1, 1)))
    return Plan(prepared=prepared, model=find_model(prepared, None, folder, lambda _: None))


def launch_here(store: ObjectStore, plan: Plan, renderer: Renderer, *, retry_failed: bool = False) -> int:
    """Render what is missing and finalize; returns how many images were missing. As ``distributed/launch.py``."""
    store.check_writable()
    attempt = sum(note.retry_failed for note in read_notes(store)) + 1 if retry_failed else 0
    seen, index = read_run(store), load_index(store)
    known = seen if len(index.all()) else None
    if known is not None:
        check_run(known, plan.prepared, store.uri, plan.model.fingerprint)
    run = bind(store, seen, known, plan.prepared, plan.model, _POOL, _CPU, lambda _: None)
    shards = plan.shards(run, index.ok if retry_failed else index.all())
    _keep_requests(store, plan, run)
    if shards:
        _render_noted(store, shards, _facts(run, attempt), renderer)
    finalize(store)
    return sum(shard.num_rows for shard in shards)


def _keep_requests(store: ObjectStore, plan: Plan, run: Run) -> None:
    prepared = plan.prepared
    selection = select(prepared, limit=None, sample=None)
    read = partial(numbered_batches, prepared.manifest)
    write_requests(store, requests(read, plan.space(run), selection, prepared.rejected_rows))


def _facts(run: Run, attempt: int) -> RunFacts:
    return RunFacts(
        model_id=run.model_id,
        model_fingerprint=run.constants.model_fingerprint,
        dtype=run.constants.dtype,
        darkroom_version="0",
        attempt=attempt,
        packing=run.packing,
    )


def _render_noted(store: ObjectStore, shards: list[pa.Table], facts: RunFacts, renderer: Renderer) -> None:
    """Between the two notes of a launch."""
    now, images = datetime.now(UTC).isoformat(), sum(shard.num_rows for shard in shards)
    note = LaunchNote(
        launch_id=uuid.uuid4().hex,
        started_at=now,
        planned=images,
        to_render=images,
        retry_failed=facts.attempt > 0,
        alive_at=now,
    )
    with kept_alive(store, note):
        _render(store, shards, facts, renderer)
        assert len(load_index(store).all()) >= images  # as waves do, which trust nobody but the store
    write_note(store, replace(note, finished_at=now, ok=images))


def _render(store: ObjectStore, shards: list[pa.Table], facts: RunFacts, renderer: Renderer) -> None:
    """As ``distributed/worker.py``, all leases in hand at once."""
    runner = LeaseRunner(renderer, partial(PartWriter, store, facts=facts))
    try:
        for future in [runner.submit(shard) for shard in shards]:
            future.result()
    finally:
        runner.close()
