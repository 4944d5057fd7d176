"""Render tasks in columns: prompt rows times sweep points, with their ids."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.identity import ID_BYTES, Ids, IdSet
from pipeline.model.family import Family
from pipeline.planning.amount import Amount
from pipeline.planning.grids import OVERRIDE_COLUMNS, Axes
from pipeline.planning.ids import task_ids
from pipeline.planning.pieces import Piece
from pipeline.planning.rows import Numbered
from pipeline.planning.selection import Selection, selected_pieces

TASK_FIELDS = (
    pa.field("task_id", pa.binary(ID_BYTES), nullable=False),
    pa.field("seed", pa.uint64(), nullable=False),
    pa.field("guidance_scale", pa.float64()),
    pa.field("num_inference_steps", pa.uint32(), nullable=False),
    pa.field("scheduler", pa.string(), nullable=False),
    pa.field("width", pa.uint32(), nullable=False),
    pa.field("height", pa.uint32(), nullable=False),
    pa.field("evaluations", pa.uint32(), nullable=False),
)
"""Columns of a planned task beside those of its prompt row; ``guidance_scale`` is null where the model takes none."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Space:
    """Everything that turns prompt rows into tasks: a pure value that travels to every planner."""

    axes: Axes
    family: Family
    run_digest: bytes
    """16 bytes, ``RunConstants.digest()``."""


def plan_batch(numbered: Numbered, space: Space, selection: Selection, committed: IdSet) -> Iterator[pa.Table]:
    """The selected tasks of a manifest batch that are not committed yet, in order and in bounded tables.

    A table has the batch's columns, less those that may replace an axis, and ``TASK_FIELDS``.
    """
    for piece, selected, ids, open_ in _identified([numbered], space, selection, committed):
        kept = np.flatnonzero(selected & open_)
        if len(kept):
            yield _joined(piece, ids, kept)


def planned_amount(
    batches: Iterable[Numbered], space: Space, selection: Selection, committed: IdSet
) -> tuple[Amount, Amount]:
    """The work that is selected, and what of it is not committed. Makes every id once, about two million a second."""
    whole, missing = Amount(), Amount()
    for piece, selected, _, open_ in _identified(batches, space, selection, committed):
        whole += piece.amount(selected)
        missing += piece.amount(selected & open_)
    return whole, missing


def _identified(
    batches: Iterable[Numbered], space: Space, selection: Selection, committed: IdSet
) -> Iterator[tuple[Piece, NDArray[np.bool_], Ids, NDArray[np.bool_]]]:
    """Pieces, which of their tasks are selected, their ids, and which are not committed."""
    for piece, selected in selected_pieces(batches, space.axes, space.family, selection):
        ids = task_ids(piece, space.run_digest)
        yield piece, selected, ids, ~committed.contains(ids)


def _joined(piece: Piece, ids: Ids, kept: NDArray[np.int64]) -> pa.Table:
    """Prompt rows and points side by side, for the tasks numbered ``kept``."""
    rows, at, points = pa.array(piece.row[kept]), piece.at(kept), piece.points
    negative = piece.batch["negative_prompt"].take(rows)
    uses_negative = points.uses_negative_prompt[at]
    table = piece.batch.drop_columns(["negative_prompt", *OVERRIDE_COLUMNS]).take(rows)
    table = table.append_column(
        pa.field("negative_prompt", pa.string()),
        pa.chunked_array([pc.if_else(pa.array(uses_negative), negative.combine_chunks(), None)], pa.string()),
    )
    columns = {
        "task_id": _binary(ids[kept]),
        "guidance_scale": pa.array(points.guidance_scale[at], pa.float64(), from_pandas=True),
        "scheduler": pa.array(points.scheduler_names, pa.string()).take(pa.array(points.scheduler[at])),
    }
    for field in TASK_FIELDS:
        column = columns.get(field.name)
        if column is None:
            column = pa.array(getattr(points, field.name)[at], field.type)
        table = table.append_column(field, column)
    return table


def _binary(ids: Ids) -> pa.Array:
    buffer = pa.py_buffer(ids.astype(">u8").tobytes())
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(ID_BYTES), len(ids), [None, buffer])
