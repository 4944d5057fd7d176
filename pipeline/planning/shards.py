"""Shards: ordered tasks of one picture size, as much as one lease to a worker should hold."""

import math
from collections import defaultdict
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial
from itertools import pairwise

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.planning.amount import Amount

LEASE_MEGAPIXEL_EVALUATIONS = 4000.0
"""Tens of seconds on a GPU, so that a lease costs the driver nothing noticeable and a lost one is soon redone."""
WORKERS_PER_DRIVER_SECOND = 250
LEASES_PER_WORKER = 4
"""In a small job a worker gets at least this many, so that none waits long for the last."""
MAX_IMAGES = 1000
PASSES_OF_ONE_SIZE = 8
"""With so many picture sizes at most, each has a pass over the manifest of its own."""
SIZES_PER_PASS = 4
"""Of more; a worker keeps as many compiled shapes (``rendering/compiled.py``)."""
MAX_PASSES = 64
"""Each reads the manifest once more; with still more sizes, passes have more of them."""

PictureSize = tuple[int, int]
"""(width, height) in px"""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardSize:
    """A shard is full when it holds this much work, within these numbers of images."""

    megapixel_evaluations: float
    min_images: int
    max_images: int


def shard_size(amount: Amount, workers: int, slots: int, images: int | None = None) -> ShardSize:
    """How large shards should be for this amount of work; ``images`` fixes the number instead."""
    if images is not None:
        return ShardSize(megapixel_evaluations=0.0, min_images=images, max_images=images)
    lease = LEASE_MEGAPIXEL_EVALUATIONS * -(-workers // WORKERS_PER_DRIVER_SECOND)
    leases = workers * LEASES_PER_WORKER
    return ShardSize(
        megapixel_evaluations=min(lease, amount.megapixel_evaluations / leases),
        min_images=min(MAX_IMAGES, 4 * slots, max(slots, amount.images // leases)),
        max_images=MAX_IMAGES,
    )


def shard_count(amount: Amount, size: ShardSize) -> int:
    """About how many shards an amount of work makes, if all its images cost the same."""
    if not amount.images:
        return 0
    full = size.megapixel_evaluations * amount.images / amount.megapixel_evaluations
    return math.ceil(amount.images / min(max(full, size.min_images, 1), size.max_images))


def passes(sizes: Sequence[PictureSize]) -> list[frozenset[PictureSize]]:
    """Picture sizes in groups, one pass over the manifest each, so that a worker seldom changes its batch's shape."""
    wanted = max(PASSES_OF_ONE_SIZE, -(-len(sizes) // SIZES_PER_PASS))
    edges = np.linspace(0, len(sizes), min(wanted, MAX_PASSES, len(sizes)) + 1).astype(int)
    return [frozenset(sizes[start:stop]) for start, stop in pairwise(edges)]


def cut(tables: Iterable[pa.Table], size_of: Callable[[PictureSize], ShardSize | None]) -> Iterator[pa.Table]:
    """Cut tables of planned tasks into shards, keeping their order within a picture size.

    ``size_of`` says how large the next shard of a picture size should be; None where its tasks are left out.
    """
    pending: dict[PictureSize, list[pa.Table]] = defaultdict(list)
    for table in tables:
        for key, part in _by_key(table):
            if size_of(key) is not None:
                waiting = pa.concat_tables([*pending.pop(key, []), part])
                pending[key] = [(yield from _cut_one(waiting, partial(size_of, key)))]
    for rest in pending.values():
        yield from (table for table in rest if table.num_rows)


def _by_key(table: pa.Table) -> Iterator[tuple[PictureSize, pa.Table]]:
    sides = pa.table({"width": table["width"], "height": table["height"]})
    sizes = sides.group_by(["width", "height"], use_threads=False).aggregate([])
    for width, height in zip(sizes["width"].to_pylist(), sizes["height"].to_pylist(), strict=True):
        here = pc.and_(pc.equal(table["width"], width), pc.equal(table["height"], height))
        yield (width, height), table.filter(here) if sizes.num_rows > 1 else table


def _cut_one(table: pa.Table, size_of: Callable[[], ShardSize | None]) -> Generator[pa.Table, None, pa.Table]:
    """Yield full shards from the front of tasks of one size; return what is left, perhaps nothing."""
    megapixels = table["width"][0].as_py() * table["height"][0].as_py() / 1e6
    work = np.cumsum(table["evaluations"].to_numpy().astype(np.float64) * megapixels)
    start, done = 0, 0.0
    while (size := size_of()) is not None:
        enough = int(np.searchsorted(work, done + size.megapixel_evaluations)) + 1
        stop = min(max(enough, start + size.min_images), start + size.max_images)
        if stop >= len(work):
            break
        yield table.slice(start, stop - start)
        start, done = stop, float(work[stop - 1])
    return table.slice(start)
