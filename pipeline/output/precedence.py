"""Which of several rows for one task counts: ok before failed, then the latest, then the smaller ``part_id``."""

from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.identity import Ids
from pipeline.output.outcomes import ids_of_hex, ok_of


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Ranks:
    """What decides it, 41 bytes a row."""

    numbers: NDArray[np.int64]
    """In which order the rows came; of rows that are alike in all else, the first counts."""

    ids: Ids
    failed: NDArray[np.bool_]
    created: NDArray[np.int64]
    """µs since 1970"""
    parts: NDArray[np.uint64]
    """The first half of the ``part_id``."""


def ranks_of(rows: pa.Table, numbers: NDArray[np.int64]) -> Ranks:
    """Of rows with the columns ``task_id``, ``status``, ``created_at`` and ``part_id``."""
    created = pc.fill_null(rows["created_at"].cast(pa.int64()), 0)
    return Ranks(
        numbers=numbers,
        ids=ids_of_hex(rows["task_id"]),
        failed=~ok_of(rows),
        created=created.to_numpy(),
        parts=ids_of_hex(rows["part_id"])[:, 0],
    )


def joined(ranks: Iterable[Ranks]) -> Ranks:
    """One after the other."""
    columns = zip(*((one.numbers, one.ids, one.failed, one.created, one.parts) for one in ranks), strict=True)
    numbers, ids, failed, created, parts = map(np.concatenate, columns)
    return Ranks(numbers=numbers, ids=ids, failed=failed, created=created, parts=parts)


def counting(ranks: Ranks) -> NDArray[np.bool_]:
    """For each row whether it is the one of its task that counts."""
    counts = np.ones(len(ranks.ids), np.bool_)
    high, low = ranks.ids[:, 0], ranks.ids[:, 1]
    order = np.argsort(high)
    same = high[order[1:]] == high[order[:-1]]
    if not same.any():
        return counts
    tied = order[np.r_[False, same] | np.r_[same, False]]  # few, as a rule: only these are sorted by everything
    keys = (ranks.numbers, ranks.parts, -ranks.created, ranks.failed, low, high)
    tied = tied[np.lexsort([key[tied] for key in keys])]
    counts[tied[1:][(ranks.ids[tied[1:]] == ranks.ids[tied[:-1]]).all(axis=1)]] = False
    return counts


def one_per_task(rows: pa.Table) -> pa.Table:
    """The rows that count, in the order they had."""
    return rows.filter(pa.array(counting(ranks_of(rows, np.arange(rows.num_rows)))))
