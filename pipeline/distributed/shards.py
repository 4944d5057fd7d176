"""Shards on their way through Ray: one row of a block holds one whole shard, so that nobody splits or merges it."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from functools import partial

import pyarrow as pa
import ray
from ray.data.block import BlockMetadata
from ray.data.datasource import Datasource, ReadTask

from pipeline.manifest.open import Manifest, Split
from pipeline.planning.selection import Selection
from pipeline.planning.shards import PictureSize, ShardSize, cut, passes
from pipeline.planning.tasks import Space, plan_batch
from pipeline.prepare import numbered_batches

SHARDS_PER_READ = 50
"""So many shards at least come of one read task, whose last one is usually short."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ShardPlan:
    """What a read task needs to plan its part of the manifest."""

    manifest: Manifest
    space: Space
    selection: Selection
    sizes: Mapping[PictureSize, ShardSize]
    """How large shards are by picture size, in the order in which those are rendered."""


class ShardSource(Datasource):  # type: ignore[misc]  # Ray ships no types
    """Plans and streams shards, a range of row groups per read task."""

    def __init__(self, plan: ShardPlan, images_per_row: int, committed: "ray.ObjectRef") -> None:
        self._plan, self._images_per_row, self._committed = plan, images_per_row, committed

    def get_name(self) -> str:
        return "Plan"

    def estimate_inmemory_data_size(self) -> int | None:
        return None

    def get_read_tasks(self, parallelism: int, *_: object, **__: object) -> list[ReadTask]:
        rows = max(1, SHARDS_PER_READ * self._max_images() // max(1, self._images_per_row))
        unknown = BlockMetadata(num_rows=None, size_bytes=None, input_files=None, exec_stats=None)
        return [
            ReadTask(partial(_read, self._plan, split, sizes, self._committed), unknown)
            for sizes in passes([*self._plan.sizes])
            for split in self._plan.manifest.splits(rows)
        ]

    def _max_images(self) -> int:
        return max(size.max_images for size in self._plan.sizes.values())


def _read(
    plan: ShardPlan, split: Split, sizes: frozenset[PictureSize], committed_ref: "ray.ObjectRef"
) -> Iterator[pa.Table]:
    committed = ray.get(committed_ref)
    tables = (
        table
        for numbered in numbered_batches(plan.manifest, split)
        for table in plan_batch(numbered, plan.space, plan.selection, committed)
    )
    for shard in cut(tables, {size: plan.sizes[size] for size in sizes}.get):
        yield pa.table({"shard": pa.array([pack(distinct(shard))], pa.large_binary())})


def distinct(shard: pa.Table) -> pa.Table:
    """The first of the tasks with one id: planning finds repeated ones, but not in manifests of absurd length."""
    ids = shard["task_id"].to_pylist()
    first = {task_id: number for number, task_id in reversed(list(enumerate(ids)))}
    return shard if len(first) == len(ids) else shard.take(pa.array(sorted(first.values())))


def pack(shard: pa.Table) -> bytes:
    """A shard as one value: Arrow IPC."""
    sink = pa.BufferOutputStream()
    with pa.ipc.new_stream(sink, shard.schema) as writer:
        writer.write_table(shard)
    return bytes(sink.getvalue())


def unpack(block: pa.Table) -> Iterable[pa.Table]:
    """The shards of a block of ``ShardSource``."""
    return (pa.ipc.open_stream(packed).read_all() for packed in block["shard"].to_pylist())
