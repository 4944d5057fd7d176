"""Which tasks of a plan a launch is about: all of them, the first N, or a spread sample; never one twice."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field, replace

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.model.family import Family
from pipeline.planning.grids import Axes, grids_of
from pipeline.planning.pieces import Piece, pieces
from pipeline.planning.rows import Numbered, Rows, Tasks, among, keep_rows, no_rows, no_tasks


@dataclass(frozen=True, slots=True, kw_only=True)
class Selection:
    """What is left of a manifest's tasks."""

    skipped: Rows = field(default_factory=no_rows)
    """Rows that are not planned, sorted: they cannot be used, or ask only for pictures of earlier rows."""
    repeats: Tasks = field(default_factory=no_tasks)
    """Tasks of other rows that an earlier row has as well."""
    picks: Tasks | None = None
    """Only these, and none of them is skipped or a repeat; None means all."""

    def rows(self, global_rows: Rows) -> NDArray[np.bool_]:
        """Which of these rows may have selected tasks."""
        wanted = ~among(global_rows, self.skipped)
        return wanted if self.picks is None else wanted & among(global_rows, self.picks[:, 0])

    def tasks(self, piece: Piece) -> NDArray[np.bool_]:
        """Which tasks of a piece are selected, all of whose rows may have some."""
        wanted = np.full(len(piece), self.picks is None)
        if self.picks is not None:
            wanted[piece.places(self.picks)] = True
        wanted[piece.places(self.repeats)] = False
        return wanted

    def repeats_of(self, global_rows: Rows) -> NDArray[np.int64]:
        """How many tasks of each row are repeats."""
        rows = self.repeats[:, 0]
        return np.searchsorted(rows, global_rows, side="right") - np.searchsorted(rows, global_rows)

    def number_of(self, row: int, ordinal: int) -> int:
        """Which point the ``ordinal``-th of a row's tasks that are no repeats is."""
        start, stop = np.searchsorted(self.repeats[:, 0], [row, row + 1])
        for repeated in self.repeats[start:stop, 1].tolist():
            ordinal += repeated <= ordinal
        return ordinal


def check_choice(limit: int | None, sample: int | None) -> None:
    """``InputError`` for both: which images they would mean together, nobody can know."""
    if limit is not None and sample is not None:
        raise InputError("--limit and --sample exclude each other", allowed="one of them")


def selected_pieces(
    batches: Iterable[Numbered], axes: Axes, family: Family, selection: Selection
) -> Iterator[tuple[Piece, NDArray[np.bool_]]]:
    """All tasks of the rows that may have selected ones, in order, and which of them are selected."""
    for numbered in batches:
        for piece in pieces(keep_rows(numbered, selection.rows(numbered[1])), axes, family):
            yield piece, selection.tasks(piece)


def first_tasks(batches: Iterable[Numbered], axes: Axes, family: Family, every: Selection, limit: int) -> Selection:
    """The first ``limit`` tasks of ``every`` in manifest order; reads no further than needed."""
    found, missing = [no_tasks()], limit
    for piece, wanted in selected_pieces(batches, axes, family, every):
        found.append(piece.tasks(wanted)[:missing])
        missing -= len(found[-1])
        if not missing:
            break
    return replace(every, picks=np.concatenate(found))


def sample_rows(row_count: int, points_per_row: int, every: Selection, size: int, seed: int = 0) -> Selection:
    """``size`` tasks spread evenly over the rows, and over every point in turn, where all rows have as many points.

    ``row_count`` are all rows of the manifest; ``every`` has no repeats. The same arguments give the same sample.
    """
    usable = row_count - len(every.skipped)
    size = min(size, usable * points_per_row)
    random = np.random.default_rng(seed)
    order = random.permutation(points_per_row)
    if size <= usable:
        ordinals = _spread(usable, size, random)
        chosen = order[np.arange(size) % max(1, points_per_row)]
    else:
        # Whole rounds over all rows; each round moves every row on by one point, so no pair comes twice.
        rounds, ordinals = np.divmod(np.arange(size), usable)
        chosen = order[(ordinals + rounds) % points_per_row]
    # The o-th usable row lies as many rows further on as unusable ones come before it.
    rows = ordinals + np.searchsorted(every.skipped - np.arange(len(every.skipped)), ordinals, side="right")
    return replace(every, picks=_sorted(rows, chosen))


def sample_tasks(
    batches: Iterable[Numbered], axes: Axes, family: Family, every: Selection, total: int, size: int, seed: int = 0
) -> Selection:
    """``size`` of the ``total`` tasks of ``every``, spread evenly over them in manifest order."""
    ordinals = _spread(total, min(size, total), np.random.default_rng(seed))
    found, done = [no_tasks()], 0
    for numbered in batches:
        batch, global_rows = keep_rows(numbered, every.rows(numbered[1]))
        grids = grids_of(batch, axes, family)
        open_ = grids.counts()[grids.of_row] - every.repeats_of(global_rows)
        ends = done + np.cumsum(open_)
        stop = int(ends[-1]) if len(ends) else done
        here = ordinals[slice(*np.searchsorted(ordinals, [done, stop]))]
        at = np.searchsorted(ends, here, side="right")
        pairs = zip(global_rows[at].tolist(), (here - (ends - open_)[at]).tolist(), strict=True)
        found.append(np.array([(row, every.number_of(row, n)) for row, n in pairs], np.int64).reshape(-1, 2))
        done = stop
    return replace(every, picks=np.concatenate(found))


def _spread(total: int, size: int, random: np.random.Generator) -> NDArray[np.int64]:
    """``size`` different numbers below ``total``, ascending: one from each of as many equal parts."""
    edges = np.arange(size + 1) * total // max(1, size)
    return random.integers(edges[:-1], edges[1:])


def _sorted(rows: Rows, numbers: NDArray[np.int64]) -> Tasks:
    return np.stack([rows, numbers], axis=1)[np.lexsort((numbers, rows))]
