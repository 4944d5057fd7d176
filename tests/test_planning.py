"""Planning against the plainest way to say the same: loops over rows and points, one id at a time."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from datetime import date
from itertools import product
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from jobs.plan import Figures, describe
from pipeline.config import Job, load_job
from pipeline.errors import JobFileError, ManifestError, RunMismatchError
from pipeline.identity import IdSet, RunConstants, ids_from_bytes, pack_point, part_id, task_id
from pipeline.manifest.columns import BATCH_SCHEMA
from pipeline.model.family import FAMILIES, Family, Guidance
from pipeline.output.run import NumericsProfile, Run
from pipeline.planning import pieces, repeats
from pipeline.planning.amount import Amount
from pipeline.planning.count import Count, count
from pipeline.planning.grids import Axes, grids_of, number_of_points
from pipeline.planning.ids import pack_points
from pipeline.planning.limits import MAX_POINTS, refusals
from pipeline.planning.points import points
from pipeline.planning.rows import Numbered
from pipeline.planning.selection import Selection, first_tasks, sample_rows, sample_tasks
from pipeline.planning.shards import ShardSize, cut, shard_count, shard_size
from pipeline.planning.tasks import Space, plan_batch, planned_amount
from pipeline.prepare import Prepared, check_run, numbered_batches, prepare, select
from pipeline.schedulers import evaluations

Cells = list[dict[str, Any]]

FAMILY = FAMILIES["StableDiffusionPipeline"]
FAMILIES_DRAWN = [
    FAMILY,
    FAMILIES["FluxPipeline"],
    replace(FAMILIES["FluxPipeline"], guidance=Guidance.NONE),
    FAMILIES["SanaPipeline"],
]
DIGEST = RunConstants(model_fingerprint="0" * 32, dtype="float32", scheduler_config={}).digest()
NOTHING = IdSet()

axes_strategy = st.builds(
    Axes,
    seeds=st.lists(st.integers(0, 3) | st.integers(0, 2**32 - 1), min_size=1, max_size=3).map(tuple),
    guidance_scales=st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.5]), min_size=1, max_size=4).map(tuple),
    num_inference_steps=st.lists(st.integers(1, 4) | st.integers(1, 60), min_size=1, max_size=2).map(tuple),
    schedulers=st.lists(st.sampled_from(["ddim", "heun", "euler:karras"]), min_size=1, max_size=2).map(tuple),
    sizes=st.lists(st.sampled_from([(64, 64), (128, 64)]), min_size=1, max_size=2).map(tuple),
)
row_strategy = st.fixed_dictionaries(
    {
        "prompt": st.sampled_from(["a", "a", "b", "ü", "a red circle"]),
        "negative_prompt": st.sampled_from([None, "blurry", "ugly"]),
        "seeds": st.none() | st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True),
        "guidance_scale": st.none() | st.sampled_from([0.0, 1.0, 2.0, 3.0]),
        "num_inference_steps": st.none() | st.integers(1, 4),
        "scheduler": st.none() | st.sampled_from(["euler", "pndm"]),
        "width": st.none() | st.just(64),
    }
)
"""Few values of each, so that rows overlap in some points and not in others."""
rows_strategy = st.lists(row_strategy, min_size=1, max_size=8)
single_strategy = st.lists(
    st.fixed_dictionaries(
        {
            "prompt": st.sampled_from(["a", "b", "ü"]),
            "negative_prompt": st.sampled_from([None, "blurry"]),
            "seeds": st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=1),
            "guidance_scale": st.floats(0, 1000),
            "num_inference_steps": st.integers(1, 1000),
            "scheduler": st.sampled_from(["euler", "dpmsolver++:karras", "heun"]),
            "width": st.sampled_from([64, 8192]),
        }
    ),
    min_size=1,
    max_size=8,
)
"""The shape of a log of pictures: every row is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    """One task as the loops find it."""

    row: int
    task_id: str
    work: tuple[int, int, int]
    """Pixels, steps, evaluations."""


def numbered(rows: Cells) -> Numbered:
    cells = [{**row, "height": row.get("width"), "manifest_file": "m", "manifest_row": n} for n, row in enumerate(rows)]
    return pa.Table.from_pylist(cells, schema=BATCH_SCHEMA), np.arange(len(rows))


