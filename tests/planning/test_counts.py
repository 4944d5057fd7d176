"""What a manifest amounts to, and the tasks that several of its rows ask for."""

from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.model.family import Family
from pipeline.planning import pieces, repeats
from pipeline.planning.amount import Amount
from pipeline.planning.grids import Axes
from pipeline.planning.tasks import planned_amount
from tests.planning.plain import (
    FAMILIES_DRAWN,
    NOTHING,
    Cells,
    Plain,
    axes_of,
    axes_strategy,
    batches,
    counted,
    distinct,
    once,
    planned,
    rows_strategy,
    single_strategy,
    space,
)


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
    axes = replace(axes_of(2), guidance_scales=(1.0, 4.0))
    rows: Cells = [{"prompt": "a", "negative_prompt": text} for text in ("x", "y", None, "x")]
    found = counted(rows, axes)
    assert found.amount.images == 2 + 2 * 3
    assert found.repeated.tolist() == [3]
    assert found.repeats.tolist() == [[1, 0], [1, 2], [2, 0], [2, 2]]
    assert found.compared


def test_very_long_manifests_are_not_compared(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.planning.count.MAX_ROWS_COMPARED", 4)
    found = counted([{"prompt": "a"}] * 5, axes_of(1))
    assert (found.amount.images, len(found.repeated), found.compared) == (5, 0, False)
