"""The data files of a sheet: prompts to list and search, cells to lay out. The page loads those it shows.

They are made anew by every build; the same content has the same name.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.report.packs import Packs, exact, put_page
from pipeline.report.rows import Prompt, SheetRows
from pipeline.storage.base import ObjectStore

PAGE_PROMPTS = 512
PAGE_CELLS = 1024
SHOWN_VALUES = 64
"""An axis with more is not listed as a whole: such as a seed of its own for every image."""

AXES = ("seed", "guidance_scale", "num_inference_steps", "scheduler", "size")
_LOST = "lost"
"""The verdict on an image that is committed and cannot be read."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cells:
    """The data files of all cells, and the names of the packs that cells refer to by number."""

    pages: list[str]
    images: list[str]
    previews: list[str]


def put_prompts(store: ObjectStore, prompts: Sequence[Prompt]) -> list[str]:
    """Returns the names of the data files, each of ``PAGE_PROMPTS`` prompts."""
    return [
        put_page(store, "prompts", _prompts_page(prompts[start : start + PAGE_PROMPTS]))
        for start in range(0, len(prompts), PAGE_PROMPTS)
    ]


def _prompts_page(prompts: Sequence[Prompt]) -> dict[str, Any]:
    return {
        "prompt": [prompt.text for prompt in prompts],
        "negative": {number: prompt.negative for number, prompt in enumerate(prompts) if prompt.negative},
        "id": [prompt.prompt_id for prompt in prompts],
        "first": [prompt.first for prompt in prompts],
        "count": [prompt.count for prompt in prompts],
        "failed": {number: prompt.failed for number, prompt in enumerate(prompts) if prompt.failed},
    }


def put_cells(store: ObjectStore, rows: SheetRows, images: Packs, previews: Packs | None) -> Cells:
    """A cell is a point of the sweep, a verdict, and where its entries in the packs are, -1 where there is none."""
    names, axes = rows.names(), axis_values(rows)
    image_packs, image_at = _places(names, images)
    preview_packs, preview_at = _places(names, previews)
    verdicts = [
        verdict if name in images.places else _LOST
        for name, verdict in zip(names, rows.table["verdict"].to_pylist(), strict=True)
    ]
    pages = []
    for start in range(0, len(rows), PAGE_CELLS):
        page = slice(start, start + PAGE_CELLS)
        columns = {axis: _coded(values[page]) for axis, values in axes.items()}
        placed = {"image": image_at[page].tolist()} | (
            {"preview": preview_at[page].tolist()} if previews is not None else {}
        )
        content = {**columns, "verdict": _coded(verdicts[page]), "ok": _coded(rows.ok[page].tolist()), **placed}
        pages.append(put_page(store, "cells", content))
    return Cells(pages=pages, images=image_packs, previews=preview_packs)


def axis_values(rows: SheetRows) -> dict[str, list[Any]]:
    """Of every row by axis, as the page reads them: numbers, texts for seeds that are too large."""
    columns = {name: rows.table[name].to_pylist() for name in (*AXES[:-1], "width", "height")}
    columns["seed"] = exact(columns["seed"])
    columns["size"] = [f"{width}×{height}" for width, height in zip(columns["width"], columns["height"], strict=True)]
    return {axis: columns[axis] for axis in AXES}


def describe_axes(rows: SheetRows, schedulers: Sequence[str]) -> list[dict[str, Any]]:
    """Return how many values each axis has, and which they are where they are few.

    ``schedulers`` come first among their axis's values, in this order.
    """
    return [_describe(axis, values, schedulers) for axis, values in axis_values(rows).items()]


def _describe(axis: str, values: list[Any], schedulers: Sequence[str]) -> dict[str, Any]:
    different = list(dict.fromkeys(values))
    if axis == "scheduler":
        different = [
            *(name for name in dict.fromkeys(schedulers) if name in different),
            *sorted({*different} - {*schedulers}),
        ]
    described = {"name": axis, "distinct": len(different)}
    return described | ({"values": different} if len(different) <= SHOWN_VALUES else {})


def _coded(values: Sequence[Any]) -> dict[str, list[Any]]:
    """The different values and, if there are several, which of them each is."""
    numbers: dict[Any, int] = {}
    codes = [numbers.setdefault(value, len(numbers)) for value in values]
    return {"values": list(numbers)} | ({"codes": codes} if len(numbers) > 1 else {})


def _places(names: Sequence[str], packs: Packs | None) -> tuple[list[str], NDArray[np.int64]]:
    """The packs that are needed, and for each name (which of them, which entry in it), (n, 2)."""
    numbers: dict[str, int] = {}
    found = np.full((len(names), 2), -1)
    for row, name in enumerate(names):
        place = packs.places.get(name) if packs is not None else None
        if place is not None:
            found[row] = numbers.setdefault(place.pack, len(numbers)), place.number
    return list(numbers), found