def plain_tasks(rows: Cells, axes: Axes, family: Family = FAMILY) -> Iterator[Plain]:
    """Every distinct picture of each row, as anyone would write it; pictures of several rows come again."""
    for number, row in enumerate(rows):
        sizes = [(row["width"], row["width"])] if row.get("width") else axes.sizes
        schedulers = [row["scheduler"]] if row.get("scheduler") else axes.schedulers
        seeds = row.get("seeds") or axes.seeds
        scales = axes.guidance_scales if row.get("guidance_scale") is None else [row["guidance_scale"]]
        counts = [row["num_inference_steps"]] if row.get("num_inference_steps") else axes.num_inference_steps
        seen = set()
        for (width, height), scheduler, seed, scale, steps in product(sizes, schedulers, seeds, scales, counts):
            effective = family.effective_guidance(scale)
            negative = row.get("negative_prompt") if family.uses_negative_prompt(effective) else None
            point = pack_point(
                seed=seed,
                guidance_scale=effective,
                num_inference_steps=steps,
                scheduler=scheduler,
                width=width,
                height=height,
            )
            calls = evaluations(scheduler, steps) * family.rows(effective)
            found = task_id(DIGEST, row["prompt"], negative, point)
            if found not in seen:
                yield Plain(row=number, task_id=found, work=(width * height, steps, calls))
            seen.add(found)


def plain_ids(rows: Cells, axes: Axes, family: Family = FAMILY) -> list[str]:
    """With those of several rows as often."""
    return [task.task_id for task in plain_tasks(rows, axes, family)]


def distinct(rows: Cells, axes: Axes, family: Family = FAMILY) -> list[Plain]:
    """Each picture once, in the first row that asks for it."""
    first: dict[str, Plain] = {}
    for task in plain_tasks(rows, axes, family):
        first.setdefault(task.task_id, task)
    return list(first.values())


def space(axes: Axes, family: Family = FAMILY) -> Space:
    return Space(axes=axes, family=family, run_digest=DIGEST)


def counted(rows: Cells, axes: Axes, family: Family = FAMILY) -> Count:
    """In batches of three rows."""
    return count(lambda: batches(rows), axes, family)


def batches(rows: Cells) -> Iterator[Numbered]:
    table, numbers = numbered(rows)
    for start in range(0, len(rows), 3):
        yield table.slice(start, 3), numbers[start : start + 3]


def once(rows: Cells, axes: Axes, family: Family = FAMILY) -> Selection:
    """Everything, without repeats."""
    found = counted(rows, axes, family)
    return Selection(skipped=found.repeated, repeats=found.repeats)


def planned(
    rows: Cells,
    axes: Axes,
    selection: Selection | None = None,
    committed: IdSet = NOTHING,
    family: Family = FAMILY,
) -> list[tuple[int, str]]:
    """(row, id) of what is planned, in order."""
    selection = selection or Selection()
    tables = [t for batch in batches(rows) for t in plan_batch(batch, space(axes, family), selection, committed)]
    numbers = [row for table in tables for row in table["manifest_row"].to_pylist()]
    ids = [item.hex() for table in tables for item in table["task_id"].to_pylist()]
    return list(zip(numbers, ids, strict=True))


def planned_ids(
    rows: Cells, axes: Axes, selection: Selection | None = None, committed: IdSet = NOTHING, family: Family = FAMILY
) -> list[str]:
    return [item for _, item in planned(rows, axes, selection, committed, family)]


def id_set(ids: set[str]) -> IdSet:
    return IdSet(ids_from_bytes(bytes.fromhex("".join(ids))))


@given(rows_strategy | single_strategy, axes_strategy, st.sampled_from(FAMILIES_DRAWN))
def test_ids_are_those_of_the_plain_loops(rows: Cells, axes: Axes, family: Family) -> None:
    assert planned_ids(rows, axes, family=family) == plain_ids(rows, axes, family)


@given(rows_strategy | single_strategy, axes_strategy, st.sampled_from(FAMILIES_DRAWN))
def test_every_picture_is_planned_once_by_the_first_row_that_asks(rows: Cells, axes: Axes, family: Family) -> None:
    expected = [(task.row, task.task_id) for task in distinct(rows, axes, family)]
    assert planned(rows, axes, once(rows, axes, family), family=family) == expected


@given(rows_strategy | single_strategy, axes_strategy, st.sampled_from(FAMILIES_DRAWN))
def test_counting_agrees_with_making(rows: Cells, axes: Axes, family: Family) -> None:
    whole, missing = planned_amount(batches(rows), space(axes, family), once(rows, axes, family), NOTHING)
    assert whole == missing
    expected = _amount(distinct(rows, axes, family))
    for amount in (whole, counted(rows, axes, family).amount):
        assert (amount.images, amount.evaluations) == (expected.images, expected.evaluations)
        for name in ("megapixels", "megapixel_steps", "megapixel_evaluations"):
            assert getattr(amount, name) == pytest.approx(getattr(expected, name))


