"""Exact numbers from any column that can hold them: integers, floats, decimals and text."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.types as t
from numpy.typing import NDArray

from pipeline.manifest.verdicts import Fault

Mask = NDArray[np.bool_]

_WHOLE = r"^[+-]?[0-9]+(\.0*)?$"
_DIGITS = r"^[+-]?0*([0-9]+?)(?:\.0*)?$"
_NUMBER = r"^[+-]?([0-9]+\.?[0-9]*|\.[0-9]+)([eE][+-]?[0-9]+)?$"
_THOUSANDS = r"^[+-]?[0-9]{1,3}\.000$"
"""A text that may be a number of thousands, as in text files; decimals have no such doubt."""
_LAST_64_BITS = str(2**64 - 1)
_EXACT_BITS = {16: 11, 32: 24, 64: 53}
"""Bits of a float → bits of the whole numbers that it holds one and all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Numbers:
    """The numbers of a column, 0 where a cell has none that can be used."""

    values: NDArray[Any]
    """uint64 or float64."""
    missing: Mask
    """Cells that are null, NaN or blank."""
    bad: tuple[tuple[str, Mask], ...]
    """Reasons, and which cells have them."""

    @property
    def usable(self) -> Mask:
        usable = ~self.missing
        for _, mask in self.bad:
            usable &= ~mask
        return usable

    def faults(self, column: pa.Array, name: str, allowed: str) -> list[tuple[Mask, Fault]]:
        """Return each fault with the mask of its cells."""
        return [(mask, Fault(column=name, reason=reason, allowed=allowed, values=column)) for reason, mask in self.bad]


def whole_numbers(column: pa.Array, low: int, high: int) -> Numbers:
    """Return the whole numbers from ``low`` to ``high``, where ``0 <= low`` and ``high < 2**64``.

    The column is plain (``cells.decoded``). A float of 2^53 or more (in smaller types 2^24 and 2^11) is refused: it
    may be rounded from a neighbour.
    """
    if t.is_floating(column.type):
        return _of_floats(column, low, high)
    if t.is_integer(column.type):
        missing = mask_of(pc.is_null(column))
        values = column.fill_null(0).to_numpy(zero_copy_only=False)
        return _in_range(values, missing, low, high)
    cut = np.zeros(len(column), np.bool_)
    if t.is_string(column.type):
        cut = mask_of(pc.match_substring_regex(pc.utf8_trim_whitespace(column), _THOUSANDS))
    return _of_texts(_digits(column), low, high, cut)


def real_numbers(column: pa.Array, high: float) -> Numbers:
    """Return the finite numbers from 0 to ``high`` as floats. The column is plain (``cells.decoded``).

    Decimals are read as Arrow reads them, which gives 7.300000000000001 for 7.3: runs made so continue.
    """
    no_number = np.zeros(len(column), np.bool_)
    if t.is_string(column.type) or t.is_null(column.type):
        texts = pc.utf8_trim_whitespace(column.cast(pa.string()))
        texts = pc.if_else(pc.equal(texts, ""), None, texts)
        no_number = mask_of(pc.invert(pc.match_substring_regex(texts, _NUMBER)))
        column = pc.utf8_ltrim(pc.if_else(pa.array(no_number), None, texts), "+")
    values = as_floats(column)
    missing = np.isnan(values) & ~no_number
    infinite = np.isinf(values)
    with np.errstate(invalid="ignore"):
        outside = ~infinite & ((values < 0) | (values > high))
    bad = (("not a number", no_number), ("not finite", infinite), ("out of range", outside))
    return Numbers(values=values, missing=missing, bad=bad)


def is_inexact(values: NDArray[np.float64], kind: pa.DataType) -> Mask:
    """Tell which floats are so large that they may be rounded from a whole number their type does not hold."""
    return np.abs(values) >= 2.0 ** _EXACT_BITS[kind.bit_width]


def as_floats(column: pa.Array) -> NDArray[np.float64]:
    """Return the column as floats; null becomes NaN."""
    values: NDArray[np.float64] = column.cast(pa.float64(), safe=False).to_numpy(zero_copy_only=False)
    return values.astype(np.float64)


def mask_of(mask: pa.Array) -> Mask:
    """Return a mask in which null counts as false."""
    filled: Mask = pc.fill_null(mask, False).to_numpy(zero_copy_only=False)
    return filled


def _digits(column: pa.Array) -> pa.Array:
    """Return texts or decimals as text; Arrow writes a decimal 0 with many places as ``0E-10``."""
    texts = column.cast(pa.string())
    return pc.replace_substring_regex(texts, r"^0E-[0-9]+$", "0") if t.is_decimal(column.type) else texts


def _of_floats(column: pa.Array, low: int, high: int) -> Numbers:
    values = as_floats(column)
    missing = np.isnan(values)
    with np.errstate(invalid="ignore"):
        fractional = ~missing & (values != np.floor(values))
        outside = ~missing & ((values < low) | (values >= float(high + 1)))
        inexact = ~missing & ~outside & is_inexact(values, column.type)
    usable = ~(missing | fractional | outside | inexact)
    return Numbers(
        values=np.where(usable, values, 0).astype(np.uint64),
        missing=missing,
        bad=(
            ("not a whole number", fractional),
            ("out of range", outside),
            (f"not exact in a column of {column.type}", inexact),
        ),
    )


def _of_texts(texts: pa.Array, low: int, high: int, cut: Mask) -> Numbers:
    """Decimals come here as well, as the text of their digits."""
    texts = pc.utf8_trim_whitespace(texts)
    missing = mask_of(pc.is_null(texts)) | mask_of(pc.equal(texts, ""))
    whole = mask_of(pc.match_substring_regex(texts, _WHOLE)) & ~cut
    digits = pc.replace_substring_regex(texts, _DIGITS, r"\1")
    length = pc.utf8_length(digits)
    longest = len(_LAST_64_BITS)
    beyond = mask_of(pc.greater(length, longest))
    beyond |= mask_of(pc.and_(pc.equal(length, longest), pc.greater(digits, _LAST_64_BITS)))
    negative = mask_of(pc.starts_with(texts, "-")) & ~mask_of(pc.equal(digits, "0"))
    outside = whole & (beyond | negative)
    values = pc.if_else(pa.array(whole & ~outside), digits, "0").cast(pa.uint64()).to_numpy()
    found = _in_range(values, missing | ~whole | outside, low, high)
    ((reason, more),) = found.bad
    bad = (("not a whole number", ~missing & ~whole), (reason, outside | more))
    return Numbers(values=found.values, missing=missing, bad=bad)


def _in_range(values: NDArray[np.integer[Any]], missing: Mask, low: int, high: int) -> Numbers:
    outside = ~missing & ((values < low) | (values > high))
    kept = np.where(missing | outside, 0, values).astype(np.uint64)
    return Numbers(values=kept, missing=missing, bad=(("out of range", outside),))
