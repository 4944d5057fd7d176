"""Types of columns as a dataset card states them, in the words of Hugging Face's ``datasets``."""

from typing import Any

import pyarrow as pa
import pyarrow.types as t

_NAMES = {
    "halffloat": "float16",
    "float": "float32",
    "double": "float64",
    "date32[day]": "date32",
    "date64[ms]": "date64",
}
"""Where Arrow prints a type by another name than ``datasets`` has for it."""


def table_features(schema: pa.Schema) -> list[dict[str, Any]]:
    """Of the columns of a Parquet file."""
    return [{"name": field.name, **_feature(field.type)} for field in schema]


def json_features(schema: pa.Schema) -> list[dict[str, Any]]:
    """Of the same columns written as JSON (``archives.plain_json``)."""
    return [{"name": field.name, **_feature(_in_json(field.type))} for field in schema]


def _feature(kind: pa.DataType) -> dict[str, Any]:
    if t.is_struct(kind):
        return {"struct": table_features(kind)}
    if t.is_list(kind) or t.is_fixed_size_list(kind):
        inner = _feature(kind.value_type)
        length = {"length": kind.list_size} if t.is_fixed_size_list(kind) else {}
        return {"list": inner.get("dtype", inner.get("struct", inner)), **length}
    return {"dtype": _NAMES.get(str(kind), str(kind))}


def _in_json(kind: pa.DataType) -> pa.DataType:
    if t.is_struct(kind):
        return pa.struct([(field.name, _in_json(field.type)) for field in kind])
    if t.is_list(kind) or t.is_fixed_size_list(kind):
        return pa.list_(_in_json(kind.value_type))
    plain = t.is_boolean(kind) or t.is_integer(kind) or t.is_floating(kind) or t.is_null(kind)
    return kind if plain else pa.string()
