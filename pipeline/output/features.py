"""Types of columns as a dataset card states them, in the words of Hugging Face's ``datasets``."""

from collections.abc import Iterator
from collections.abc import Set as AbstractSet
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pyarrow.types as t

from pipeline.parquet import ParquetReader
from pipeline.storage.base import ObjectStore

_NAMES = {
    "halffloat": "float16",
    "float": "float32",
    "double": "float64",
    "date32[day]": "date32",
    "date64[ms]": "date64",
}
"""Where Arrow prints a type by another name than ``datasets`` has for it."""


_IMAGEFOLDER_PATHS = ("_file_name", "_file_names")
MAX_INTEGER = 2**63 - 1
"""The largest whole number that ``datasets`` takes from Python objects as an integer."""


def table_features(schema: pa.Schema, large: AbstractSet[str] = frozenset()) -> list[dict[str, Any]]:
    """Return the features of the columns of a Parquet file.

    ``large``: columns with whole numbers above ``MAX_INTEGER`` that ``datasets`` has as JSON.
    """
    return [{"name": field.name, **_feature(field.type, field.name in large)} for field in schema]


def json_features(schema: pa.Schema, large: AbstractSet[str] = frozenset()) -> list[dict[str, Any]]:
    """Return the features of the same columns written as JSON (``archives.plain_json``)."""
    return [{"name": field.name, **_feature(_in_json(field.type), field.name in large)} for field in schema]


def names_paths(schema: pa.Schema) -> bool:
    """Whether ``imagefolder`` takes a column of the manifest's own, or a field in it, for paths of images."""
    return any(
        field.name.endswith(_IMAGEFOLDER_PATHS) or field.name == "file_names" or _names_inner_paths(field.type)
        for field in schema
    )


def large_columns(store: ObjectStore, key: str) -> set[str]:
    """Return the columns of a table that hold a whole number above ``MAX_INTEGER``, in themselves or in a field."""
    with store.open(key) as file:
        table = ParquetReader(file)
        found = [(field.name, kind) for field in table.schema for kind in leaves(field.type)]
        numbers = [(place, name) for place, (name, kind) in enumerate(found) if t.is_uint64(kind)]
        groups = map(table.metadata.row_group, range(table.metadata.num_row_groups))
        return {name for group in groups for place, name in numbers if _is_large(group.column(place))}


def _is_large(column: pq.ColumnChunkMetaData) -> bool:
    known = column.is_stats_set and column.statistics.has_min_max
    return bool(known and column.statistics.max > MAX_INTEGER)


def leaves(kind: pa.DataType) -> Iterator[pa.DataType]:
    """Yield the types of the columns of a Parquet file that hold a column of this type."""
    if isinstance(kind, pa.BaseExtensionType):
        yield from leaves(kind.storage_type)
    elif kind.num_fields:
        for place in range(kind.num_fields):
            yield from leaves(kind.field(place).type)
    else:
        yield kind


def _names_inner_paths(kind: pa.DataType) -> bool:
    fields = [kind.field(place) for place in range(kind.num_fields)]
    return any(
        (t.is_struct(kind) and (inner.name == "file_name" or names_paths(pa.schema([inner]))))
        or _names_inner_paths(inner.type)
        for inner in fields
    )


def _feature(kind: pa.DataType, large: bool = False) -> dict[str, Any]:
    if t.is_struct(kind):
        return {"struct": [{"name": field.name, **_feature(field.type, large)} for field in kind]}
    if t.is_list(kind) or t.is_fixed_size_list(kind):
        inner = _feature(kind.value_type, large)
        length = {"length": kind.list_size} if t.is_fixed_size_list(kind) else {}
        return {"list": inner.get("dtype", inner.get("struct", inner)), **length}
    return {"dtype": "json" if large and t.is_uint64(kind) else _NAMES.get(str(kind), str(kind))}


def _in_json(kind: pa.DataType) -> pa.DataType:
    if t.is_struct(kind):
        return pa.struct([(field.name, _in_json(field.type)) for field in kind])
    if t.is_list(kind) or t.is_fixed_size_list(kind):
        return pa.list_(_in_json(kind.value_type))
    plain = t.is_boolean(kind) or t.is_integer(kind) or t.is_floating(kind) or t.is_null(kind)
    return kind if plain else pa.string()
