"""Arrow types by what they mean: how a column is laid out in memory or in a file is not our business.

pandas 2 writes ``string``, pandas 3 ``large_string``, polars ``string_view`` and categoricals a dictionary, all for
the same strings. ``plain`` gives all of them one type.
"""

import pyarrow as pa
import pyarrow.types as t


def plain(kind: pa.DataType) -> pa.DataType:
    """The type of the same values without dictionaries, views, 64-bit offsets and nullability."""
    if t.is_dictionary(kind) or t.is_run_end_encoded(kind):
        return plain(kind.value_type)
    if t.is_large_string(kind) or t.is_string_view(kind):
        return pa.string()
    if t.is_large_binary(kind) or t.is_binary_view(kind):
        return pa.binary()
    return _plain_nested(kind) if t.is_nested(kind) else kind


def _plain_nested(kind: pa.DataType) -> pa.DataType:
    if t.is_fixed_size_list(kind):
        return pa.list_(plain(kind.value_type), kind.list_size)
    if is_list(kind):
        return pa.list_(plain(kind.value_type))
    if t.is_map(kind):
        return pa.map_(plain(kind.key_type), plain(kind.item_type))
    if t.is_struct(kind):
        return pa.struct([pa.field(field.name, plain(field.type)) for field in kind])
    return kind


def as_plain(column: pa.Array) -> pa.Array:
    """Return the same values as their plain type."""
    if "list_view" in str(column.type):  # pyarrow 26 makes broken lists of them
        return pa.array(column.to_pylist(), plain(column.type))
    return column.cast(plain(column.type))


def is_list(kind: pa.DataType) -> bool:
    """Any list, whatever its layout."""
    checks = (t.is_list, t.is_large_list, t.is_fixed_size_list, t.is_list_view, t.is_large_list_view)
    return any(check(kind) for check in checks)


def holds_text(kind: pa.DataType) -> bool:
    """Floating too: pandas writes a column without values so; the cells are looked at one by one."""
    kind = plain(kind)
    return bool(t.is_string(kind) or t.is_floating(kind) or t.is_null(kind))


def holds_names(kind: pa.DataType) -> bool:
    kind = plain(kind)
    checks = (t.is_boolean, t.is_date, t.is_time, t.is_timestamp, t.is_binary, t.is_fixed_size_binary)
    return holds_numbers(kind) or any(check(kind) for check in checks) or isinstance(kind, pa.UuidType)


def holds_numbers(kind: pa.DataType) -> bool:
    """Text too, and floating for whole numbers, as pandas writes those with nulls; the cells are looked at one by one.

    Booleans, dates and durations are no numbers, though they are stored as such.
    """
    kind = plain(kind)
    return any(check(kind) for check in (t.is_integer, t.is_floating, t.is_decimal, t.is_string, t.is_null))


def holds_lists_of_numbers(kind: pa.DataType) -> bool:
    kind = plain(kind)
    return holds_numbers(kind.value_type) if is_list(kind) else bool(t.is_null(kind))
