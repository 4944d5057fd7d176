"""Dates, times and durations that Python cannot hold exactly: where columns have them, and their text."""

from collections.abc import Iterator
from datetime import datetime, timedelta

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import pyarrow.types as t

from pipeline.output.features import leaves
from pipeline.parquet import ParquetReader
from pipeline.readable import readable

_BATCH_ROWS = 65_536
_TICKS = {"s": 1, "ms": 10**3, "us": 10**6, "ns": 10**9}
_EPOCH = datetime(1970, 1, 1)
_DAY_S = 86_400
_CYCLE_DAYS = 146_097
"""Days of 400 years, after which the Gregorian calendar repeats itself."""


def columns_beyond_python(table: ParquetReader) -> set[str]:
    """Return the columns with such a value, at any depth. Read only what statistics leave open.

    Raises ``pa.ArrowException`` or ``OSError``.
    """
    return {name for name in doubtful_columns(table) if column_beyond_python(table, name)}


def doubtful_columns(table: ParquetReader) -> set[str]:
    """Return the columns that may have such a value, by their types and statistics."""
    inner = [(field.name, kind) for field in table.schema for kind in leaves(field.type)]
    moments = [(place, name, kind) for place, (name, kind) in enumerate(inner) if _may_be_beyond(kind)]
    groups = [table.metadata.row_group(number) for number in range(table.metadata.num_row_groups)]
    return {name for group in groups for place, name, kind in moments if not _is_shown(group.column(place), kind)}


def column_beyond_python(table: ParquetReader, name: str) -> bool:
    """Tell whether a column has such a value."""
    return any(beyond_python(batch.column(0)) for batch in table.batches(_BATCH_ROWS, [name]))


def beyond_python(column: pa.Array | pa.ChunkedArray) -> bool:
    """Tell whether a column has such a value, at any depth."""
    chunks = column.chunks if isinstance(column, pa.ChunkedArray) else [column]
    return any(_is_beyond(leaf) for chunk in chunks for leaf in _leaf_columns(chunk))


def as_text(scalar: pa.Scalar) -> str:
    """Return such a value as Python would write it; a year may have more than four digits, or be negative."""
    kind = scalar.type
    ticks = _TICKS["ms" if t.is_date64(kind) else "s" if t.is_date32(kind) else kind.unit]
    seconds, part = divmod(scalar.value * (_DAY_S if t.is_date32(kind) else 1), ticks)
    days, rest = divmod(seconds, _DAY_S)
    fraction = f".{part:0{len(str(ticks)) - 1}}" if part else ""
    clock = f"{_EPOCH + timedelta(seconds=rest):%H:%M:%S}{fraction}"
    if t.is_time(kind):
        return clock
    if t.is_duration(kind):
        return f"{days} days, {clock}"
    return _date(days) if t.is_date(kind) else f"{_date(days)} {clock}{'+00:00' if kind.tz else ''}"


def _date(days: int) -> str:
    cycles, rest = divmod(days, _CYCLE_DAYS)
    found = _EPOCH + timedelta(days=rest)
    return f"{found.year + 400 * cycles:04}-{found:%m-%d}"


def _may_be_beyond(kind: pa.DataType) -> bool:
    """Tell it of the type. Timestamps and durations in nanoseconds are exact, as values of pandas."""
    if t.is_timestamp(kind) or t.is_duration(kind):
        return bool(kind.unit != "ns")
    return bool(t.is_date(kind) or kind == pa.time64("ns"))


def _is_shown(column: pq.ColumnChunkMetaData, kind: pa.DataType) -> bool:
    """Tell whether statistics show that Python holds all values of a column."""
    found = column.statistics if column.is_stats_set else None
    if found is None or t.is_time(kind):
        return False
    if not found.has_min_max:
        return bool(found.has_null_count and found.null_count == column.num_values)
    stored = pa.date32() if column.physical_type == "INT32" else readable(kind)
    return all(_is_held(pa.scalar(value, stored)) for value in (found.min_raw, found.max_raw))


def _leaf_columns(column: pa.Array) -> Iterator[pa.Array]:
    if isinstance(column, pa.ExtensionArray):
        yield from _leaf_columns(column.storage)
    elif t.is_struct(column.type):
        for child in column.flatten():
            yield from _leaf_columns(child)
    elif t.is_map(column.type):
        yield from _leaf_columns(column.keys)
        yield from _leaf_columns(column.items)
    elif t.is_nested(column.type):
        yield from _leaf_columns(column.flatten())
    else:
        yield column


def _is_beyond(column: pa.Array) -> bool:
    kind = column.type
    if not _may_be_beyond(kind):
        return False
    numbers = column.cast(pa.int32()).cast(pa.int64()) if t.is_date32(kind) else column.cast(pa.int64())
    if t.is_time(kind):
        return bool(pc.any(pc.not_equal(pc.multiply(pc.divide(numbers, 1000), 1000), numbers)).as_py())
    bounds = pc.min_max(numbers)
    kept = readable(kind)
    return not all(_is_held(pa.scalar(bounds[name].as_py(), kept)) for name in ("min", "max"))


def _is_held(scalar: pa.Scalar) -> bool:
    try:
        scalar.as_py()
    except (ValueError, OverflowError):
        return False
    return True
