"""The waves of a launch: each renders what the store does not hold yet, until nothing planned is missing."""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from threading import Timer

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.distributed.added import Added
from pipeline.distributed.cluster import cluster_summary
from pipeline.distributed.dispatcher import Crew, CrewSize, Dispatcher
from pipeline.distributed.outcomes import Tally, Teller, Worked
from pipeline.distributed.planned import LeasePlan, Planner, planned_leases
from pipeline.distributed.report import Drawn, Progress, Tell
from pipeline.distributed.runner import tasks_of
from pipeline.distributed.spec import Pool, WorkerSpec
from pipeline.distributed.stopping import Stop
from pipeline.errors import InputError, JobBrokenError
from pipeline.identity import IdSet
from pipeline.output.index import load_index
from pipeline.output.layout import part_prefix
from pipeline.output.part import PartWriter, read_part
from pipeline.planning.amount import Amount
from pipeline.planning.selection import Selection
from pipeline.planning.tasks import Space, planned_amount
from pipeline.prepare import Prepared, numbered_batches
from pipeline.rendering.results import Failed
from pipeline.storage.base import ObjectStore

MAX_POOR_WAVES = 5
"""So many may bring less than half of what was missing: machines that leave cost a wave some of its images."""
SILENCE_S = 90.0
"""Without an outcome for so long after the start, people are told what the cluster has."""
LEASES_PER_WORKER = 3
"""Planned leases that wait, by worker: of several sizes, so that each worker finds its own."""
LEAST_WINDOW = 64


@dataclass(frozen=True, slots=True, kw_only=True)
class Work:
    """What waves are about and how much of it there is."""

    prepared: Prepared
    space: Space
    selection: Selection
    committed: IdSet
    """When the launch began."""
    missing: Amount
    retry_failed: bool = False
    """A task that failed before this launch is missing."""


