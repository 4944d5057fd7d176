"""Planned tasks and their ids against the plain loops."""

from dataclasses import replace

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.identity import pack_point
from pipeline.model.family import Family
from pipeline.planning.grids import Axes, grids_of, number_of_points
from pipeline.planning.ids import pack_points
from pipeline.planning.limits import MAX_POINTS, refusals
from pipeline.planning.points import points
from pipeline.planning.selection import Selection
from pipeline.planning.tasks import plan_batch
from tests.planning.plain import (
    FAMILIES_DRAWN,
    FAMILY,
    NOTHING,
    Cells,
    axes_of,
    axes_strategy,
    distinct,
    id_set,
    numbered,
    once,
    plain_ids,
    planned,
    planned_ids,
    rows_strategy,
    single_strategy,
    space,
)


@given(rows_strategy | single_strategy, axes_strategy, st.sampled_from(FAMILIES_DRAWN))
def test_ids_are_those_of_the_plain_loops(rows: Cells, axes: Axes, family: Family) -> None:
    assert planned_ids(rows, axes, family=family) == plain_ids(rows, axes, family)


@given(rows_strategy | single_strategy, axes_strategy, st.sampled_from(FAMILIES_DRAWN))
def test_every_picture_is_planned_once_by_the_first_row_that_asks(rows: Cells, axes: Axes, family: Family) -> None:
    expected = [(task.row, task.task_id) for task in distinct(rows, axes, family)]
    assert planned(rows, axes, once(rows, axes, family), family=family) == expected


@given(rows_strategy, axes_strategy, st.data())
def test_resume_plans_exactly_what_is_missing(rows: Cells, axes: Axes, data: st.DataObject) -> None:
    every = planned_ids(rows, axes)
    done = data.draw(st.sets(st.sampled_from(every)))
    assert planned_ids(rows, axes, committed=id_set(done)) == [item for item in every if item not in done]


def test_guidance_of_at_most_one_is_one_image_without_negative_prompt() -> None:
    axes = replace(axes_of(1), guidance_scales=(0.0, 0.5, 1.0, 2.0))
    batch = numbered([{"prompt": "a", "negative_prompt": "b"}])
    chosen = points(grids_of(batch[0], axes, FAMILY), np.array([0]))
    assert number_of_points(axes, FAMILY) == len(chosen)
    assert chosen.guidance_scale.tolist() == [1.0, 2.0]
    assert chosen.evaluations.tolist() == [10, 20]
    (table,) = plan_batch(batch, space(axes), Selection(), NOTHING)
    assert table["negative_prompt"].to_pylist() == [None, "b"]


def test_packed_points_are_those_of_identity() -> None:
    axes = Axes(
        seeds=(0, 2**32 - 1, 2**64 - 1),
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
    axes = replace(axes_of(1), num_inference_steps=(4, 60), guidance_scales=tuple(map(float, range(2, 52))))
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
