"""Cells of Arrow as values of Python, also those that Python has no place for: a manifest may hold any."""

from datetime import datetime
from typing import Any, Literal

import pyarrow as pa

from pipeline.output.moments import as_text, beyond_python

_NO_PLACE = (pa.ArrowException, ArithmeticError, ValueError, LookupError, TypeError)
"""What is raised for a time beyond the years 1 to 9999, an unknown time zone, broken text, a field twice, structures as
keys of a map."""

Maps = Literal["lossy"] | None
"""As ``maps_as_pydicts`` of ``to_pylist``: a dictionary with the last of equal keys, or a list of pairs."""


def python_values(column: pa.Array | pa.ChunkedArray, maps: Maps = None) -> list[Any]:
    """As ``to_pylist``, but never raises for what cells hold.

    A time in an unknown zone is given in UTC. A date, time or duration that Python cannot hold exactly is text
    (``moments.as_text``). Bytes that are no UTF-8 text are replaced, as in ``str.decode``.
    """
    try:
        if beyond_python(column):
            return [_value(scalar, maps) for scalar in column]
        values: list[Any] = column.to_pylist(maps_as_pydicts=maps)
    except _NO_PLACE:
        return [_value(scalar, maps) for scalar in column]
    return values


def python_rows(rows: pa.Table, maps: Maps = None) -> list[dict[str, Any]]:
    """Return every row as a dictionary of such values."""
    columns = [python_values(column, maps) for column in rows.columns]
    return [dict(zip(rows.column_names, values, strict=True)) for values in zip(*columns, strict=True)]


def _value(scalar: pa.Scalar, maps: Maps) -> Any:
    if not scalar.is_valid:
        return None
    if isinstance(scalar, pa.DictionaryScalar | pa.ExtensionScalar):
        return _value(scalar.value, maps)
    if isinstance(scalar, pa.MapScalar):
        return _map(scalar, maps)
    if isinstance(scalar, pa.ListScalar):  # large ones, views and those of fixed size as well
        return python_values(scalar.values, maps)
    if isinstance(scalar, pa.StructScalar):
        names = [field.name for field in scalar.type]
        return {name: _value(scalar[place], maps) for place, name in enumerate(names)}
    if isinstance(scalar, pa.Time64Scalar) and scalar.type.unit == "ns" and scalar.value % 1000:
        return as_text(scalar)
    try:
        return scalar.as_py()
    except _NO_PLACE:
        return _replaced(scalar)


def _map(scalar: pa.MapScalar, maps: Maps) -> Any:
    keys, values = (python_values(scalar.values.field(place), maps) for place in (0, 1))
    pairs = list(zip(keys, values, strict=True))
    try:
        return pairs if maps is None else dict(pairs)
    except TypeError:
        return pairs


def _replaced(scalar: pa.Scalar) -> Any:
    if isinstance(scalar, pa.StringScalar):
        return scalar.as_buffer().to_pybytes().decode(errors="replace")
    if isinstance(scalar, pa.TimestampScalar) and scalar.type.tz is not None:
        return _in_utc(scalar)
    return as_text(scalar)


def _in_utc(scalar: pa.TimestampScalar) -> datetime | str:
    try:
        moment: datetime = pa.scalar(scalar.value, pa.timestamp(scalar.type.unit, "UTC")).as_py()
    except _NO_PLACE:
        return as_text(scalar)
    return moment
