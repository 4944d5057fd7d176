"""Tasks that an earlier row of the manifest has as well: rows of one prompt may overlap in all or in some points.

Only rows whose prompt occurs more than once can. They are few in most manifests, so the first pass keeps a hash per
row, and a second one makes ids, of those rows alone.
"""

from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.identity import Ids
from pipeline.model.family import Family
from pipeline.planning.amount import Amount, amount_of
from pipeline.planning.grids import Axes, grids_of
from pipeline.planning.ids import task_ids
from pipeline.planning.pieces import pieces
from pipeline.planning.rows import Numbered, Rows, Tasks, among, keep_rows, no_rows, no_tasks

HELD_IDS = 5_000_000
"""Ids compared at a time, 40 bytes each; more only where one prompt alone has more."""

Hashes = NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Repeats:
    """What is asked for again; the first row that asks for a picture keeps it."""

    rows: Rows = field(default_factory=no_rows)
    """Rows that have nothing of their own, sorted."""
    tasks: Tasks = field(default_factory=no_tasks)
    """Repeated tasks of rows that have others."""
    amount: Amount = field(default_factory=Amount)
    """Of both."""


def prompt_hashes(batch: pa.Table) -> Hashes:
    """64 bits of each prompt, the same only within this process."""
    return np.fromiter(map(hash, batch["prompt"].to_pylist()), np.int64, batch.num_rows)


def find_repeats(
    read: Callable[[], Iterable[Numbered]], hashes: Hashes, most_points: int, axes: Axes, family: Family
) -> Repeats:
    """All repeated tasks; ``read`` starts a pass over the manifest.

    ``hashes`` are those of all rows in any order, and are sorted here; no row has more than ``most_points`` points.
    """
    hashes.sort()
    again = hashes[1:] == hashes[:-1]
    suspects = np.unique(hashes[1:][again])
    if not len(suspects):
        return Repeats()
    few = (int(again.sum()) + len(suspects)) * most_points <= HELD_IDS
    partitions = [suspects] if few else _partitions(read(), suspects, axes, family)
    found = [_search(read(), partition, axes, family) for partition in partitions]
    tasks = np.concatenate([part.tasks for part in found])
    return Repeats(
        rows=np.sort(np.concatenate([part.rows for part in found])),
        tasks=tasks[np.lexsort((tasks[:, 1], tasks[:, 0]))],
        amount=sum((part.amount for part in found), Amount()),
    )


def _suspected(batches: Iterable[Numbered], suspects: Hashes) -> Iterator[Numbered]:
    for numbered in batches:
        chosen = keep_rows(numbered, among(prompt_hashes(numbered[0]), suspects))
        if len(chosen[1]):
            yield chosen


def _partitions(batches: Iterable[Numbered], suspects: Hashes, axes: Axes, family: Family) -> list[Hashes]:
    """The suspects in parts that make about ``HELD_IDS`` ids each."""
    tasks = np.zeros(len(suspects), np.int64)
    for batch, _ in _suspected(batches, suspects):
        grids = grids_of(batch, axes, family)
        np.add.at(tasks, np.searchsorted(suspects, prompt_hashes(batch)), grids.counts()[grids.of_row])
    return np.split(suspects, np.flatnonzero(np.diff(np.cumsum(tasks) // HELD_IDS)) + 1)


def _search(batches: Iterable[Numbered], suspects: Hashes, axes: Axes, family: Family) -> Repeats:
    """The repeated tasks among all rows of these prompts."""
    ids: list[Ids] = []
    columns: list[tuple[NDArray[Any], ...]] = []
    for numbered in _suspected(batches, suspects):
        for piece in pieces(numbered, axes, family):
            at, of = piece.at(np.arange(len(piece))), piece.points
            ids.append(task_ids(piece, b""))
            work = of.evaluations[at], of.num_inference_steps[at], of.pixels()[at].astype(np.uint32)
            columns.append((piece.global_rows[piece.row], piece.number.astype(np.int32), *work))
    rows, numbers, evaluations, steps, pixels = (np.concatenate(column) for column in zip(*columns, strict=True))
    again = _again(np.concatenate(ids))
    different, which, counts = np.unique(rows, return_inverse=True, return_counts=True)
    whole = np.bincount(which[again], minlength=len(different)) == counts
    in_part = again & ~whole[which]
    return Repeats(
        rows=different[whole],
        tasks=np.stack([rows[in_part], numbers[in_part]], axis=1),
        amount=amount_of(evaluations[again], steps[again], pixels[again]),
    )


def _again(ids: Ids) -> NDArray[np.bool_]:
    """Which ids occurred further up."""
    order = np.lexsort((ids[:, 1], ids[:, 0]))  # stable: of equal ones the first stays first
    ordered = ids[order]
    again = np.zeros(len(ids), np.bool_)
    again[order[1:]] = (ordered[1:] == ordered[:-1]).all(axis=1)
    return again
