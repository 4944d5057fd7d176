"""Rows of a manifest by number."""

from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

Rows = NDArray[np.int64]
"""Rows counted over the whole manifest, from 0, rejected rows included."""

Numbered = tuple[pa.Table, Rows]
"""A batch of prompt rows and the number of each of its rows, ascending."""

Tasks = NDArray[np.int64]
"""(n, 2), sorted: a row's number, and which of its points."""


def no_rows() -> Rows:
    return np.empty(0, np.int64)


def no_tasks() -> Tasks:
    return np.empty((0, 2), np.int64)


def among(values: NDArray[Any], ordered: NDArray[Any]) -> NDArray[np.bool_]:
    """For each value whether it is in a sorted array; unlike ``numpy.isin`` it does not look at all of that."""
    if not len(ordered):
        return np.zeros(len(values), np.bool_)
    at = np.minimum(np.searchsorted(ordered, values), len(ordered) - 1)
    found: NDArray[np.bool_] = ordered[at] == values
    return found


def keep_rows(numbered: Numbered, mask: NDArray[np.bool_]) -> Numbered:
    """The rows where ``mask``."""
    batch, global_rows = numbered
    return (batch, global_rows) if mask.all() else (batch.filter(pa.array(mask)), global_rows[mask])
