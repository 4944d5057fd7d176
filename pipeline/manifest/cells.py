"""From the cells of a file to the cells of a batch: each column checked, then given its type."""

from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as t
from numpy.typing import NDArray

from pipeline.errors import InputError
from pipeline.manifest import arrow_types
from pipeline.manifest import numbers as numbers_in
from pipeline.manifest.blocklist import Blocklist
from pipeline.manifest.names import as_names
from pipeline.manifest.numbers import mask_of
from pipeline.manifest.rules import RowRules
from pipeline.manifest.verdicts import Fault, Verdicts
from pipeline.output.extras import converted
from pipeline.samplers import scheduler_named
from pipeline.schedulers import scheduler_of

_BLANK_ALLOWED = "a text with something in it"
_SEEDS = pa.list_(pa.uint64())


def text(column: pa.Array, name: str, verdicts: Verdicts, *, required: bool = False) -> pa.Array:
    """Return strings without NUL; blank becomes null, or is refused where the column is required.

    A column of floats stands for one without values, which pandas writes so; any number in it is refused.
    """
    column = _decoded(column)
    if t.is_floating(column.type):
        column = _no_texts(column, name, verdicts)
    column = _valid_utf8(column, name, verdicts)
    has_nul = mask_of(pc.match_substring(column, "\0"))
    verdicts.reject(has_nul, Fault(column=name, reason="NUL character", allowed="text without NUL", values=column))
    blank = mask_of(pc.equal(pc.utf8_trim_whitespace(column), ""))
    if required:
        missing = mask_of(pc.is_null(column))
        verdicts.reject(missing, Fault(column=name, reason=f"null {name}", allowed=_BLANK_ALLOWED, values=column))
        verdicts.reject(blank, Fault(column=name, reason=f"blank {name}", allowed=_BLANK_ALLOWED, values=column))
    return pc.if_else(pa.array(blank), pa.scalar(None, pa.string()), column)


def blocked(column: pa.Array, name: str, verdicts: Verdicts, blocklist: Blocklist | None) -> None:
    """Refuse the texts that hold a term of the list."""
    if blocklist is None:
        return
    found = [None if text is None else blocklist.found_in(text) for text in column.to_pylist()]
    allowed = "prompts without the terms of prompts.blocklist"
    for term in dict.fromkeys(filter(None, found)):
        bad = np.array([other == term for other in found], np.bool_)
        verdicts.reject(bad, Fault(column=name, reason=f"blocked term {term!r}", allowed=allowed, values=column))


def names(column: pa.Array, name: str, verdicts: Verdicts) -> pa.Array:
    """Return ids of any plain type as strings."""
    column = _decoded(column)
    if not t.is_string(column.type):
        column = as_names(column, name, verdicts)
    return text(column, name, verdicts)


def whole_numbers(
    column: pa.Array, name: str, verdicts: Verdicts, low: int, high: int, kind: pa.DataType, divisor: int = 1
) -> pa.Array:
    """Return whole numbers within ``low .. high`` that are multiples of ``divisor``; NaN and blank text are null."""
    column = _numeric(column, name, verdicts)
    found = numbers_in.whole_numbers(column, low, high)
    allowed = f"a whole number from {low} to {high}" + (f" that divides by {divisor}" if divisor > 1 else "")
    for bad, fault in found.faults(column, name, allowed):
        verdicts.reject(bad, fault)
    uneven = found.usable & (np.mod(found.values, divisor) != 0)
    verdicts.reject(uneven, Fault(column=name, reason="does not divide", allowed=allowed, values=column))
    return pa.array(found.values, mask=~found.usable).cast(kind)


def numbers(column: pa.Array, name: str, verdicts: Verdicts, high: float) -> pa.Array:
    """Return finite numbers from 0 to ``high``; NaN and blank text are null."""
    column = _numeric(column, name, verdicts)
    found = numbers_in.real_numbers(column, high)
    for bad, fault in found.faults(column, name, f"a number from 0 to {high:g}"):
        verdicts.reject(bad, fault)
    return pa.array(found.values, pa.float64(), mask=~found.usable)


def seed_lists(column: pa.Array, name: str, verdicts: Verdicts, high: int) -> pa.Array:
    """Lists of distinct seeds; null keeps the sweep's."""
    if t.is_null(column.type):
        return column.cast(_SEEDS)
    column = untouched(column, name, verdicts, arrow_types.plain(column.type))
    lengths = pc.list_value_length(column).fill_null(-1).to_numpy(zero_copy_only=False)
    rows = pc.list_parent_indices(column).to_numpy(zero_copy_only=False)
    found = numbers_in.whole_numbers(pc.list_flatten(column), 0, high)
    seeds = found.values
    bad = lengths == 0
    bad[rows[~found.usable]] = True
    allowed = f"a list of whole numbers from 0 to {high}, not empty, without null"
    verdicts.reject(bad, Fault(column=name, reason="unusable seeds", allowed=allowed, values=column))
    kept = _first_times(rows, seeds) & ~bad[rows]
    return _lists(rows[kept], seeds[kept], (lengths >= 0) & ~bad)


def single_seeds(column: pa.Array, name: str, verdicts: Verdicts, high: int) -> pa.Array:
    """One seed a row, as lists of one."""
    seeds = whole_numbers(column, name, verdicts, 0, high, pa.uint64())
    present = mask_of(pc.is_valid(seeds))
    return _lists(np.flatnonzero(present), seeds.drop_null().to_numpy(), present)


