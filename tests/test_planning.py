"""Planning against the plainest way to say the same: loops over rows and points, one id at a time."""

from collections.abc import Iterator
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.identity import IdSet, RunConstants, ids_from_bytes, pack_point, part_id, task_id
from pipeline.manifest.columns import BATCH_SCHEMA
from pipeline.model.family import FAMILIES
from pipeline.planning.count import count
from pipeline.planning.points import Axes, points
from pipeline.planning.selection import Numbered, Selection, first_tasks, sample_tasks
from pipeline.planning.shards import ShardSize, cut, shard_size
from pipeline.planning.tasks import Space, plan_batch, planned_amount

FAMILY = FAMILIES["StableDiffusionPipeline"]
DIGEST = RunConstants(model_fingerprint="0" * 32, dtype="float32", scheduler_config={}).digest()
NOTHING = IdSet()

axes_strategy = st.builds(
    Axes,
    seeds=st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=3).map(tuple),
    guidance_scales=st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.5]), min_size=1, max_size=4).map(tuple),
    num_inference_steps=st.lists(st.integers(1, 60), min_size=1, max_size=2).map(tuple),
    schedulers=st.lists(st.sampled_from(["ddim", "heun", "euler"]), min_size=1, max_size=2).map(tuple),
    sizes=st.lists(st.sampled_from([(64, 64), (128, 64)]), min_size=1, max_size=2).map(tuple),
)
row_strategy = st.fixed_dictionaries(
    {
        "prompt": st.sampled_from(["a", "b", "ü", "a red circle"]),
        "negative_prompt": st.sampled_from([None, "blurry"]),
        "seeds": st.none() | st.lists(st.integers(0, 5), min_size=1, max_size=2, unique=True),
        "guidance_scale": st.none() | st.sampled_from([0.0, 1.0, 3.0]),
        "num_inference_steps": st.none() | st.integers(1, 30),
        "scheduler": st.none() | st.just("euler"),
        "width": st.none() | st.just(64),
    }
)
rows_strategy = st.lists(row_strategy, min_size=1, max_size=8)


def numbered(rows: list[dict[str, Any]]) -> Numbered:
    cells = [{**row, "height": row.get("width"), "manifest_file": "m", "manifest_row": n} for n, row in enumerate(rows)]
    return pa.Table.from_pylist(cells, schema=BATCH_SCHEMA), np.arange(len(rows))


def plain_ids(rows: list[dict[str, Any]], axes: Axes) -> Iterator[str]:
    """Every task, as anyone would write it."""
    for row in rows:
        sizes = [(row["width"], row["width"])] if row.get("width") else axes.sizes
        schedulers = [row["scheduler"]] if row.get("scheduler") else axes.schedulers
        seeds = row.get("seeds") or axes.seeds
        scales = axes.guidance_scales if row.get("guidance_scale") is None else [row["guidance_scale"]]
        counts = [row["num_inference_steps"]] if row.get("num_inference_steps") else axes.num_inference_steps
        for (width, height), scheduler, seed, scale, steps in product(sizes, schedulers, seeds, scales, counts):
            effective = scale if scale > 1 else 1.0
            negative = row.get("negative_prompt") if effective > 1 else None
            point = pack_point(
                seed=seed,
                guidance_scale=effective,
                num_inference_steps=steps,
                scheduler=scheduler,
                width=width,
                height=height,
            )
            yield task_id(DIGEST, row["prompt"], negative, point)


def space(axes: Axes) -> Space:
    return Space(axes=axes, family=FAMILY, run_digest=DIGEST)


def planned_ids(
    batch: Numbered, axes: Axes, committed: IdSet = NOTHING, selection: Selection | None = None
) -> list[str]:
    tables = plan_batch(batch, space(axes), selection or Selection(), committed)
    return [item.hex() for table in tables for item in table["task_id"].to_pylist()]


@given(rows_strategy, axes_strategy)
def test_ids_are_those_of_the_plain_loops(rows: list[dict[str, Any]], axes: Axes) -> None:
    assert set(planned_ids(numbered(rows), axes)) == set(plain_ids(rows, axes))


@given(rows_strategy, axes_strategy)
def test_counting_agrees_with_making(rows: list[dict[str, Any]], axes: Axes) -> None:
    counted = count(lambda: iter([numbered(rows)]), axes, FAMILY)
    selection = Selection(repeated=counted.repeated)
    whole, missing = planned_amount([numbered(rows)], space(axes), selection, NOTHING)
    assert whole == missing
    assert (counted.amount.images, counted.amount.evaluations) == (whole.images, whole.evaluations)
    assert counted.amount.megapixel_steps == pytest.approx(whole.megapixel_steps)
    assert len(planned_ids(numbered(rows), axes, selection=selection)) == whole.images
    assert set(planned_ids(numbered(rows), axes, selection=selection)) == set(plain_ids(rows, axes))


