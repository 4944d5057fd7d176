"""Manifest batches in pieces whose tasks fit into memory whatever the sweep's size."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.model.family import Family
from pipeline.planning.amount import Amount, amount_of
from pipeline.planning.grids import Axes, grids_of
from pipeline.planning.points import Points, points
from pipeline.planning.rows import Numbered, Rows, Tasks

CHUNK_TASKS = 100_000
"""Tasks made at a time, unless a single row has more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """Some rows of a manifest batch and all their tasks, row by row."""

    batch: pa.Table
    global_rows: Rows
    points: Points
    """Rows that replace no axis share theirs."""
    first_point: NDArray[np.int64]
    """Where in ``points`` those of each row begin."""
    counts: NDArray[np.int64]
    """The number of tasks of each row."""
    row: NDArray[np.int64]
    """The row in ``batch`` of each task."""
    number: NDArray[np.int64]
    """Which of its row's points each task is."""

    def __len__(self) -> int:
        return len(self.row)

    def tasks(self, mask: NDArray[np.bool_]) -> Tasks:
        """The tasks where ``mask``, as pairs."""
        return np.stack([self.global_rows[self.row[mask]], self.number[mask]], axis=1)

    def places(self, tasks: Tasks) -> NDArray[np.int64]:
        """Where those of the given tasks that are in this piece are in its columns."""
        start, stop = np.searchsorted(tasks[:, 0], [self.global_rows[0], self.global_rows[-1] + 1])
        rows, numbers = tasks[start:stop].T
        at = np.searchsorted(self.global_rows, rows)
        here = self.global_rows[at] == rows
        first = np.cumsum(self.counts) - self.counts
        places: NDArray[np.int64] = first[at[here]] + numbers[here]
        return places

    def at(self, kept: NDArray[np.int64]) -> NDArray[np.int64]:
        """Where in ``points`` the tasks numbered ``kept`` are."""
        return self.first_point[self.row[kept]] + self.number[kept]

    def amount(self, mask: NDArray[np.bool_]) -> Amount:
        """The work of the tasks where ``mask``."""
        at, of = self.at(np.flatnonzero(mask)), self.points
        return amount_of(of.evaluations[at], of.num_inference_steps[at], of.pixels()[at])


def pieces(numbered: Numbered, axes: Axes, family: Family) -> Iterator[Piece]:
    """All tasks of a manifest batch in order, about ``CHUNK_TASKS`` at a time; a single row is never cut."""
    batch, global_rows = numbered
    grids = grids_of(batch, axes, family)
    of_grid = grids.counts()
    counts = of_grid[grids.of_row]
    for start, stop in _bounded(counts):
        chosen, which = np.unique(grids.of_row[start:stop], return_inverse=True)
        here = counts[start:stop]
        row = np.repeat(np.arange(stop - start), here)
        yield Piece(
            batch=batch.slice(start, stop - start),
            global_rows=global_rows[start:stop],
            points=points(grids, chosen),
            first_point=(np.cumsum(of_grid[chosen]) - of_grid[chosen])[which],
            counts=here,
            row=row,
            number=np.arange(len(row)) - np.repeat(np.cumsum(here) - here, here),
        )


def _bounded(counts: NDArray[np.int64]) -> Iterator[tuple[int, int]]:
    """Ranges of rows, given the tasks of each."""
    ends = np.cumsum(counts)
    start = done = 0
    while start < len(counts):
        stop = max(start + 1, int(np.searchsorted(ends, done + CHUNK_TASKS, side="right")))
        yield start, stop
        start, done = stop, int(ends[stop - 1])