def schedulers(column: pa.Array, name: str, verdicts: Verdicts, rules: RowRules) -> pa.Array:
    """Schedulers in their canonical text; blank and null keep the sweep's."""
    encoded = text(column, name, verdicts).dictionary_encode()
    texts = [_canonical(given, rules) for given in encoded.dictionary.to_pylist()]
    known = pa.array(texts, pa.string()).take(encoded.indices)
    unknown = mask_of(pc.is_null(known)) & ~mask_of(pc.is_null(encoded))
    allowed = (
        _of_other_programs(encoded.dictionary.to_pylist(), rules)
        + ", ".join(sorted(_offered(rules)))
        + "".join(f"; no list of {kind} for this model" for kind in ("timesteps", "sigmas") if kind not in rules.lists)
    )
    verdicts.reject(unknown, Fault(column=name, reason="no such scheduler", allowed=allowed, values=column))
    return known


def _of_other_programs(given: list[str], rules: RowRules) -> str:
    """Our names for the samplers of the web UI among the texts, as far as the model takes them."""
    named = {text: scheduler_named(text) for text in given if _canonical(text, rules) is None}
    known = [
        f"{ours} for {text!r}"
        for text, ours in named.items()
        if ours and _canonical(ours, rules) and scheduler_of(ours).name in _offered(rules)
    ]
    return f"{', '.join(known)}; " if known else ""


def _offered(rules: RowRules) -> frozenset[str]:
    return rules.schedulers if rules.offered is None else rules.offered


def _canonical(given: str, rules: RowRules) -> str | None:
    try:
        scheduler = scheduler_of(given)
    except InputError:
        return None
    fits = scheduler.name in rules.schedulers and (scheduler.listed is None or scheduler.listed in rules.lists)
    return scheduler.text if fits else None


def sides_together(width: pa.Array, height: pa.Array, name: str, verdicts: Verdicts) -> None:
    """A row has both or neither."""
    alone = mask_of(pc.is_null(width)) != mask_of(pc.is_null(height))
    verdicts.reject(alone, Fault(column=name, reason="width or height alone", allowed="both, or neither", values=width))


def untouched(column: pa.Array, name: str, verdicts: Verdicts, kind: pa.DataType) -> pa.Array:
    """An extra column as it is, but for rows with broken text anywhere in them, which nobody could read back."""
    if t.is_dictionary(column.type):
        column = column.dictionary_decode()
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        broken = np.array([not _is_valid(column.take([row])) for row in range(len(column))], np.bool_)
        verdicts.reject(broken, Fault(column=name, reason="not UTF-8", allowed="text in UTF-8", values=None))
        column = column.take(pa.array(np.arange(len(column)), mask=broken))
    return converted(arrow_types.as_plain(column), kind)


def _first_times(rows: NDArray[np.integer[Any]], seeds: NDArray[np.integer[Any]]) -> NDArray[np.bool_]:
    """Where a row's seed is not one that the row has already had."""
    order = np.lexsort((seeds, rows))  # stable: of equal ones the first stays first
    again = (rows[order][1:] == rows[order][:-1]) & (seeds[order][1:] == seeds[order][:-1])
    first = np.ones(len(rows), np.bool_)
    first[order[1:][again]] = False
    return first


def _lists(rows: NDArray[np.integer[Any]], seeds: NDArray[np.integer[Any]], present: NDArray[np.bool_]) -> pa.Array:
    """One list for each row that is ``present``, null for the others; ``rows`` says in order where each seed goes."""
    offsets = np.zeros(len(present) + 1, np.int32)
    offsets[1:] = np.cumsum(np.bincount(rows, minlength=len(present)))
    values = pa.array(seeds.astype(np.uint64), pa.uint64())
    return pa.ListArray.from_arrays(pa.array(offsets), values, type=_SEEDS, mask=pa.array(~present))


def _decoded(column: pa.Array) -> pa.Array:
    """Without dictionaries, views and large offsets; a column of nothing but nulls counts as text."""
    if t.is_dictionary(column.type):
        column = column.dictionary_decode()
    if t.is_large_string(column.type) or t.is_string_view(column.type) or t.is_null(column.type):
        return column.cast(pa.string())
    return column


def _numeric(column: pa.Array, name: str, verdicts: Verdicts) -> pa.Array:
    """Return the column decoded; broken text in it refuses its row."""
    column = _decoded(column)
    return _valid_utf8(column, name, verdicts) if t.is_string(column.type) else column


def _no_texts(column: pa.Array, name: str, verdicts: Verdicts) -> pa.Array:
    numbers = ~np.isnan(numbers_in.as_floats(column))
    verdicts.reject(numbers, Fault(column=name, reason="not a text", allowed="a text", values=column))
    return pa.nulls(len(column), pa.string())


def _valid_utf8(column: pa.Array, name: str, verdicts: Verdicts) -> pa.Array:
    """Parquet promises UTF-8 and nobody checks; one broken cell would break every later step."""
    try:
        column.validate(full=True)
        return column
    except pa.ArrowInvalid:
        raw = column.cast(pa.binary()).to_pylist()
    broken = np.array([cell is not None and not _is_utf8(cell) for cell in raw], np.bool_)
    cells = [None if cell is None else cell.decode("utf-8", "backslashreplace") for cell in raw]
    column = pa.array(cells, pa.string())
    verdicts.reject(broken, Fault(column=name, reason="not UTF-8", allowed="text in UTF-8", values=column))
    return column


def _is_valid(column: pa.Array) -> bool:
    try:
        column.validate(full=True)
    except pa.ArrowInvalid:
        return False
    return True


def _is_utf8(cell: bytes) -> bool:
    try:
        cell.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return True