class Waves:
    """Runs waves until every planned task has an outcome in the store, counting as outcomes come."""

    def __init__(
        self,
        work: Work,
        spec: WorkerSpec,
        pool: Pool,
        store: ObjectStore,
        crew: Crew,
        stop: Stop,
        tell: Tell,
        on_progress: Callable[[Progress], None],
        added: Added,
    ) -> None:
        self._work, self._spec, self._pool, self._store, self._crew = work, spec, pool, store, crew
        self._tell, self._on_progress = tell, on_progress
        self.stop, self.added = stop, added
        self.missing = work.missing
        self.tally = Tally.of(work.missing, pool.workers)
        self.deaths = 0
        """Processes that died of their work."""
        self.busy_s = 0.0
        """Of all waves, the loading of models included."""
        self._driver = Teller(worker="driver", model_load="driver")

    def per_second(self, amount: float) -> float | None:
        """Return an amount over the time of all waves, the loading of models included."""
        return amount / self.busy_s if self.busy_s else None

    def run(self) -> None:
        """Return when nothing is missing, or stopped. What counts is what the store holds, not what workers report.

        Raises ``InputError`` only if nothing was rendered; ``JobBrokenError`` for one that a worker meets later.
        """
        try:
            self._run()
        except InputError as error:
            if self.tally.progress.images:
                raise JobBrokenError(str(error)) from error
            raise

    def _run(self) -> None:
        done, poor = self._work.committed, 0
        while poor < MAX_POOR_WAVES:
            before, began = self.missing.images, time.monotonic()
            try:
                self._wave(done)
            finally:
                self.busy_s += time.monotonic() - began
            done = self._done()
            self.missing = self._missing(done)
            if not self.missing.images or self.stop.reason:
                return
            poor += 2 * self.missing.images > before
        raise JobBrokenError(f"{self.missing.images} images have no outcome after {poor} waves that brought few")

    def _done(self) -> IdSet:
        """Everything with an outcome that counts, from the store."""
        index = load_index(self._store)
        self._check_stored(index.all())
        return index.ok.union(self.tally.reported) if self._work.retry_failed else index.all()

    def _wave(self, committed: IdSet) -> None:
        work, images = self._work, self._work.prepared.job.render.shard_images
        slots = {size: self._spec.rows(*size) // 2 for size in work.prepared.count.sizes}
        plan = LeasePlan(
            manifest=work.prepared.manifest,
            space=work.space,
            selection=work.selection,
            missing=self.missing,
            workers=self._pool.workers,
            slots=slots,
            images=None if images == "auto" else images,
        )
        size = CrewSize(
            most=self._pool.workers,
            slots=max(slots.values()),
            most_failed_starts=self._pool.most_failed_starts,
            window=max(LEAST_WINDOW, LEASES_PER_WORKER * self._pool.workers),
        )
        planner = Planner(planned_leases(plan, committed))
        dispatcher = Dispatcher(self._crew, planner, size, self, images=self.missing.images)
        silence = self._silence = Timer(SILENCE_S, self._tell_of_silence)
        silence.daemon = True
        silence.start()
        self.stop.follow(dispatcher.stop)
        try:
            dispatcher.run()
        finally:
            silence.cancel()
            planner.close()
            self.deaths += dispatcher.deaths

    def committed(self, outcomes: pa.Table) -> None:
        """Count outcomes that are in the store."""
        self._silence.cancel()
        self.added.take(self.tally.take(outcomes, time.monotonic()))
        self._on_progress(self.tally.progress)

    def found(self, parts: Sequence[str], tasks: Sequence[pa.Table]) -> pa.Table | None:
        """Return outcomes of these tasks in parts that are in the store though a worker died before it told of them."""
        planned = pa.concat_tables(tasks, promote_options="default")
        ids = pa.array([task_id.hex() for task_id in planned["task_id"].to_pylist()])
        keys = [found.key for part in parts for found in self._store.list(part_prefix(part))]
        tables = [rows.filter(pc.is_in(rows["task_id"], ids)) for rows in (read_part(self._store, key) for key in keys)]
        if not sum(table.num_rows for table in tables):
            return None
        return self._driver.told(pa.concat_tables(tables, promote_options="default"), planned, Worked())

    def quarantined(self, task: pa.Table) -> None:
        """Commit a task as failed: it kills the processes that render it."""
        died = "ProcessDied: workers died with it among others, or their nodes, and then while it was rendered alone"
        part = PartWriter(self._store, task, self._spec.facts)
        for one in tasks_of(task):
            part.put(Failed(task=one, stage="process", verdict="quarantined", error=died), datetime.now(UTC))
        self.committed(self._driver.told(part.commit(), task, Worked()))

    def working(self, process_id: str, drawn: Drawn, ready: int) -> None:
        """Take in what a worker has drawn; it is the worker's until it is committed."""
        before = self.tally.progress
        self.tally.hear({process_id: drawn}, time.monotonic())
        self.tally.progress = replace(self.tally.progress, ready=ready)
        if (self.tally.progress.ready, self.tally.progress.drawn) != (before.ready, before.drawn):
            self._on_progress(self.tally.progress)

    def gone(self, process_id: str) -> None:
        """Leave out what a worker has drawn and not committed: it is gone."""
        self.tally.forget(process_id)

    def says(self, sentence: str) -> None:
        """Tell people something."""
        self._tell(sentence)

    def _tell_of_silence(self) -> None:
        self._tell(f"still no image after {SILENCE_S:g} s; the cluster has {cluster_summary()}")

    def _check_stored(self, committed: IdSet) -> None:
        """Workers that write elsewhere than the driver reads, such as each to a disk of its own, are found out here."""
        lost = sum(int((~committed.contains(ids)).sum()) for ids in self.tally.reported)
        if lost:
            raise JobBrokenError(
                f"workers committed {lost} images that are not in {self._store.uri}: an output on a cluster must be "
                "object storage, or a directory that all nodes share"
            )

    def _missing(self, committed: IdSet) -> Amount:
        work = self._work
        batches = numbered_batches(work.prepared.manifest)
        return planned_amount(batches, work.space, work.selection, committed)[1]
