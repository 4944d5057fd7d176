"""The axes of prompt rows: the sweep's, or in rows with cells of their own, what these put in place of them.

A non-null manifest cell stands for its whole axis in that row.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.model.family import Family
from pipeline.planning.amount import Amount
from pipeline.schedulers import evaluations

OVERRIDE_COLUMNS = ("seeds", "guidance_scale", "num_inference_steps", "scheduler", "width", "height")
"""Columns of a manifest batch (``pipeline/manifest/read.py``) that may replace an axis; null keeps the sweep's."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """A sweep with every default filled in; a prompt row may replace axes."""

    seeds: tuple[int, ...]
    guidance_scales: tuple[float, ...]
    num_inference_steps: tuple[int, ...]
    schedulers: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    """(width, height) in px"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Axis:
    """One axis of several grids: grid ``g`` takes ``length[g]`` of the values from ``start[g]`` on."""

    values: NDArray[Any]
    """The sweep's first, then those of cells."""
    start: NDArray[np.int64]
    length: NDArray[np.int64]


@dataclass(frozen=True, slots=True, kw_only=True)
class Grids:
    """The axes of some prompt rows. Grid 0 is the sweep's; a row with a cell that replaces an axis has its own."""

    of_row: NDArray[np.int64]
    """The grid of each row."""
    seeds: Axis
    guidance_scales: Axis
    """Effective; NaN where the model takes none."""
    num_inference_steps: Axis
    schedulers: Axis
    sizes: Axis
    """Values (n, 2): width and height in px."""
    rows: NDArray[np.int64]
    """Rows of the denoiser's batch, for each value of ``guidance_scales``."""
    uses_negative_prompt: NDArray[np.bool_]
    """The same for the negative prompt."""

    def counts(self) -> NDArray[np.int64]:
        """The number of points of each grid."""
        counts = self.seeds.length * self.guidance_scales.length * self.num_inference_steps.length
        product: NDArray[np.int64] = counts * self.schedulers.length * self.sizes.length
        return product

    def using_negative_prompt(self) -> NDArray[np.int64]:
        """Guidance scales of each grid under which a negative prompt is used."""
        return _sums(self.uses_negative_prompt.astype(np.int64), self.guidance_scales)


def present_overrides(batch: pa.Table) -> tuple[str, ...]:
    """The override columns in which some row of the batch has a value."""
    return tuple(name for name in OVERRIDE_COLUMNS if batch[name].null_count < batch.num_rows)


def number_of_points(axes: Axes, family: Family) -> int:
    """Points of a prompt row that replaces no axis; of any number of values, since nothing is built."""
    lengths = (axes.seeds, _effective(axes, family), axes.num_inference_steps, axes.schedulers, axes.sizes)
    product = 1
    for values in lengths:
        product *= len(set(values))
    return product


def grids_of(batch: pa.Table, axes: Axes, family: Family) -> Grids:
    """The grids of a manifest batch, whose lists of seeds hold no seed twice."""
    has_own = np.zeros(batch.num_rows, np.bool_)
    for name in present_overrides(batch):
        has_own |= batch[name].is_valid().to_numpy()
    own = batch.filter(pa.array(has_own))
    guidance = _axis(list(_effective(axes, family)), own["guidance_scale"])
    effective = [family.effective_guidance(scale) for scale in guidance.values.tolist()]
    return Grids(
        of_row=np.where(has_own, np.cumsum(has_own), 0),
        seeds=_seeds(axes.seeds, own["seeds"]),
        guidance_scales=Axis(
            values=np.array([np.nan if scale is None else scale for scale in effective], np.float64),
            start=guidance.start,
            length=guidance.length,
        ),
        num_inference_steps=_axis(axes.num_inference_steps, own["num_inference_steps"], np.uint32),
        schedulers=_axis(axes.schedulers, own["scheduler"], np.object_),
        sizes=_sizes(axes.sizes, own),
        rows=np.array([family.rows(scale) for scale in effective], np.int64),
        uses_negative_prompt=np.array([family.uses_negative_prompt(scale) for scale in effective], np.bool_),
    )


def _effective(axes: Axes, family: Family) -> tuple[float, ...]:
    """Guidance scales, of those that amount to the same for the family the first."""
    different: dict[float | None, float] = {}
    for scale in axes.guidance_scales:
        different.setdefault(family.effective_guidance(scale), scale)
    return tuple(different.values())


