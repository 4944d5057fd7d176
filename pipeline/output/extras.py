"""A manifest's extra columns, whose types may differ from part to part."""

from collections.abc import Sequence

import pyarrow as pa

from pipeline.output.schema import METADATA_SCHEMA
from pipeline.output.values import python_values


def united(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """The schema that takes rows of all these: numbers are widened; where that is no type, the columns become text."""
    try:
        return _promoted(schemas)
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        return with_texts(schemas)


def with_texts(schemas: Sequence[pa.Schema]) -> pa.Schema:
    """The schema in which every extra column of several types is text."""
    types: dict[str, set[pa.DataType]] = {}
    for field in (field for schema in schemas for field in schema if not pa.types.is_null(field.type)):
        types.setdefault(field.name, set()).add(field.type)
    several = [name for name, found in types.items() if len(found) > 1]
    texts = [pa.schema([_as_text(field) if field.name in several else field for field in s]) for s in schemas]
    return _promoted(texts)


def conformed(rows: pa.Table, schema: pa.Schema) -> pa.Table:
    """The same rows with these columns. Raises ``ArrowInvalid`` for a number that has no place in a wider type."""
    if rows.schema.equals(schema):
        return rows
    return pa.table([_column(rows, field) for field in schema], schema=schema)


def _promoted(schemas: Sequence[pa.Schema]) -> pa.Schema:
    tables = [schema.empty_table() for schema in (METADATA_SCHEMA, *schemas)]
    whole = pa.concat_tables(tables, promote_options="permissive").schema
    own = len(METADATA_SCHEMA)
    return pa.schema([*METADATA_SCHEMA, *(field.with_nullable(True) for field in list(whole)[own:])])


def _as_text(field: pa.Field) -> pa.Field:
    return field if pa.types.is_null(field.type) else pa.field(field.name, pa.string())


def _column(rows: pa.Table, field: pa.Field) -> pa.ChunkedArray | pa.Array:
    if field.name not in rows.column_names:
        return pa.nulls(rows.num_rows, field.type)
    column = rows[field.name]
    if column.type != field.type and pa.types.is_string(field.type) and not pa.types.is_null(column.type):
        return pa.array([None if value is None else str(value) for value in python_values(column)], field.type)
    return column.cast(field.type)
