"""Chooses the view that a contact sheet opens with, by what varies within prompts."""

from itertools import permutations
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.report.pages import SHOWN_VALUES, axis_values
from pipeline.report.rows import SheetRows

_COLUMNS = ("num_inference_steps", "guidance_scale", "seed", "scheduler", "size")
"""Axes in the order in which they become columns."""
_ROWS = ("guidance_scale", "scheduler", "seed", "num_inference_steps", "size")

Codes = NDArray[np.int64]


def first_view(rows: SheetRows) -> dict[str, str]:
    """Return ``view`` (``grid`` or ``all``) and the axes of the grid's ``rows`` and ``columns``, empty for none.

    Rows and columns are two axes that vary within most prompts and whose values mostly occur together. Where only one
    such axis exists, its values stand beside each other for every prompt. Where none does, all pictures are shown.
    """
    prompts = int(rows.group.max(initial=-1)) + 1
    codes = {axis: _codes(values) for axis, values in axis_values(rows).items()}
    number = {axis: _values_per_prompt(rows.group, code) for axis, code in codes.items()}
    varying = [axis for axis in _COLUMNS if 2 * int((number[axis] > 1).sum()) >= prompts]
    pairs = sorted(permutations(varying, 2), key=lambda pair: (_COLUMNS.index(pair[1]), _ROWS.index(pair[0])))
    for row, column in pairs:
        places = _distinct(_pair(_pair(rows.group, codes[row]), codes[column]))
        if 2 * places >= int((number[row] * number[column]).sum()):
            return {"view": "grid", "rows": row, "columns": column}
    column = next(iter(varying), "")
    if prompts == 1:
        return {"view": "grid", "rows": "", "columns": column}
    is_shared = bool(column) and _is_shared(rows.group, codes[column], prompts)
    most = max(_COLUMNS, key=lambda axis: int((number[axis] > 1).sum()))
    fallback = most if (number[most] > 1).any() else ""
    return {"view": "grid" if is_shared else "all", "rows": "prompt", "columns": column or fallback}


def _is_shared(group: Codes, codes: Codes, prompts: int) -> bool:
    """Return whether prompts × values is mostly filled; an axis of very many values is laid out by their order."""
    values = int(codes.max()) + 1
    return values > SHOWN_VALUES or 4 * _distinct(_pair(group, codes)) >= prompts * values


def _values_per_prompt(group: Codes, codes: Codes) -> Codes:
    pairs = np.unique(_pair(group, codes))
    return np.bincount(pairs // (int(codes.max(initial=0)) + 1)).astype(np.int64)


def _pair(one: Codes, other: Codes) -> Codes:
    """Return one number per pair, the same for the same pair."""
    _, one = np.unique(one, return_inverse=True)
    return one.astype(np.int64) * (int(other.max(initial=0)) + 1) + other


def _distinct(codes: Codes) -> int:
    return len(np.unique(codes))


def _codes(values: list[Any]) -> Codes:
    numbers: dict[Any, int] = {}
    return np.array([numbers.setdefault(value, len(numbers)) for value in values], np.int64)
