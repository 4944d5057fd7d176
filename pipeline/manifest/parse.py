"""Cells of text files as values: what a person or a program writes there, and nothing that has to be guessed."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

_WHOLE = re.compile(r"\d+(\.0*)?", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)
_CUT = re.compile(r"0\d+", re.ASCII)
_THOUSANDS = re.compile(r"\d{1,3}\.000", re.ASCII)
_EXACT = 2**53
"""Floats are whole numbers one and all below this."""
_PLAIN = "without separators of thousands"


@dataclass(frozen=True, slots=True)
class Cell:
    """How a column of ours is read."""

    parse: Callable[[Any], Any]
    """From a string, or from what JSON has; ``ValueError`` or ``OverflowError`` for what it cannot be."""
    kind: pa.DataType
    allowed: str


def _text(value: Any) -> str:
    if not isinstance(value, str) or "\0" in value:
        raise ValueError
    return value


def _name(value: Any) -> str:
    """Numbers without a fraction as text, as from Parquet."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        value = int(value)
    return str(value) if isinstance(value, int) else _text(value)


def _whole(value: Any, bits: int) -> int:
    """pandas writes 3.0 into a column of whole numbers with gaps; 3.000 may be three thousand.

    A JSON number with a fraction of 2^53 or more is refused: as a float it may be rounded from its neighbour.
    """
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip()) and not _THOUSANDS.fullmatch(value.strip()):
        value = int(value.strip().partition(".")[0])
    if isinstance(value, float) and value.is_integer() and abs(value) < _EXACT:
        value = int(value)
    if isinstance(value, bool) or not isinstance(value, int) or not 0 <= value < 2**bits:
        raise ValueError
    return value


def _whole_32(value: Any) -> int:
    return _whole(value, 32)


def _whole_64(value: Any) -> int:
    return _whole(value, 64)


def _number(value: Any) -> float:
    if isinstance(value, str) and _NUMBER.fullmatch(value.strip()):
        value = float(value)
    if isinstance(value, bool) or not isinstance(value, int | float) or not math.isfinite(value):
        raise ValueError
    return float(value)


def _seeds(value: Any) -> list[int]:
    """[1, 2], "1, 2" or "1 2". A seed such as 000 is part of a number that was cut at its thousands."""
    if isinstance(value, str):
        value = value.strip().removeprefix("[").removesuffix("]").replace(",", " ").split()
    if not isinstance(value, list) or any(isinstance(seed, str) and _CUT.fullmatch(seed) for seed in value):
        raise ValueError
    return [_whole_64(seed) for seed in value]


_TEXT = Cell(_text, pa.string(), "a text without NUL")
_SIDE = Cell(_whole_32, pa.uint32(), f"a whole number of px, {_PLAIN}")

CELLS: Mapping[str, Cell] = {
    "prompt": _TEXT,
    "prompt_id": Cell(_name, pa.string(), "a text without NUL, or a whole number"),
    "negative_prompt": _TEXT,
    "seed": Cell(_whole_64, pa.uint64(), f"a whole number from 0 to 2^64 - 1, {_PLAIN}"),
    "seeds": Cell(_seeds, pa.list_(pa.uint64()), f"a list of whole numbers from 0 to 2^64 - 1, as [1, 2], {_PLAIN}"),
    "guidance_scale": Cell(_number, pa.float64(), f"a finite number with a decimal point, {_PLAIN}"),
    "num_inference_steps": Cell(_whole_32, pa.uint32(), f"a whole number from 0, {_PLAIN}"),
    "scheduler": _TEXT,
    "width": _SIDE,
    "height": _SIDE,
}
"""By our names. Limits that depend on the model are checked when the manifest is read."""
