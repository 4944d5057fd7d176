"""Prompt rows that replace axes of the sweep: a non-null manifest cell stands for its whole axis in that row."""

from dataclasses import replace
from typing import Any

import pyarrow as pa

from pipeline.planning.points import Axes

OVERRIDE_COLUMNS = ("seeds", "guidance_scale", "num_inference_steps", "scheduler", "width", "height")
"""Columns of a manifest batch (``pipeline/manifest/read.py``) that may replace an axis; null keeps the sweep's."""


def present_overrides(batch: pa.Table) -> tuple[str, ...]:
    """The override columns in which some row of the batch has a value."""
    return tuple(name for name in OVERRIDE_COLUMNS if batch[name].null_count < batch.num_rows)


def row_axes(batch: pa.Table, axes: Axes) -> list[Axes]:
    """The axes of every row, in order. Equal rows share one object's value, so ``points`` caches them."""
    present = present_overrides(batch)
    if not present:
        return [axes] * batch.num_rows
    columns = [batch[name].to_pylist() for name in present]
    return [_replaced(axes, dict(zip(present, cells, strict=True))) for cells in zip(*columns, strict=True)]


def _replaced(axes: Axes, cells: dict[str, Any]) -> Axes:
    changes: dict[str, Any] = {}
    if cells.get("seeds") is not None:
        changes["seeds"] = tuple(cells["seeds"])
    if cells.get("guidance_scale") is not None:
        changes["guidance_scales"] = (cells["guidance_scale"],)
    if cells.get("num_inference_steps") is not None:
        changes["num_inference_steps"] = (cells["num_inference_steps"],)
    if cells.get("scheduler") is not None:
        changes["schedulers"] = (cells["scheduler"],)
    if cells.get("width") is not None:
        changes["sizes"] = ((cells["width"], cells["height"]),)
    return replace(axes, **changes) if changes else axes
