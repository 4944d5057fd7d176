"""What a plan amounts to, counted in one pass over the manifest; ids are made only of prompts that occur twice."""

from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np

from pipeline.model.family import Family
from pipeline.planning.amount import Amount
from pipeline.planning.effects import Cut, Effects, effects_of
from pipeline.planning.grids import Axes, amount_of_rows, grids_of, present_overrides
from pipeline.planning.repeats import Hashes, Repeats, find_repeats, prompt_hashes
from pipeline.planning.rows import Numbered, Rows, Tasks

MAX_ROWS_COMPARED = 50_000_000
"""Repeats are looked for up to here; a row costs 8 bytes, twice that for a moment."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """What a manifest amounts to."""

    rows: int
    """Usable rows, repeated ones included."""
    amount: Amount
    """Every picture once."""
    requested: int
    """Images that rows and sweep points ask for, those of earlier rows again; as many as there are requests."""
    effects: Effects
    """Counts of requests that have no effect."""
    points_per_row: int | None
    """None where rows have different numbers."""
    repeated: Rows
    """Rows that ask only for pictures of earlier rows, sorted."""
    repeats: Tasks
    """Of the other rows, the tasks that an earlier row has as well."""
    compared: bool
    """False when the manifest was too long to look for repeats."""
    overrides: tuple[str, ...]
    """Columns that replace an axis somewhere."""
    sizes: tuple[tuple[int, int], ...]
    """(width, height) in px of the pictures, those of the sweep included; the largest first."""


def count(read: Callable[[], Iterable[Numbered]], axes: Axes, family: Family, cut: Cut = lambda _: None) -> Count:
    """Count the tasks of batches of prompt rows; ``read`` starts a pass over them and may be called several times."""
    rows, total, effects = 0, Amount(), Effects()
    hashes: list[Hashes] = []
    points_per_row: set[int] = set()
    overrides: dict[str, None] = {}
    sizes = set(axes.sizes)
    for batch, _ in read():
        grids = grids_of(batch, axes, family)
        overrides.update(dict.fromkeys(present_overrides(batch)))
        points_per_row.update(np.unique(grids.counts()[grids.of_row]).tolist())
        sizes.update((int(width), int(height)) for width, height in np.unique(grids.sizes.values, axis=0))
        total += amount_of_rows(grids)
        effects += effects_of(batch, grids, axes, cut)
        rows += batch.num_rows
        if rows <= MAX_ROWS_COMPARED:
            hashes.append(prompt_hashes(batch))
        else:
            hashes.clear()
    found = Repeats()
    if hashes:
        joined = np.concatenate(hashes)
        hashes.clear()
        found = find_repeats(read, joined, max(points_per_row), axes, family)
    return Count(
        rows=rows,
        amount=total + found.amount.times(-1),
        requested=total.images,
        effects=effects,
        points_per_row=points_per_row.pop() if len(points_per_row) == 1 else None,
        repeated=found.rows,
        repeats=found.tasks,
        compared=rows <= MAX_ROWS_COMPARED,
        overrides=tuple(overrides),
        sizes=tuple(sorted(sizes, key=lambda size: (-size[0] * size[1], size))),
    )