def _axis(sweep: Sequence[Any], cells: pa.ChunkedArray, dtype: Any = None) -> Axis:
    """An axis whose cells hold one value each; equal cells share it."""
    encoded = pc.dictionary_encode(cells.combine_chunks())
    first = list(dict.fromkeys(sweep))
    places = pc.fill_null(encoded.indices, -1).to_numpy(zero_copy_only=False).astype(np.int64)
    return Axis(
        values=np.array(first + encoded.dictionary.to_pylist(), dtype),
        start=np.r_[0, np.where(places < 0, 0, len(first) + places)],
        length=np.r_[len(first), np.where(places < 0, len(first), 1)],
    )


def _seeds(sweep: Sequence[int], cells: pa.ChunkedArray) -> Axis:
    first = np.array(list(dict.fromkeys(sweep)), np.uint64)
    own = pc.fill_null(pc.list_value_length(cells), 0).to_numpy().astype(np.int64)
    return Axis(
        values=np.concatenate([first, pc.list_flatten(cells).to_numpy()]),
        start=np.r_[0, np.where(own, len(first) + np.cumsum(own) - own, 0)],
        length=np.r_[len(first), np.where(own, own, len(first))],
    )


def _sizes(sweep: Sequence[tuple[int, int]], own: pa.Table) -> Axis:
    """Width and height as one number, so that they are one axis."""
    sides = [own[name].cast(pa.int64()) for name in ("width", "height")]
    pairs = pc.add(pc.shift_left(sides[0], 32), sides[1])
    axis = _axis([(width << 32) + height for width, height in sweep], pairs, np.int64)
    values = np.stack([axis.values >> 32, axis.values & 0xFFFFFFFF], axis=1).astype(np.uint32)
    return Axis(values=values, start=axis.start, length=axis.length)


def amount_of_rows(grids: Grids) -> Amount:
    """The work of all rows, without multiplying their axes out: sums of products are products of sums."""
    times = np.bincount(grids.of_row, minlength=len(grids.seeds.start))
    counts = grids.counts()
    guidances, pictures = grids.guidance_scales, grids.sizes
    rows = _sums(grids.rows, guidances)
    megapixels = _sums(pictures.values.astype(np.float64).prod(axis=1) / 1e6, pictures)
    steps = _sums(grids.num_inference_steps.values.astype(np.int64), grids.num_inference_steps)
    calls = _calls(grids)
    evaluated = grids.seeds.length * rows * calls
    per_size = counts // pictures.length
    stepped = grids.seeds.length * guidances.length * grids.schedulers.length * steps
    return Amount(
        images=int((times * counts).sum()),
        evaluations=int((times * evaluated * pictures.length).sum()),
        megapixels=float((times * per_size * megapixels).sum()),
        megapixel_evaluations=float((times * evaluated * megapixels).sum()),
        megapixel_steps=float((times * stepped * megapixels).sum()),
    )


def _sums(values: NDArray[Any], axis: Axis) -> NDArray[Any]:
    """The sum over each grid's part of the values."""
    running = np.concatenate([np.zeros(1, values.dtype), np.cumsum(values)])
    sums: NDArray[Any] = running[axis.start + axis.length] - running[axis.start]
    return sums


def _calls(grids: Grids) -> NDArray[np.int64]:
    """Calls of the denoiser over each grid's schedulers and step counts, one picture of each pair."""
    of_grid, pairs = scheduler_steps(grids)
    return np.array([sum(evaluations(name, n) for name in names for n in counts) for names, counts in pairs])[of_grid]


def scheduler_steps(grids: Grids) -> tuple[NDArray[np.int64], list[tuple[list[str], list[int]]]]:
    """What comes together in a grid, schedulers and step counts: which pair each grid has, and the different pairs."""
    names, counts = grids.schedulers, grids.num_inference_steps
    code = names.start * (len(counts.values) + 1) + counts.start
    _, first, of_grid = np.unique(code, return_index=True, return_inverse=True)
    return of_grid, [(_part(names, grid), _part(counts, grid)) for grid in first.tolist()]


def _part(axis: Axis, grid: int) -> list[Any]:
    start = int(axis.start[grid])
    values: list[Any] = axis.values[start : start + int(axis.length[grid])].tolist()
    return values
