"""Requests of manifest rows without effect: cut prompts, unused negative prompts, cells that repeat the sweep.

``no_effect.py`` says it to people.
"""

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.planning.grids import OVERRIDE_COLUMNS, Axes, Grids

Mask = NDArray[np.bool_]
Cut = Callable[[pa.ChunkedArray], Mapping[str, Mask] | None]
"""Return which texts are longer than the window of a text encoder, by tokenizer; None where nobody knows."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Effects:
    """Counts over usable rows. Effects add up."""

    rows: int = 0
    looked_at: int = 0
    """Rows whose prompts were held against the windows of the text encoders."""
    cut: int = 0
    """Rows whose prompt is longer than a window."""
    cut_by: Mapping[str, int] = field(default_factory=dict)
    """The same by tokenizer."""
    negatives: int = 0
    """Rows with a negative prompt."""
    negatives_cut: int = 0
    """Rows whose negative prompt is used, and longer than a window."""
    negatives_unused: int = 0
    """Rows with a negative prompt that none of their images uses."""
    negatives_unused_in_part: int = 0
    """Rows with a negative prompt that some of their images do not use."""
    valued: Mapping[str, int] = field(default_factory=dict)
    """Rows with a value, by the column that may replace an axis."""
    repeating: Mapping[str, int] = field(default_factory=dict)
    """Rows whose value is all that the axis of the sweep has."""

    def __add__(self, other: "Effects") -> "Effects":
        return Effects(
            rows=self.rows + other.rows,
            looked_at=self.looked_at + other.looked_at,
            cut=self.cut + other.cut,
            cut_by=_added(self.cut_by, other.cut_by),
            negatives=self.negatives + other.negatives,
            negatives_cut=self.negatives_cut + other.negatives_cut,
            negatives_unused=self.negatives_unused + other.negatives_unused,
            negatives_unused_in_part=self.negatives_unused_in_part + other.negatives_unused_in_part,
            valued=_added(self.valued, other.valued),
            repeating=_added(self.repeating, other.repeating),
        )


def _added(some: Mapping[str, int], others: Mapping[str, int]) -> Mapping[str, int]:
    sums = Counter(some)
    sums.update(others)
    return dict(sums)


def effects_of(batch: pa.Table, grids: Grids, axes: Axes, cut: Cut) -> Effects:
    """Count the effects of a manifest batch, whose grids these are."""
    used, asked = grids.using_negative_prompt()[grids.of_row], grids.guidance_scales.length[grids.of_row]
    has_negative = _has_text(batch["negative_prompt"])
    cut_prompts = cut(batch["prompt"])
    cut_negatives = cut(batch["negative_prompt"]) if has_negative.any() else None
    present = [name for name in OVERRIDE_COLUMNS if batch[name].null_count < batch.num_rows]
    return Effects(
        rows=batch.num_rows,
        looked_at=0 if cut_prompts is None else batch.num_rows,
        cut=_any(cut_prompts),
        cut_by={name: int(mask.sum()) for name, mask in (cut_prompts or {}).items()},
        negatives=int(has_negative.sum()),
        negatives_cut=_any(cut_negatives, has_negative & (used > 0)),
        negatives_unused=int((has_negative & (used == 0)).sum()),
        negatives_unused_in_part=int((has_negative & (used > 0) & (used < asked)).sum()),
        valued={name: batch.num_rows - batch[name].null_count for name in present},
        repeating={name: _repeating(name, batch[name], axes) for name in present},
    )


def _has_text(column: pa.ChunkedArray) -> Mask:
    blank = pc.equal(pc.utf8_trim_whitespace(column), "")
    return np.asarray(pc.invert(pc.fill_null(blank, True)).to_numpy())


def _any(masks: Mapping[str, Mask] | None, among: Mask | None = None) -> int:
    """The number of rows, of those ``among``, that are in one of the masks."""
    if not masks:
        return 0
    found = np.logical_or.reduce(list(masks.values()))
    return int((found if among is None else found & among).sum())


def _repeating(name: str, column: pa.ChunkedArray, axes: Axes) -> int:
    """The number of cells that equal the axis they replace."""
    if name == "seeds":
        return _repeating_seeds(column, list(dict.fromkeys(axes.seeds)))
    axis: Mapping[str, Sequence[Any]] = {
        "guidance_scale": axes.guidance_scales,
        "num_inference_steps": axes.num_inference_steps,
        "scheduler": axes.schedulers,
        "width": tuple(width for width, _ in axes.sizes),
        "height": tuple(height for _, height in axes.sizes),
    }
    if len(set(axes.sizes if name in ("width", "height") else axis[name])) > 1:
        return 0
    return int(pc.sum(pc.equal(column, pa.scalar(axis[name][0], column.type))).as_py() or 0)


def _repeating_seeds(column: pa.ChunkedArray, sweep: list[int]) -> int:
    cells = column.drop_null().combine_chunks()
    same_length = cells.filter(pc.equal(pc.list_value_length(cells), len(sweep)))
    values = same_length.flatten().to_numpy().reshape(-1, len(sweep))
    return int((values == np.array(sweep, np.uint64)).all(axis=1).sum())