@given(rows_strategy, axes_strategy, st.data())
def test_resume_plans_exactly_what_is_missing(rows: list[dict[str, Any]], axes: Axes, data: st.DataObject) -> None:
    every = planned_ids(numbered(rows), axes)
    done = data.draw(st.sets(st.sampled_from(every)))
    committed = IdSet(ids_from_bytes(bytes.fromhex("".join(done))))
    assert planned_ids(numbered(rows), axes, committed) == [item for item in every if item not in done]


@given(rows_strategy, axes_strategy, st.integers(1, 40))
def test_limit_is_the_first_tasks(rows: list[dict[str, Any]], axes: Axes, limit: int) -> None:
    selection = first_tasks([numbered(rows)], axes, FAMILY, np.empty(0, np.int64), limit)
    assert planned_ids(numbered(rows), axes, selection=selection) == planned_ids(numbered(rows), axes)[:limit]


def test_sample_is_spread_over_rows_and_points() -> None:
    skipped = np.array([0, 7, 50])
    picks = sample_tasks(100, skipped, 6, 24, np.empty(0, np.int64)).picks
    assert picks is not None
    assert len(picks) == 24
    assert not np.isin(picks[:, 0], skipped).any()
    assert (np.diff(picks[:, 0]) < 12).all()
    assert np.bincount(picks[:, 1]).tolist() == [4] * 6
    every = sample_tasks(10, np.empty(0, np.int64), 6, 1000, np.empty(0, np.int64)).picks
    assert every is not None
    assert len({tuple(pair) for pair in every.tolist()}) == 60


@settings(max_examples=50)
@given(rows_strategy, axes_strategy, st.integers(1, 9), st.integers(0, 9))
def test_shards_lose_nothing_and_keep_one_size(rows: list[dict[str, Any]], axes: Axes, most: int, work: int) -> None:
    size = ShardSize(megapixel_evaluations=work / 10, min_images=min(2, most), max_images=most)
    shards = list(cut(plan_batch(numbered(rows), space(axes), Selection(), NOTHING), size))
    ids = [item.hex() for shard in shards for item in shard["task_id"].to_pylist()]
    assert sorted(ids) == sorted(planned_ids(numbered(rows), axes))
    for shard in shards:
        assert 0 < shard.num_rows <= most
        assert len(set(zip(shard["width"].to_pylist(), shard["height"].to_pylist(), strict=True))) == 1


@settings(max_examples=50)
@given(rows_strategy, axes_strategy, st.integers(1, 9), st.integers(1, 9), st.data())
def test_two_launches_share_a_part_name_only_for_the_same_tasks(
    rows: list[dict[str, Any]], axes: Axes, one: int, other: int, data: st.DataObject
) -> None:
    every = planned_ids(numbered(rows), axes)
    done = data.draw(st.sets(st.sampled_from(every)))
    committed = IdSet(ids_from_bytes(bytes.fromhex("".join(done))))
    names: dict[str, list[bytes]] = {}
    for images, index in ((one, NOTHING), (other, committed)):
        size = ShardSize(megapixel_evaluations=0.0, min_images=images, max_images=images)
        for shard in cut(plan_batch(numbered(rows), space(axes), Selection(), index), size):
            tasks = shard["task_id"].to_pylist()
            assert names.setdefault(part_id(tasks), tasks) == tasks


def test_guidance_of_at_most_one_is_one_image_without_negative_prompt() -> None:
    axes = Axes(
        seeds=(0,),
        guidance_scales=(0.0, 0.5, 1.0, 2.0),
        num_inference_steps=(10,),
        schedulers=("ddim",),
        sizes=((64, 64),),
    )
    chosen = points(axes, FAMILY)
    assert chosen.guidance_scale.tolist() == [1.0, 2.0]
    assert chosen.evaluations.tolist() == [10, 20]
    (table,) = plan_batch(numbered([{"prompt": "a", "negative_prompt": "b"}]), space(axes), Selection(), NOTHING)
    assert table["negative_prompt"].to_pylist() == [None, "b"]


def test_small_jobs_are_shared_out() -> None:
    counted = count(lambda: iter([numbered([{"prompt": "a"}] * 3)]), _axes_of(64), FAMILY)
    assert len(counted.repeated) == 2
    size = shard_size(counted.amount.times(100), workers=2, slots=8)
    assert size.min_images == 32
    assert size.megapixel_evaluations == pytest.approx(counted.amount.times(100).megapixel_evaluations / 8)


def _axes_of(seeds: int) -> Axes:
    return Axes(
        seeds=tuple(range(seeds)),
        guidance_scales=(4.0,),
        num_inference_steps=(10,),
        schedulers=("ddim",),
        sizes=((64, 64),),
    )
