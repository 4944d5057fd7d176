"""Cells of Arrow as values of Python, also those that Python has no place for: a manifest may hold any."""

from datetime import datetime
from typing import Any, Literal

import pyarrow as pa

_NO_PLACE = (pa.ArrowException, ArithmeticError, ValueError, LookupError, TypeError)
"""What is raised for a time beyond the years 1 to 9999, an unknown time zone, broken text, a field twice, structures as
keys of a map."""

Maps = Literal["lossy"] | None
"""As ``maps_as_pydicts`` of ``to_pylist``: a dictionary with the last of equal keys, or a list of pairs."""


def python_values(column: pa.Array | pa.ChunkedArray, maps: Maps = None) -> list[Any]:
    """As ``to_pylist``, but never raises for what cells hold.

    A time in an unknown zone is given in UTC. A time or duration that Python cannot hold is its number as text, in the
    column's unit and since 1970 where it is a date. Bytes that are no UTF-8 text are replaced, as in ``str.decode``.
    """
    try:
        values: list[Any] = column.to_pylist(maps_as_pydicts=maps)
    except _NO_PLACE:
        return [_value(scalar, maps) for scalar in column]
    return values


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
    return str(scalar.value)


def _in_utc(scalar: pa.TimestampScalar) -> datetime | str:
    try:
        moment: datetime = pa.scalar(scalar.value, pa.timestamp(scalar.type.unit, "UTC")).as_py()
    except _NO_PLACE:
        return str(scalar.value)
    return moment
