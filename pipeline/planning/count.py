"""What a plan amounts to, counted in one pass over the manifest without making a single id."""

from collections import Counter
from collections.abc import Callable, Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa

from pipeline.identity import Ids, ids_from_bytes, task_prefix
from pipeline.model.family import Family
from pipeline.planning.overrides import present_overrides, row_axes
from pipeline.planning.points import Axes, Points, points
from pipeline.planning.selection import Numbered, Rows

MAX_ROWS_COMPARED = 10_000_000
"""Repeated rows are looked for up to here; a row costs 16 bytes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """An amount of work. Amounts add up."""

    images: int = 0
    evaluations: int = 0
    """Rows through the denoiser."""
    megapixel_evaluations: float = 0.0
    megapixel_steps: float = 0.0
    """Steps times picture size, the unit that hosted services charge by."""

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(
            images=self.images + other.images,
            evaluations=self.evaluations + other.evaluations,
            megapixel_evaluations=self.megapixel_evaluations + other.megapixel_evaluations,
            megapixel_steps=self.megapixel_steps + other.megapixel_steps,
        )

    def times(self, rows: int) -> "Amount":
        return Amount(
            images=self.images * rows,
            evaluations=self.evaluations * rows,
            megapixel_evaluations=self.megapixel_evaluations * rows,
            megapixel_steps=self.megapixel_steps * rows,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Count:
    """One pass over a manifest."""

    rows: int
    """Usable rows, repeated ones included."""
    amount: Amount
    """Of all distinct rows."""
    repeated: Rows
    """Rows that ask for exactly the pictures of an earlier row, sorted."""
    compared: bool
    """False when the manifest was too long to look for repeated rows."""
    overrides: tuple[str, ...]
    """Columns that replace an axis somewhere."""


def amount_of(chosen: Points) -> Amount:
    """The work of one row with these points."""
    megapixels = chosen.width.astype(np.float64) * chosen.height / 1e6
    return Amount(
        images=len(chosen),
        evaluations=int(chosen.evaluations.sum()),
        megapixel_evaluations=float((chosen.evaluations * megapixels).sum()),
        megapixel_steps=float((chosen.num_inference_steps * megapixels).sum()),
    )


def count(read: Callable[[], Iterable[Numbered]], axes: Axes, family: Family) -> Count:
    """Count the tasks of batches of prompt rows; ``read`` starts a pass over them and may be called twice."""
    rows, total = 0, Amount()
    keys: list[Ids] = []
    numbers: list[Rows] = []
    overrides: dict[str, None] = {}
    for batch, global_rows in read():
        row_points = _row_points(batch, axes, family)
        overrides.update(dict.fromkeys(present_overrides(batch)))
        total += _sum(row_points)
        rows += batch.num_rows
        if rows <= MAX_ROWS_COMPARED:
            keys.append(_row_keys(batch, row_points))
            numbers.append(global_rows)
    compared = rows <= MAX_ROWS_COMPARED
    repeated = _repeated(keys, numbers) if compared and rows else np.empty(0, np.int64)
    if len(repeated):
        total += _amount_of_rows(read(), repeated, axes, family).times(-1)
    return Count(rows=rows, amount=total, repeated=repeated, compared=compared, overrides=tuple(overrides))


def _row_points(batch: pa.Table, axes: Axes, family: Family) -> list[Points]:
    return [points(of_row, family) for of_row in row_axes(batch, axes)]


def _sum(row_points: list[Points]) -> Amount:
    """The work of many rows; rows with the same points, which are one object, are counted together."""
    occurrences = Counter(map(id, row_points))
    distinct = {id(chosen): chosen for chosen in row_points}
    return sum((amount_of(distinct[key]).times(times) for key, times in occurrences.items()), Amount())


def _amount_of_rows(batches: Iterable[Numbered], rows: Rows, axes: Axes, family: Family) -> Amount:
    total = Amount()
    for batch, global_rows in batches:
        chosen = batch.filter(pa.array(np.isin(global_rows, rows)))
        total += _sum(_row_points(chosen, axes, family))
    return total


def _row_keys(batch: pa.Table, row_points: list[Points]) -> Ids:
    """A 16-byte key per row: equal exactly when prompt, negative prompt and points are."""
    prompts, negatives = batch["prompt"].to_pylist(), batch["negative_prompt"].to_pylist()
    keys = []
    for prompt, negative, chosen in zip(prompts, negatives, row_points, strict=True):
        state = task_prefix(chosen.digest, prompt, negative)
        keys.append(state.digest())
    return ids_from_bytes(b"".join(keys))


def _repeated(keys: list[Ids], numbers: list[Rows]) -> Rows:
    """The numbers of rows whose key occurred in an earlier row.

    Sorts half keys first: where no two are equal, as in most manifests, nothing more is held in memory.
    """
    halves = np.sort(np.concatenate([key[:, 0] for key in keys]))
    twice = np.unique(halves[1:][halves[1:] == halves[:-1]])
    del halves
    if not len(twice):
        return np.empty(0, np.int64)
    chosen = [np.isin(key[:, 0], twice) for key in keys]
    key = np.concatenate([key[mask] for key, mask in zip(keys, chosen, strict=True)])
    number = np.concatenate([rows[mask] for rows, mask in zip(numbers, chosen, strict=True)])
    order = np.lexsort((number, key[:, 1], key[:, 0]))
    ordered = key[order]
    same = (ordered[1:] == ordered[:-1]).all(axis=1)
    return np.sort(number[order[1:][same]])
