"""The types that Hugging Face's ``datasets`` reads, and the same values in them.

Every layout and export of a run is to open with ``load_dataset``, which has no type for maps, extension types and a
few others. The manifest's own columns are therefore kept in the nearest type that it has.
"""

from collections.abc import Callable, Sequence
from typing import Any
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as t

_UNKNOWN_ZONE = (pa.ArrowException, ValueError, LookupError)


def readable(kind: pa.DataType) -> pa.DataType:
    """Return the type that keeps the values of ``kind``; ``kind`` itself if ``datasets`` has it.

    A map becomes a list of its keys and values, a UUID and JSON become text, a tensor becomes nested lists, a time in
    an unknown zone is given in UTC. Other extension types become what they are stored as.
    """
    if isinstance(kind, pa.BaseExtensionType):
        return _of_extension(kind)
    if t.is_map(kind):
        return readable(_as_list(kind))
    if t.is_fixed_size_list(kind) or t.is_list(kind) or t.is_struct(kind):
        return _with_inner(kind, readable)
    if t.is_decimal32(kind) or t.is_decimal64(kind):
        return pa.decimal128(kind.precision, kind.scale)
    return pa.timestamp(kind.unit, "UTC") if _is_of_unknown_zone(kind) else kind


def form_warnings(schema: pa.Schema) -> tuple[str, ...]:
    """Return a sentence for each column that is kept in another type than it has."""
    return tuple(
        f"the extra column {field.name!r} is stored as {readable(field.type)} in a new output, since Hugging Face's "
        f"datasets cannot read {field.type}"
        for field in schema
        if readable(field.type) != field.type
    )


def in_readable_form(table: pa.Table) -> pa.Table:
    """Return the same rows with every column in its readable type."""
    for place, field in enumerate(table.schema):
        kind = readable(field.type)
        if kind != field.type:
            chunks = [_converted(chunk) for chunk in table.column(place).chunks]
            table = table.set_column(place, field.with_type(kind), pa.chunked_array(chunks, kind))
    return table


def readable_schema(schema: pa.Schema) -> pa.Schema:
    """Return the schema of such a table."""
    return pa.schema([field.with_type(readable(field.type)) for field in schema], schema.metadata)


def _of_extension(kind: pa.BaseExtensionType) -> pa.DataType:
    if isinstance(kind, pa.JsonType | pa.UuidType):
        return pa.string()
    if isinstance(kind, pa.Bool8Type):
        return pa.bool_()
    if isinstance(kind, pa.FixedShapeTensorType):
        nested = kind.value_type
        for length in reversed(_logical(kind, kind.shape)):
            nested = pa.list_(nested, length)
        return nested
    return readable(kind.storage_type)


def _as_list(kind: pa.MapType) -> pa.DataType:
    return pa.list_(pa.struct([("key", kind.key_type), ("value", kind.item_type)]))


def replaced(kind: pa.DataType, old: pa.DataType, new: pa.DataType) -> pa.DataType:
    """Return a readable type with one plain type in it replaced by another, however deep."""
    if kind.num_fields:
        return _with_inner(kind, lambda inner: replaced(inner, old, new))
    return new if kind == old else kind


def _with_inner(kind: pa.DataType, change: Callable[[pa.DataType], pa.DataType]) -> pa.DataType:
    """Return a list or struct with the types in it changed."""
    inner = [kind.field(place).type for place in range(kind.num_fields)]
    forms = [change(one) for one in inner]
    if forms == inner:
        return kind
    if t.is_struct(kind):
        return pa.struct([(field.name, form) for field, form in zip(kind, forms, strict=True)])
    return pa.list_(forms[0], kind.list_size) if t.is_fixed_size_list(kind) else pa.list_(forms[0])


def _is_of_unknown_zone(kind: pa.DataType) -> bool:
    if not t.is_timestamp(kind) or kind.tz is None:
        return False
    try:
        pa.scalar(0, kind).as_py()
    except _UNKNOWN_ZONE:
        return True
    return False


def _converted(column: pa.Array) -> pa.Array:
    kind = column.type
    target = readable(kind)
    if target == kind:
        return column
    if isinstance(kind, pa.BaseExtensionType):
        return _without_extension(column, target)
    if t.is_map(kind):
        return _converted_list(column.cast(_as_list(kind)), target)
    if t.is_fixed_size_list(kind):
        start, length = column.offset * kind.list_size, len(column) * kind.list_size
        values = _converted(column.values.slice(start, length))
        return pa.FixedSizeListArray.from_arrays(values, type=target, mask=column.is_null())
    if t.is_list(kind):
        return _converted_list(column, target)
    if t.is_struct(kind):
        children = [_converted(child) for child in column.flatten()]
        return pa.StructArray.from_arrays(children, fields=list(target), mask=column.is_null())
    return column.cast(target)


def _converted_list(column: pa.ListArray, target: pa.DataType) -> pa.Array:
    lengths = pc.fill_null(pc.list_value_length(column), 0).to_numpy(zero_copy_only=False)
    offsets = pa.array(np.concatenate([[0], np.cumsum(lengths)]), pa.int32())
    return pa.ListArray.from_arrays(offsets, _converted(column.flatten()), type=target, mask=column.is_null())


def _without_extension(column: pa.ExtensionArray, target: pa.DataType) -> pa.Array:
    kind = column.type
    if isinstance(kind, pa.UuidType):
        cells = column.storage.to_pylist()
        return pa.array([None if cell is None else str(UUID(bytes=cell)) for cell in cells], target)
    if isinstance(kind, pa.FixedShapeTensorType):
        return pa.array([_nested(kind, cell) for cell in column.storage.to_pylist()], target)
    return _converted(column.storage).cast(target)


def _nested(kind: pa.FixedShapeTensorType, cell: Sequence[Any] | None) -> list[Any] | None:
    """Return the values of a tensor as nested lists, its dimensions in their logical order."""
    if cell is None:
        return None
    values = np.empty(len(cell), object)
    values[:] = cell
    order = _logical(kind, range(len(kind.shape)))
    nested: list[Any] = values.reshape(kind.shape).transpose(order).tolist()
    return nested


def _logical(kind: pa.FixedShapeTensorType, sizes: Sequence[int]) -> list[int]:
    order = kind.permutation
    return [sizes[place] for place in order] if order is not None else list(sizes)