def _amount(tasks: list[Plain]) -> Amount:
    pixels, steps, calls = zip(*(task.work for task in tasks), strict=True)
    return Amount(
        images=len(tasks),
        evaluations=sum(calls),
        megapixels=sum(pixels) / 1e6,
        megapixel_steps=sum(p * n for p, n in zip(pixels, steps, strict=True)) / 1e6,
        megapixel_evaluations=sum(p * n for p, n in zip(pixels, calls, strict=True)) / 1e6,
    )


@given(rows_strategy, axes_strategy)
def test_repeats_are_the_same_however_little_is_held(rows: Cells, axes: Axes) -> None:
    found = counted(rows, axes)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(repeats, "HELD_IDS", 2)
        patch.setattr(pieces, "CHUNK_TASKS", 5)
        in_parts = counted(rows, axes)
        expected = [(task.row, task.task_id) for task in distinct(rows, axes)]
        assert planned(rows, axes, once(rows, axes)) == expected
    assert in_parts.repeated.tolist() == found.repeated.tolist()
    assert in_parts.repeats.tolist() == found.repeats.tolist()
    assert in_parts.amount.images == found.amount.images


def test_repeats_of_whole_rows_and_of_some_points() -> None:
    axes = replace(_axes_of(2), guidance_scales=(1.0, 4.0))
    rows: Cells = [{"prompt": "a", "negative_prompt": text} for text in ("x", "y", None, "x")]
    found = counted(rows, axes)
    assert found.amount.images == 2 + 2 * 3
    assert found.repeated.tolist() == [3]
    assert found.repeats.tolist() == [[1, 0], [1, 2], [2, 0], [2, 2]]
    assert found.compared


def test_very_long_manifests_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.planning.count.MAX_ROWS_COMPARED", 4)
    found = counted([{"prompt": "a"}] * 5, _axes_of(1))
    assert (found.amount.images, len(found.repeated), found.compared) == (5, 0, False)


@given(rows_strategy, axes_strategy, st.data())
def test_resume_plans_exactly_what_is_missing(rows: Cells, axes: Axes, data: st.DataObject) -> None:
    every = planned_ids(rows, axes)
    done = data.draw(st.sets(st.sampled_from(every)))
    assert planned_ids(rows, axes, committed=id_set(done)) == [item for item in every if item not in done]


@given(rows_strategy, axes_strategy, st.integers(1, 40))
def test_limit_is_the_first_tasks(rows: Cells, axes: Axes, limit: int) -> None:
    selection = first_tasks(batches(rows), axes, FAMILY, once(rows, axes), limit)
    assert planned_ids(rows, axes, selection) == [task.task_id for task in distinct(rows, axes)][:limit]


def test_sample_is_spread_over_rows_and_points() -> None:
    every = Selection(skipped=np.array([0, 7, 50]))
    picks = sample_rows(100, 6, every, 24).picks
    assert picks is not None
    assert len(picks) == 24
    assert not np.isin(picks[:, 0], every.skipped).any()
    assert (np.diff(picks[:, 0]) < 12).all()
    assert np.bincount(picks[:, 1]).tolist() == [4] * 6


@given(st.integers(1, 40), st.integers(1, 7), st.integers(1, 400), st.integers(0, 9))
def test_sample_of_rows_never_picks_twice(rows: int, per_row: int, size: int, seed: int) -> None:
    every = Selection(skipped=np.arange(0, rows - 1, 3))
    picks = sample_rows(rows, per_row, every, size, seed).picks
    assert picks is not None
    assert len(np.unique(picks, axis=0)) == len(picks) == min(size, (rows - len(every.skipped)) * per_row)
    assert picks[:, 1].max() < per_row


@given(rows_strategy, axes_strategy, st.integers(1, 60), st.integers(0, 9))
def test_sample_of_uneven_rows_is_exact(rows: Cells, axes: Axes, size: int, seed: int) -> None:
    every, total = once(rows, axes), len(distinct(rows, axes))
    first, again = (
        sample_tasks(batches(rows), axes, FAMILY, every, total, size, seed=seed),
        sample_tasks(batches(rows), axes, FAMILY, every, total, size, seed=seed),
    )
    ids = planned_ids(rows, axes, first)
    assert ids == planned_ids(rows, axes, again)
    assert len(ids) == len(set(ids)) == min(size, total)
    order = [task.task_id for task in distinct(rows, axes)]
    places = np.array([order.index(item) for item in ids])
    parts = np.arange(len(ids) + 1) * total // len(ids)
    assert ((parts[:-1] <= places) & (places < parts[1:])).all()


