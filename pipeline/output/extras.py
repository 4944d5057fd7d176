"""A manifest's extra columns, whose types may differ from file to file, and from part to part."""

from collections.abc import Iterable, Mapping, Sequence
from typing import TypeVar

import pyarrow as pa
import pyarrow.types as t

from pipeline.output.schema import METADATA_SCHEMA
from pipeline.output.values import python_values

AnyArray = TypeVar("AnyArray", pa.Array, pa.ChunkedArray)


def united(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """Return the schema that takes rows of all these."""
    return _schema({name: united_type(kinds) for name, kinds in _extra_types(schemas).items()})


def with_texts(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """Return the schema in which every extra column of several types is text."""
    several = {name: [kind for kind in kinds if not t.is_null(kind)] for name, kinds in _extra_types(schemas).items()}
    return _schema({name: pa.string() if len(kinds) > 1 else united_type(kinds) for name, kinds in several.items()})


def united_type(kinds: Iterable[pa.DataType]) -> pa.DataType:
    """Return the type that takes values of all these: numbers are widened; where there is no such type, it is text.

    A number may still have no exact place in the wider type: then ``converted`` raises, and the column has to be text.
    """
    tables = [pa.Table.from_batches([], pa.schema([("x", kind)])) for kind in kinds]
    try:
        return pa.concat_tables(tables, promote_options="permissive").schema.field(0).type if tables else pa.null()
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return pa.string()


def converted(column: AnyArray, kind: pa.DataType) -> AnyArray | pa.Array:
    """Return the column as a type that ``united_type`` gave for it; what becomes text is written as Python writes it.

    Raises ``pa.ArrowException`` for a number that has no place in the wider type.
    """
    if column.type != kind and t.is_string(kind) and not t.is_null(column.type):
        return pa.array([None if value is None else str(value) for value in python_values(column)], kind)
    if t.is_decimal(column.type) and t.is_floating(kind):  # Arrow's own conversion gives 29.990000000000002 for 29.99
        column = column.cast(pa.string())
    return column.cast(kind)


def conformed(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The same rows with these columns. Raises ``ArrowInvalid`` for a number that has no place in a wider type."""
    if rows.schema.equals(schema):
        return rows
    return pa.table([_column(rows, field) for field in schema], schema=schema)


def _extra_types(schemas: Sequence[pa.Schema]) -> dict[str, dict[pa.DataType, None]]:
    """Every extra column's types, in the order in which they come."""
    types: dict[str, dict[pa.DataType, None]] = {}
    for field in (field for schema in schemas for field in schema if field.name not in METADATA_SCHEMA.names):
        types.setdefault(field.name, {})[field.type] = None
    return types


def _schema(extras: Mapping[str, pa.DataType]) -> pa.Schema:
    return pa.schema([*METADATA_SCHEMA, *extras.items()])


def _column(rows: pa.Table, field: pa.Field) -> pa.ChunkedArray | pa.Array:
    if field.name not in rows.column_names:
        return pa.nulls(rows.num_rows, field.type)
    return converted(rows[field.name], field.type)
