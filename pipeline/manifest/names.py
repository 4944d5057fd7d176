"""Ids of any plain type as text that is exact and the same whatever the column's layout."""

from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as t

from pipeline.manifest.numbers import as_floats, is_inexact, mask_of
from pipeline.manifest.verdicts import Fault, Verdicts

_ALLOWED = "a text, a whole number, a date or a UUID"
_UUID_BYTES = 16
_NO_DATE = "<value out of range"
"""Beginning of what Arrow writes for a date that its calendar does not reach."""


def as_names(column: pa.Array, name: str, verdicts: Verdicts) -> pa.Array:
    """Return numbers, booleans, dates, times, UUIDs and bytes as text; columns of text are no business of this.

    Numbers have no more digits than they need, times no zeros at the end and UTC where they have a zone, and bytes are
    hexadecimal.
    """
    kind = column.type
    if isinstance(kind, pa.UuidType):
        return _uuids(column.storage)
    if t.is_floating(kind):
        return _of_floats(column, name, verdicts)
    if t.is_decimal(kind):
        return _without_zeros(
            pa.array([None if cell is None else f"{cell:f}" for cell in column.to_pylist()], pa.string())
        )
    if t.is_temporal(kind):
        return _of_times(column, name, verdicts)
    if t.is_fixed_size_binary(kind) and kind.byte_width == _UUID_BYTES:
        return _uuids(column)
    if t.is_binary(kind) or t.is_large_binary(kind) or t.is_fixed_size_binary(kind):
        return pa.array([None if cell is None else cell.hex() for cell in column.to_pylist()], pa.string())
    return column.cast(pa.string())


def _uuids(column: pa.Array) -> pa.Array:
    cells = column.cast(pa.binary()).to_pylist()
    return pa.array([None if cell is None else str(UUID(bytes=cell)) for cell in cells], pa.string())


def _of_floats(column: pa.Array, name: str, verdicts: Verdicts) -> pa.Array:
    values = as_floats(column)
    missing = np.isnan(values)
    with np.errstate(invalid="ignore"):
        fractional = ~missing & ((values != np.floor(values)) | np.isinf(values))
        inexact = ~missing & ~fractional & is_inexact(values, column.type)
    for bad, reason in ((fractional, "not a whole number"), (inexact, f"not exact in a column of {column.type}")):
        verdicts.reject(bad, Fault(column=name, reason=reason, allowed=_ALLOWED, values=column))
    unusable = missing | fractional | inexact
    return pa.array(np.where(unusable, 0, values).astype(np.int64), mask=unusable).cast(pa.string())


def _of_times(column: pa.Array, name: str, verdicts: Verdicts) -> pa.Array:
    if t.is_timestamp(column.type) and column.type.tz is not None:
        column = column.cast(pa.timestamp(column.type.unit, "UTC"))
    texts = column.cast(pa.string())
    beyond = mask_of(pc.starts_with(texts, _NO_DATE))
    verdicts.reject(beyond, Fault(column=name, reason="no such date", allowed=_ALLOWED, values=None))
    return _without_zeros(texts)


def _without_zeros(texts: pa.Array) -> pa.Array:
    """Return the texts without zeros at the end of a fraction, and without a fraction that is all zeros."""
    shorter = pc.replace_substring_regex(texts, r"(\.[0-9]*?)0+(Z?)$", r"\1\2")
    return pc.replace_substring_regex(shorter, r"\.(Z?)$", r"\1")
