"""Tasks cut into shards."""

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.identity import part_id
from pipeline.planning.grids import Axes
from pipeline.planning.selection import Selection
from pipeline.planning.shards import ShardSize, cut, shard_count, shard_size
from pipeline.planning.tasks import plan_batch
from tests.planning.plain import (
    NOTHING,
    Cells,
    axes_of,
    axes_strategy,
    counted,
    distinct,
    id_set,
    numbered,
    once,
    planned_ids,
    rows_strategy,
    space,
)


@settings(max_examples=50)
@given(rows_strategy, axes_strategy, st.integers(1, 9), st.integers(0, 9))
def test_shards_lose_nothing_and_keep_one_size(rows: Cells, axes: Axes, most: int, work: int) -> None:
    size = ShardSize(megapixel_evaluations=work / 10, min_images=min(2, most), max_images=most)
    shards = list(cut(plan_batch(numbered(rows), space(axes), once(rows, axes), NOTHING), lambda _: size))
    ids = [item.hex() for shard in shards for item in shard["task_id"].to_pylist()]
    assert sorted(ids) == sorted(task.task_id for task in distinct(rows, axes))
    for shard in shards:
        assert 0 < shard.num_rows <= most
        assert len(set(zip(shard["width"].to_pylist(), shard["height"].to_pylist(), strict=True))) == 1


@settings(max_examples=50)
@given(rows_strategy, axes_strategy, st.integers(1, 9), st.integers(1, 9), st.data())
def test_two_launches_share_a_part_name_only_for_the_same_tasks(
    rows: Cells, axes: Axes, one: int, other: int, data: st.DataObject
) -> None:
    done = data.draw(st.sets(st.sampled_from(planned_ids(rows, axes))))
    names: dict[str, list[bytes]] = {}
    for images, index in ((one, NOTHING), (other, id_set(done))):
        size = ShardSize(megapixel_evaluations=0.0, min_images=images, max_images=images)
        for shard in cut(plan_batch(numbered(rows), space(axes), Selection(), index), lambda _, size=size: size):  # type: ignore[misc]
            tasks = shard["task_id"].to_pylist()
            assert names.setdefault(part_id(tasks), tasks) == tasks


def test_small_jobs_are_shared_out() -> None:
    found = counted([{"prompt": "a"}] * 3, axes_of(64))
    assert found.repeated.tolist() == [1, 2]
    work = found.amount.times(100)
    size = shard_size(work, workers=2, slots=8)
    assert size.min_images == 32
    assert size.megapixel_evaluations == pytest.approx(work.megapixel_evaluations / 8)
    assert shard_count(work, size) == 8
    assert shard_count(work, shard_size(work, 2, 8, images=1000)) == 7
