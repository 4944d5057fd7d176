"""The waves of a launch: each renders what the store does not hold yet, until nothing planned is missing."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import partial
from threading import Timer

import pyarrow as pa

from pipeline.distributed.added import Added
from pipeline.distributed.board import Watcher
from pipeline.distributed.cluster import cluster_summary
from pipeline.distributed.graph import end_waves, run_wave
from pipeline.distributed.outcomes import Tally
from pipeline.distributed.pump import pumped
from pipeline.distributed.report import Progress, Tell
from pipeline.distributed.shards import ShardPlan
from pipeline.distributed.spec import Pool, WorkerSpec
from pipeline.distributed.stopping import Stop
from pipeline.errors import InputError, JobBrokenError
from pipeline.identity import IdSet
from pipeline.output.index import load_index
from pipeline.planning.amount import Amount
from pipeline.planning.selection import Selection
from pipeline.planning.shards import shard_size
from pipeline.planning.tasks import Space, planned_amount
from pipeline.prepare import Prepared, numbered_batches
from pipeline.storage.base import ObjectStore

MAX_POOR_WAVES = 5
"""So many may bring less than half of what was missing: machines that leave cost a wave some of its images."""
SILENCE_S = 90.0
"""Without an outcome for so long after the start, people are told what the cluster has."""


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
        stop: Stop,
        tell: Tell,
        on_progress: Callable[[Progress], None],
        added: Added,
    ) -> None:
        self._work, self._spec, self._pool, self._store = work, spec, pool, store
        self._tell, self._on_progress = tell, on_progress
        self.stop, self.added = stop, added
        self.missing = work.missing
        self.tally = Tally.of(work.missing, pool.workers)
        self._watcher = Watcher(spec.board)
        self.busy_s = 0.0
        """Of all waves, the loading of models included."""

    def per_second(self, amount: float) -> float | None:
        """An amount over the time of all waves, the loading of models included."""
        return amount / self.busy_s if self.busy_s else None

    def run(self) -> None:
        """Ends when nothing is missing, or stopped. What counts is what the store holds, not what workers report.

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
            for outcomes in self._wave(done):
                self.added.take(self.tally.take(outcomes, time.monotonic()))
                self._look()
                self._on_progress(self.tally.progress)
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

    def _wave(self, committed: IdSet) -> Iterator[pa.Table]:
        work, images = self._work, self._work.prepared.job.render.shard_images
        fixed = None if images == "auto" else images
        sizes = {
            size: shard_size(self.missing, self._pool.workers, self._spec.rows(*size) // 2, fixed)
            for size in work.prepared.count.sizes
        }
        plan = ShardPlan(
            manifest=work.prepared.manifest,
            space=work.space,
            selection=work.selection,
            sizes=sizes,
        )
        silence = Timer(SILENCE_S, self._tell_of_silence)
        silence.daemon = True
        silence.start()
        try:
            source = run_wave(plan, work.prepared.points, committed, self._spec, self._pool)
            end = partial(end_waves, self._spec.launch_id)
            for outcomes in pumped(source, lambda: self.stop.complete(self.tally.told), self._tell_of_drawn, end):
                silence.cancel()
                yield outcomes
        finally:
            silence.cancel()

    def _tell_of_drawn(self) -> None:
        """While no outcome comes."""
        before = self.tally.progress
        self._look()
        if (self.tally.progress.ready, self.tally.progress.drawn) != (before.ready, before.drawn):
            self._on_progress(self.tally.progress)

    def _look(self) -> None:
        """Take in what workers have drawn; it is theirs until they commit it."""
        seen = self._watcher.seen()
        self.tally.hear(seen.drawn, time.monotonic())
        self.tally.progress = replace(self.tally.progress, ready=seen.ready)

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
