"""Which tasks of a plan a launch is about: all of them, the first N, or a spread sample; never a repeated row."""

from collections.abc import Iterable
from dataclasses import dataclass, field

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.model.family import Family
from pipeline.planning.overrides import row_axes
from pipeline.planning.points import Axes, points

Rows = NDArray[np.int64]
"""Rows counted over the whole manifest, from 0, rejected rows included."""

Numbered = tuple[pa.Table, Rows]
"""A batch of prompt rows and the number of each of its rows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """``repeated`` rows ask for an earlier row's pictures; ``picks`` (n, 2) are (row, point) pairs, None means all.

    Picks are sorted by row; a point is taken modulo the row's number of points.
    """

    repeated: Rows = field(default_factory=lambda: np.empty(0, np.int64))
    picks: NDArray[np.int64] | None = None

    def rows(self, global_rows: Rows) -> NDArray[np.bool_]:
        """Which of these rows have selected tasks."""
        wanted = ~np.isin(global_rows, self.repeated)
        return wanted if self.picks is None else wanted & np.isin(global_rows, self.picks[:, 0])

    def points(self, global_row: int, count: int) -> list[int] | None:
        """The selected points of a row that has ``count`` of them, ascending; None for all."""
        if self.picks is None:
            return None
        start, stop = np.searchsorted(self.picks[:, 0], [global_row, global_row + 1])
        return sorted({int(point) % count for point in self.picks[start:stop, 1]})


def first_tasks(batches: Iterable[Numbered], axes: Axes, family: Family, repeated: Rows, limit: int) -> Selection:
    """The first ``limit`` tasks in manifest order; reads no further than needed."""
    picks: list[tuple[int, int]] = []
    for batch, global_rows in batches:
        fresh = ~np.isin(global_rows, repeated)
        for row, axes_of_row, wanted in zip(global_rows, row_axes(batch, axes), fresh, strict=True):
            if wanted:
                count = len(points(axes_of_row, family))
                picks += [(int(row), point) for point in range(min(count, limit - len(picks)))]
            if len(picks) == limit:
                return Selection(repeated=repeated, picks=_pairs(picks))
    return Selection(repeated=repeated, picks=_pairs(picks))


def sample_tasks(
    row_count: int, skipped: Rows, point_count: int, size: int, repeated: Rows, seed: int = 0
) -> Selection:
    """``size`` tasks spread evenly over the usable rows, and over every sweep point in turn.

    ``skipped`` are the rows that cannot be used (rejected or repeated), sorted; ``point_count`` is the sweep's number
    of points. The same arguments give the same sample.
    """
    usable = row_count - len(skipped)
    size = min(size, usable * point_count)
    random = np.random.default_rng(seed)
    order = random.permutation(point_count)
    if size <= usable:
        edges = np.linspace(0, usable, size + 1)
        ordinals = (edges[:-1] + random.random(size) * np.diff(edges)).astype(np.int64)
        chosen = order[np.arange(size) % max(1, point_count)]
    else:
        # Whole rounds over all rows; each round moves every row on by one point, so no pair comes twice.
        rounds, ordinals = np.divmod(np.arange(size), usable)
        chosen = order[(ordinals + rounds) % point_count]
    # The o-th usable row lies as many rows further on as unusable ones come before it.
    rows = ordinals + np.searchsorted(skipped - np.arange(len(skipped)), ordinals, side="right")
    return Selection(repeated=repeated, picks=_pairs(list(zip(rows.tolist(), chosen.tolist(), strict=True))))


def _pairs(picks: list[tuple[int, int]]) -> NDArray[np.int64]:
    return np.array(sorted(picks), np.int64).reshape(-1, 2)
