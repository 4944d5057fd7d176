"""Planned leases: what a launch has left to render, cut for its workers, by a thread of its own."""

import queue
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa

from pipeline.identity import IdSet
from pipeline.manifest.open import Manifest
from pipeline.planning.amount import Amount
from pipeline.planning.selection import Selection
from pipeline.planning.shards import PictureSize, ShardSize, cut, passes, shard_size
from pipeline.planning.tasks import Space, plan_batch
from pipeline.prepare import numbered_batches

AHEAD = 16
"""Leases that are planned before somebody asks."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LeasePlan:
    """What leases are made of."""

    manifest: Manifest
    space: Space
    selection: Selection
    missing: Amount
    """Without an outcome when planning begins."""
    workers: int
    """At most."""
    slots: Mapping[PictureSize, int]
    """Images that a worker renders at a time, in the order in which sizes are rendered."""
    images: int | None = None
    """Of a lease; None: large at the beginning, and as small as a worker's slots at the end."""


def planned_leases(plan: LeasePlan, committed: IdSet) -> Iterator[pa.Table]:
    """Yield tasks that are not committed, each table of one image size and for one lease."""
    left = plan.missing

    def size_of(sizes: frozenset[PictureSize], size: PictureSize) -> ShardSize | None:
        return shard_size(left, plan.workers, plan.slots[size], plan.images) if size in sizes else None

    for sizes in passes([*plan.slots]):
        tables = (
            table
            for numbered in numbered_batches(plan.manifest)
            for table in plan_batch(numbered, plan.space, plan.selection, committed)
        )
        for lease in cut(tables, partial(size_of, sizes)):
            left = _less(left, lease)
            yield distinct(lease)


class Planner:
    """Takes leases from an iterator in a thread of its own, a few ahead. ``next`` never waits."""

    def __init__(self, leases: Iterator[pa.Table]) -> None:
        self._ready: queue.Queue[pa.Table | BaseException | None] = queue.Queue(AHEAD)
        """Leases, what was raised, or None at the end."""
        self._over = self._left = False
        self._thread = threading.Thread(target=self._plan, args=(leases,), name="plan", daemon=True)
        self._thread.start()

    def next(self) -> pa.Table | None:
        """Return the next lease; None where none is planned yet, or at the end. Raises what planning raised."""
        if self._over:
            return None
        try:
            found = self._ready.get_nowait()
        except queue.Empty:
            return None
        self._over = not isinstance(found, pa.Table)
        if isinstance(found, BaseException):
            raise found
        return found

    @property
    def over(self) -> bool:
        """Whether ``next`` will return no more."""
        return self._over

    def close(self) -> None:
        """Stop planning."""
        self._left = True
        while self._thread.is_alive():
            self.next()
            self._thread.join(0.01)

    def _plan(self, leases: Iterator[pa.Table]) -> None:
        try:
            for lease in leases:
                self._ready.put(lease)
                if self._left:
                    return
            self._ready.put(None)
        except BaseException as error:  # noqa: BLE001  # it belongs to who asks
            self._ready.put(error)


def distinct(lease: pa.Table) -> pa.Table:
    """Return the first of the tasks with one id: planning misses repeated ones in manifests of absurd length."""
    ids = lease["task_id"].to_pylist()
    first = {task_id: number for number, task_id in reversed(list(enumerate(ids)))}
    return lease if len(first) == len(ids) else lease.take(pa.array(sorted(first.values())))


def _less(left: Amount, lease: pa.Table) -> Amount:
    """Return the images and the work that are left after a lease."""
    megapixels = lease["width"][0].as_py() * lease["height"][0].as_py() / 1e6
    work = float(np.sum(lease["evaluations"].to_numpy())) * megapixels
    return Amount(
        images=max(0, left.images - lease.num_rows),
        megapixel_evaluations=max(0.0, left.megapixel_evaluations - work),
    )
