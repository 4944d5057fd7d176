"""Render tasks in columns: prompt rows times sweep points, with their ids."""

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from hashlib import blake2b
from itertools import chain

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.identity import ID_BYTES, Ids, IdSet, ids_from_bytes, task_prefix
from pipeline.model.family import Family
from pipeline.planning.count import Amount
from pipeline.planning.overrides import OVERRIDE_COLUMNS, row_axes
from pipeline.planning.points import Axes, Points, points
from pipeline.planning.selection import Numbered, Rows, Selection

CHUNK_TASKS = 100_000
"""Tasks made at a time: bounds memory whatever the sweep's size."""

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
    batch, global_rows = numbered
    wanted = selection.rows(global_rows)
    batch, global_rows = batch.filter(pa.array(wanted)), global_rows[wanted]
    row_points = [points(axes, space.family) for axes in row_axes(batch, space.axes)]
    for start, stop in _bounded(row_points):
        chunk, chosen = batch.slice(start, stop - start), row_points[start:stop]
        ids = _ids(chunk, chosen, space.run_digest)
        keep = ~committed.contains(ids)
        if selection.picks is not None:
            keep &= _picked(global_rows[start:stop], chosen, selection)
        if keep.any():
            yield _joined(chunk, chosen, ids, np.flatnonzero(keep))


def batch_ids(batch: pa.Table, space: Space) -> Iterator[Ids]:
    """The ids of all tasks of a manifest batch, row by row, in bounded pieces (n, 2)."""
    row_points = [points(axes, space.family) for axes in row_axes(batch, space.axes)]
    for start, stop in _bounded(row_points):
        yield _ids(batch.slice(start, stop - start), row_points[start:stop], space.run_digest)


def _picked(global_rows: Rows, row_points: list[Points], selection: Selection) -> NDArray[np.bool_]:
    masks = []
    for row, chosen in zip(global_rows, row_points, strict=True):
        mask = np.zeros(len(chosen), np.bool_)
        mask[selection.points(int(row), len(chosen))] = True
        masks.append(mask)
    return np.concatenate(masks)


def _bounded(row_points: list[Points]) -> Iterator[tuple[int, int]]:
    """Ranges of rows that make about ``CHUNK_TASKS`` tasks; a single row is never cut."""
    start = tasks = 0
    for row, row_point in enumerate(row_points):
        if tasks and tasks + len(row_point) > CHUNK_TASKS:
            yield start, row
            start, tasks = row, 0
        tasks += len(row_point)
    if start < len(row_points):
        yield start, len(row_points)


def _ids(chunk: pa.Table, row_points: list[Points], run_digest: bytes) -> Ids:
    prompts, negatives = chunk["prompt"].to_pylist(), chunk["negative_prompt"].to_pylist()
    digests: list[bytes] = []
    for prompt, negative, row_point in zip(prompts, negatives, row_points, strict=True):
        plain = task_prefix(run_digest, prompt, None)
        if negative:
            digests += _digests_with_negative(plain, task_prefix(run_digest, prompt, negative), row_point)
            continue
        for packed in row_point.packed:
            state = plain.copy()
            state.update(packed)
            digests.append(state.digest())
    return ids_from_bytes(b"".join(digests))


def _digests_with_negative(plain: blake2b, guided: blake2b, row_point: Points) -> Iterator[bytes]:
    for packed, uses_negative in zip(row_point.packed, row_point.uses_negative_prompt, strict=True):
        state = (guided if uses_negative else plain).copy()
        state.update(packed)
        yield state.digest()


def _joined(chunk: pa.Table, row_points: list[Points], ids: Ids, keep: NDArray[np.int64]) -> pa.Table:
    """Prompt rows and points side by side, for the tasks numbered ``keep``."""
    rows = np.repeat(np.arange(len(row_points)), [len(p) for p in row_points])[keep]
    negative = chunk["negative_prompt"].take(pa.array(rows))
    uses_negative = _column(row_points, "uses_negative_prompt")[keep]
    table = chunk.drop_columns(["negative_prompt", *OVERRIDE_COLUMNS]).take(pa.array(rows))
    table = table.append_column(
        pa.field("negative_prompt", pa.string()),
        pa.chunked_array([pc.if_else(pa.array(uses_negative), negative.combine_chunks(), None)], pa.string()),
    )
    schedulers = pa.array(list(chain.from_iterable(p.scheduler for p in row_points)), pa.string())
    columns = {
        "task_id": _binary(ids[keep]),
        "scheduler": schedulers.take(pa.array(keep)),
        "guidance_scale": pa.array(_column(row_points, "guidance_scale")[keep], pa.float64(), from_pandas=True),
    }
    for field in TASK_FIELDS:
        column = columns.get(field.name)
        if column is None:
            column = pa.array(_column(row_points, field.name)[keep], field.type)
        table = table.append_column(field, column)
    return table


def _column(row_points: list[Points], name: str) -> NDArray[np.generic]:
    return np.concatenate([getattr(p, name) for p in row_points])


def _binary(ids: Ids) -> pa.Array:
    buffer = pa.py_buffer(ids.astype(">u8").tobytes())
    return pa.FixedSizeBinaryArray.from_buffers(pa.binary(ID_BYTES), len(ids), [None, buffer])


def planned_amount(
    batches: Iterable[Numbered], space: Space, selection: Selection, committed: IdSet
) -> tuple[Amount, Amount]:
    """The work that is selected, and what of it is not committed. Makes every id once, about a million a second."""
    whole, missing = Amount(), Amount()
    for batch, global_rows in batches:
        wanted = selection.rows(global_rows)
        batch, global_rows = batch.filter(pa.array(wanted)), global_rows[wanted]
        row_points = [points(axes, space.family) for axes in row_axes(batch, space.axes)]
        for start, stop in _bounded(row_points):
            chunk, chosen = batch.slice(start, stop - start), row_points[start:stop]
            open_ = ~committed.contains(_ids(chunk, chosen, space.run_digest))
            selected = np.ones(len(open_), np.bool_)
            if selection.picks is not None:
                selected = _picked(global_rows[start:stop], chosen, selection)
            whole += _amount(chosen, selected)
            missing += _amount(chosen, selected & open_)
    return whole, missing


def _amount(row_points: list[Points], mask: NDArray[np.bool_]) -> Amount:
    evaluations = _column(row_points, "evaluations").astype(np.int64)[mask]
    width, height = (_column(row_points, side).astype(np.float64)[mask] for side in ("width", "height"))
    megapixels = width * height / 1e6
    return Amount(
        images=int(mask.sum()),
        evaluations=int(evaluations.sum()),
        megapixel_evaluations=float((evaluations * megapixels).sum()),
        megapixel_steps=float((_column(row_points, "num_inference_steps").astype(np.float64)[mask] * megapixels).sum()),
    )