def test_sample_counts_the_points_rows_really_have() -> None:
    rows: Cells = [{"prompt": f"p{n}", "seeds": list(range(10))} for n in range(5)]
    found = counted(rows, _axes_of(1))
    assert found.points_per_row == 10
    ids = planned_ids(rows, _axes_of(1), sample_rows(5, 10, Selection(), 20))
    assert len(set(ids)) == 20
    uneven = [*rows, {"prompt": "q"}]
    assert counted(uneven, _axes_of(1)).points_per_row is None


@settings(max_examples=50)
@given(rows_strategy, axes_strategy, st.integers(1, 9), st.integers(0, 9))
def test_shards_lose_nothing_and_keep_one_size(rows: Cells, axes: Axes, most: int, work: int) -> None:
    size = ShardSize(megapixel_evaluations=work / 10, min_images=min(2, most), max_images=most)
    shards = list(cut(plan_batch(numbered(rows), space(axes), once(rows, axes), NOTHING), size))
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
        for shard in cut(plan_batch(numbered(rows), space(axes), Selection(), index), size):
            tasks = shard["task_id"].to_pylist()
            assert names.setdefault(part_id(tasks), tasks) == tasks


def test_guidance_of_at_most_one_is_one_image_without_negative_prompt() -> None:
    axes = replace(_axes_of(1), guidance_scales=(0.0, 0.5, 1.0, 2.0))
    batch = numbered([{"prompt": "a", "negative_prompt": "b"}])
    chosen = points(grids_of(batch[0], axes, FAMILY), np.array([0]))
    assert number_of_points(axes, FAMILY) == len(chosen)
    assert chosen.guidance_scale.tolist() == [1.0, 2.0]
    assert chosen.evaluations.tolist() == [10, 20]
    (table,) = plan_batch(batch, space(axes), Selection(), NOTHING)
    assert table["negative_prompt"].to_pylist() == [None, "b"]


def test_packed_points_are_those_of_identity() -> None:
    axes = Axes(
        seeds=(0, 2**32 - 1),
        guidance_scales=(0.0, 7.5),
        num_inference_steps=(1, 1000),
        schedulers=("ddim", "dpmsolver++:karras"),
        sizes=((64, 128), (8192, 8)),
    )
    for family in FAMILIES_DRAWN:
        chosen = points(grids_of(numbered([])[0], axes, family), np.array([0]))
        guidances = [None if np.isnan(scale) else scale for scale in chosen.guidance_scale.tolist()]
        expected = [
            pack_point(
                seed=seed, guidance_scale=scale, num_inference_steps=steps, scheduler=name, width=width, height=height
            )
            for seed, scale, steps, name, width, height in zip(
                chosen.seed.tolist(),
                guidances,
                chosen.num_inference_steps.tolist(),
                [chosen.scheduler_names[at] for at in chosen.scheduler],
                chosen.width.tolist(),
                chosen.height.tolist(),
                strict=True,
            )
        ]
        assert pack_points(chosen) == expected


