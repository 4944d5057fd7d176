"""Cells of text files as values: what a person or a program writes there, and nothing that has to be guessed."""

import math
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import pyarrow as pa

_WHOLE = re.compile(r"\d+(\.0*)?", re.ASCII)
_NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)(e[+-]?\d+)?", re.ASCII | re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Cell:
    """How a column of ours is read."""

    parse: Callable[[Any], Any]
    """From a string, or from what JSON has; ``ValueError`` or ``OverflowError`` for what it cannot be."""
    kind: pa.DataType
    allowed: str


def _text(value: Any) -> str:
    if not isinstance(value, str):
        raise ValueError
    return value


def _name(value: Any) -> str:
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else _text(value)


def _whole(value: Any, bits: int) -> int:
    """pandas writes 3.0 into a column of whole numbers with gaps."""
    if isinstance(value, str) and _WHOLE.fullmatch(value.strip()):
        value = int(value.strip().partition(".")[0])
    if isinstance(value, float) and value.is_integer():
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
    """[1, 2], "1, 2" or "1 2"."""
    if isinstance(value, str):
        value = value.strip().removeprefix("[").removesuffix("]").replace(",", " ").split()
    if not isinstance(value, list):
        raise ValueError
    return [_whole_64(seed) for seed in value]


_TEXT = Cell(_text, pa.string(), "a text")
_SIDE = Cell(_whole_32, pa.uint32(), "a whole number of px")

CELLS: Mapping[str, Cell] = {
    "prompt": _TEXT,
    "prompt_id": Cell(_name, pa.string(), "a text or a whole number"),
    "negative_prompt": _TEXT,
    "seed": Cell(_whole_64, pa.uint64(), "a whole number from 0"),
    "seeds": Cell(_seeds, pa.list_(pa.uint64()), "a list of whole numbers from 0, as [1, 2]"),
    "guidance_scale": Cell(_number, pa.float64(), "a finite number"),
    "num_inference_steps": Cell(_whole_32, pa.uint32(), "a whole number from 0"),
    "scheduler": _TEXT,
    "width": _SIDE,
    "height": _SIDE,
}
"""By our names. Limits that depend on the model are checked when the manifest is read."""
