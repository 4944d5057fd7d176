"""The waves of a launch: each renders what the store does not hold yet, until nothing planned is missing."""

import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from threading import Timer

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.distributed.added import Added
from pipeline.distributed.graph import cluster_summary, run_wave
from pipeline.distributed.report import Progress, Tell
from pipeline.distributed.shards import ShardPlan
from pipeline.distributed.spec import Pool, WorkerSpec
from pipeline.distributed.stopping import Stop
from pipeline.distributed.worker import STOPPED
from pipeline.errors import JobBrokenError
from pipeline.identity import Ids, IdSet, ids_from_bytes
from pipeline.output.index import load_index
from pipeline.planning.amount import Amount
from pipeline.planning.selection import Selection
from pipeline.planning.shards import shard_size
from pipeline.planning.tasks import Space, planned_amount
from pipeline.prepare import Prepared, numbered_batches
from pipeline.storage.base import ObjectStore

MAX_WAVES = 5
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
        self.progress = Progress(total=work.missing)
        self.failures: list[dict[str, object]] = []
        """The first rows that failed."""
        self.seen_workers: set[str] = set()
        self.seen_loads: set[str] = set()
        self._reported: list[Ids] = []
        self._busy_s = 0.0

    def per_second(self, amount: int) -> float | None:
        """An amount over the time of all waves, the loading of models included."""
        return amount / self._busy_s if self._busy_s else None

    def run(self) -> None:
        """Ends when nothing is missing, or stopped. What counts is what the store holds, not what workers report."""
        done = self._work.committed
        for _ in range(MAX_WAVES):
            began = time.monotonic()
            for outcomes in self._wave(done):
                self._take(outcomes)
            self._busy_s += time.monotonic() - began
            done = self._done()
            self.missing = self._missing(done)
            if not self.missing.images or self.stop.reason:
                return
        raise JobBrokenError(f"{self.missing.images} images have no outcome after {MAX_WAVES} waves")

    def _done(self) -> IdSet:
        """Everything with an outcome that counts, from the store."""
        index = load_index(self._store)
        self._check_stored(index.all())
        return index.ok.union(self._reported) if self._work.retry_failed else index.all()

    def _wave(self, committed: IdSet) -> Iterator[pa.Table]:
        work, images = self._work, self._work.prepared.job.render.shard_images
        slots = max(1, self._spec.rows // 2)
        size = shard_size(self.missing, self._pool.workers, slots, None if images == "auto" else images)
        plan = ShardPlan(
            manifest=work.prepared.manifest,
            space=work.space,
            selection=work.selection,
            size=size,
            picture_sizes=work.prepared.count.sizes,
        )
        silence = Timer(SILENCE_S, self._tell_of_silence)
        silence.daemon = True
        silence.start()
        try:
            for outcomes in run_wave(plan, work.prepared.points, committed, self._spec, self._pool):
                silence.cancel()
                yield outcomes.filter(pc.not_equal(outcomes["status"], STOPPED))
                if self.stop.complete:
                    return
        finally:
            silence.cancel()

    def _tell_of_silence(self) -> None:
        self._tell(f"still no image after {SILENCE_S:g} s; the cluster has {cluster_summary()}")

    def _take(self, outcomes: pa.Table) -> None:
        self._reported.append(ids_from_bytes(bytes.fromhex("".join(outcomes["task_id"].to_pylist()))))
        self.added.take(outcomes)
        failed = outcomes.filter(pc.equal(outcomes["status"], "failed"))
        self.failures += failed.slice(0, max(0, 10 - len(self.failures))).to_pylist()
        self.seen_workers.update(outcomes["worker"].unique().to_pylist())
        self.seen_loads.update(outcomes["model_load"].unique().to_pylist())
        self.progress = replace(
            self.progress,
            ok=self.progress.ok + outcomes.num_rows - failed.num_rows,
            failed=self.progress.failed + failed.num_rows,
            evaluations=self.progress.evaluations + (pc.sum(outcomes["evaluations"]).as_py() or 0),
        )
        self._on_progress(self.progress)

    def _check_stored(self, committed: IdSet) -> None:
        """Workers that write elsewhere than the driver reads, such as each to a disk of its own, are found out here."""
        lost = sum(int((~committed.contains(ids)).sum()) for ids in self._reported)
        if lost:
            raise JobBrokenError(
                f"workers committed {lost} images that are not in {self._store.uri}: an output on a cluster must be "
                "object storage, or a directory that all nodes share"
            )

    def _missing(self, committed: IdSet) -> Amount:
        work = self._work
        batches = numbered_batches(work.prepared.manifest)
        return planned_amount(batches, work.space, work.selection, committed)[1]