def test_rows_that_do_not_go_with_the_sweep_are_refused() -> None:
    axes = replace(_axes_of(1), num_inference_steps=(4, 60), guidance_scales=tuple(map(float, range(2, 52))))
    rows: Cells = [
        {"prompt": "a"},
        {"prompt": "b", "scheduler": "lcm"},
        {"prompt": "c", "scheduler": "lcm", "num_inference_steps": 80},
        {"prompt": "d", "scheduler": "lcm", "num_inference_steps": 8},
        {"prompt": "e", "seeds": list(range(MAX_POINTS // 100 + 1))},
        {"prompt": "f", "seeds": list(range(MAX_POINTS // 100))},
    ]
    found = refusals(numbered(rows)[0], axes, FAMILY, {})
    assert [(refusal.row, refusal.column) for refusal in found] == [
        (1, "scheduler"),
        (2, "num_inference_steps"),
        (4, "seeds"),
    ]
    assert found[0].reason == "the scheduler lcm cannot take 60 steps"
    assert found[0].allowed == "1 to 50 steps"
    assert found[2].reason == "1,000,100 sweep points are too many for one prompt row"


def test_small_jobs_are_shared_out() -> None:
    found = counted([{"prompt": "a"}] * 3, _axes_of(64))
    assert found.repeated.tolist() == [1, 2]
    work = found.amount.times(100)
    size = shard_size(work, workers=2, slots=8)
    assert size.min_images == 32
    assert size.megapixel_evaluations == pytest.approx(work.megapixel_evaluations / 8)
    assert shard_count(work, size) == 8
    assert shard_count(work, shard_size(work, 2, 8, images=1000)) == 7


def test_a_job_knows_what_it_cannot_render(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    manifest = _manifest(tmp_path, prompt=["a", "b", "c"], scheduler=["lcm", None, "euler"], steps=[60, 60, 10])
    with pytest.raises(ManifestError, match="row 0, column steps: the scheduler lcm cannot take 60 steps"):
        prepare(manifest)
    prepared = prepare(manifest, skip_bad_rows=True)
    assert prepared.rejected_rows.tolist() == [0]
    for chosen in (select(prepared, limit=None, sample=None), select(prepared, limit=5, sample=None)):
        tables = [
            t for b in numbered_batches(prepared.manifest) for t in plan_batch(b, _space(prepared), chosen, NOTHING)
        ]
        assert [row for table in tables for row in table["manifest_row"].to_pylist()] == [1, 2]
        assert prepared.count.amount.images == 2
    absurd = {"seeds": "0-99999", "guidance_scales": "1-50", "num_inference_steps": "1-20"}
    with pytest.raises(JobFileError, match="too many points"):
        prepare(_manifest(tmp_path, absurd, prompt=["a"]))
    monkeypatch.setattr("pipeline.schedulers.find_spec", lambda name: None)
    with pytest.raises(JobFileError, match="needs the package scipy"):
        prepare(_manifest(tmp_path, {"schedulers": "lms"}, prompt=["a"]))
    with pytest.raises(ManifestError, match="no such scheduler"):
        prepare(_manifest(tmp_path, prompt=["a"], scheduler=["lms"]))


def test_sample_of_a_job_counts_what_rows_have(tmp_path: Path) -> None:
    for lists in ([list(range(10))] * 5, [[1], list(range(30)), None, [2], [3]]):
        prepared = prepare(_manifest(tmp_path, prompt=list("abcde"), seeds=lists))
        selection = select(prepared, limit=None, sample=20)
        whole, _ = planned_amount(numbered_batches(prepared.manifest), _space(prepared), selection, NOTHING)
        assert whole.images == 20


def test_plan_refuses_the_run_that_render_refuses(tmp_path: Path) -> None:
    prepared = prepare(_manifest(tmp_path, prompt=["a"]))
    run = Run(
        model_id="shapes",
        model_revision=None,
        constants=prepared.constants("0" * 32, "float16"),
        numerics=NumericsProfile(rows=8, compiled=False, threads=1, device="cpu", versions={}),
        job={},
        created_at="",
        darkroom_version="",
    )
    check_run(run, prepared, "out")
    facts = describe(prepared, Figures(run=run, whole=prepared.count.amount, to_render=prepared.count.amount))
    assert (facts["dtype"], facts["images_committed"], facts["raw_bytes"]) == ("float16", 0, 96 * 96 * 3)
    model = prepared.job.model.model_copy(update={"dtype": "float32"})
    float32 = prepared.job.model_copy(update={"model": model})
    with pytest.raises(RunMismatchError, match="dtype: the run has 'float16', this job 'float32'"):
        check_run(run, replace(prepared, job=float32), "out")
    with pytest.raises(RunMismatchError, match="another model"):
        check_run(replace(run, model_id="other"), prepared, "out")


def _manifest(folder: Path, sweep: dict[str, str] | None = None, **columns: list[Any]) -> Job:
    pq.write_table(pa.table(columns), folder / "m.parquet")
    keys = [(f"sweep.{name}", value) for name, value in (sweep or {}).items()]
    return load_job(None, [("manifest", str(folder / "m.parquet")), *keys], date(2026, 1, 1))


def _space(prepared: Prepared) -> Space:
    return Space(axes=prepared.axes, family=prepared.model.family, run_digest=DIGEST)


def _axes_of(seeds: int) -> Axes:
    return Axes(
        seeds=tuple(range(seeds)),
        guidance_scales=(4.0,),
        num_inference_steps=(10,),
        schedulers=("ddim",),
        sizes=((64, 64),),
    )
