"""Prompt rows whose cells are fine one by one, but not together with each other or with the sweep."""

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.model.family import Family
from pipeline.planning.grids import Axes, grids_of, present_overrides, scheduler_steps
from pipeline.schedulers import allowed_steps, unusable_setting

MAX_POINTS = 1_000_000
"""Per prompt row: more of one prompt is a slip of the pen, and a row's points are held in memory together."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Refusal:
    """A row that cannot be planned."""

    row: int
    """In the batch."""
    column: str
    """The cell to mend, by our name of the batch column."""
    value: str
    reason: str
    allowed: str


def refusals(batch: pa.Table, axes: Axes, family: Family, scheduler_config: Mapping[str, object]) -> list[Refusal]:
    """The rows of a manifest batch that cannot be planned, in order; the sweep itself can."""
    if not present_overrides(batch):
        return []
    grids = grids_of(batch, axes, family)
    counts = grids.counts()[grids.of_row]
    found = {row: _too_many(row, int(counts[row])) for row in np.flatnonzero(counts > MAX_POINTS).tolist()}
    of_grid, pairs = scheduler_steps(grids)
    of_row = of_grid[grids.of_row]
    found |= _unusable(of_row, pairs, scheduler_config)
    refused = {pair: unfit for pair, both in enumerate(pairs) if (unfit := unfit_steps(*both, scheduler_config))}
    for row in np.flatnonzero(np.isin(of_row, list(refused))).tolist():
        own = batch["num_inference_steps"][row].is_valid
        scheduler, steps, allowed = refused[int(of_row[row])]
        found[row] = Refusal(
            row=row,
            column="num_inference_steps" if own else "scheduler",
            value=str(steps) if own else repr(scheduler),
            reason=f"the scheduler {scheduler} cannot take {steps} steps",
            allowed=f"{allowed.start} to {allowed.stop - 1} steps",
        )
    return [found[row] for row in sorted(found)]


def _unusable(
    of_row: NDArray[np.int64], pairs: Sequence[tuple[Sequence[str], Sequence[int]]], config: Mapping[str, object]
) -> dict[int, Refusal]:
    """Rows whose own scheduler cannot work with the model's scheduler configuration; that of the sweep can."""
    found: dict[int, Refusal] = {}
    for pair, (schedulers, _) in enumerate(pairs):
        for scheduler in schedulers:
            setting = unusable_setting(scheduler, config)
            if setting is not None:
                refusal = {
                    "column": "scheduler",
                    "value": repr(scheduler),
                    "reason": f"the scheduler cannot work with the model's {setting.key} of {setting.value!r}",
                    "allowed": setting.allowed,
                }
                found |= {row: Refusal(row=row, **refusal) for row in np.flatnonzero(of_row == pair).tolist()}
    return found


def unfit_steps(
    schedulers: Sequence[str], step_counts: Sequence[int], scheduler_config: Mapping[str, object]
) -> tuple[str, int, range] | None:
    """The first scheduler and step count that do not go together, and what the scheduler takes."""
    return next(_unfit(schedulers, step_counts, scheduler_config), None)


def _unfit(
    schedulers: Sequence[str], step_counts: Sequence[int], scheduler_config: Mapping[str, object]
) -> Iterator[tuple[str, int, range]]:
    for scheduler in schedulers:
        allowed = allowed_steps(scheduler, scheduler_config)
        yield from ((scheduler, steps, allowed) for steps in step_counts if steps not in allowed)


def _too_many(row: int, points: int) -> Refusal:
    # A row's other cells hold one value each, so they only make it smaller than the sweep.
    return Refusal(
        row=row,
        column="seeds",
        value="(not shown)",
        reason=f"{points:,} sweep points are too many for one prompt row",
        allowed=f"at most {MAX_POINTS:,}: seeds × guidance scales × step counts × schedulers × sizes",
    )
