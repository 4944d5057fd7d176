"""Which tasks a launch with a limit or a sample is about."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.planning.grids import Axes
from pipeline.planning.selection import Selection, first_tasks, sample_rows, sample_tasks
from tests.planning.plain import (
    FAMILY,
    Cells,
    axes_of,
    axes_strategy,
    batches,
    counted,
    distinct,
    once,
    planned_ids,
    rows_strategy,
)


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
    found = counted(rows, axes_of(1))
    assert found.points_per_row == 10
    ids = planned_ids(rows, axes_of(1), sample_rows(5, 10, Selection(), 20))
    assert len(set(ids)) == 20
    uneven = [*rows, {"prompt": "q"}]
    assert counted(uneven, axes_of(1)).points_per_row is None
