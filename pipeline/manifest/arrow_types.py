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


def merged(one: pa.DataType, other: pa.DataType) -> pa.DataType | None:
    """The plain type that holds both without changing a value, None if there is none.

    Only "nothing but nulls" gives way, as pandas writes it for a column without values; numbers are never widened.
    """
    if one == other or t.is_null(other):
        return one
    if t.is_null(one):
        return other
    if t.is_list(one) and t.is_list(other):
        inner = merged(one.value_type, other.value_type)
        return None if inner is None else pa.list_(inner)
    if t.is_struct(one) and t.is_struct(other) and [f.name for f in one] == [f.name for f in other]:
        inners = [merged(mine.type, theirs.type) for mine, theirs in zip(one, other, strict=True)]
        return None if None in inners else pa.struct(list(zip([f.name for f in one], inners, strict=True)))
    return None


def is_list(kind: pa.DataType) -> bool:
    """Any list, whatever its layout."""
    checks = (t.is_list, t.is_large_list, t.is_fixed_size_list, t.is_list_view, t.is_large_list_view)
    return any(check(kind) for check in checks)


def holds_text(kind: pa.DataType) -> bool:
    kind = plain(kind)
    return bool(t.is_string(kind) or t.is_null(kind))


def holds_names(kind: pa.DataType) -> bool:
    return holds_text(kind) or bool(t.is_integer(plain(kind)))


def holds_whole_numbers(kind: pa.DataType) -> bool:
    """Floating too: pandas turns whole numbers with a null into floats; the cells are looked at one by one."""
    kind = plain(kind)
    return bool(t.is_integer(kind) or t.is_floating(kind) or t.is_null(kind))


def holds_numbers(kind: pa.DataType) -> bool:
    return holds_whole_numbers(kind) or bool(t.is_decimal(plain(kind)))


def holds_lists_of_whole_numbers(kind: pa.DataType) -> bool:
    kind = plain(kind)
    if not is_list(kind):
        return bool(t.is_null(kind))
    return bool(t.is_integer(kind.value_type) or t.is_null(kind.value_type))
