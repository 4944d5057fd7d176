"""Rows of a manifest that are bad among good ones, and rows that only look it."""

import random
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from decimal import Decimal
from functools import partial
from pathlib import Path
from typing import Any

import pyarrow as pa

from tests.faults.trials import Cells, Make, Trial, good_rows, settings, write_rows

Draw = Callable[[random.Random], Cells]
INF, NAN = float("inf"), float("nan")
_INT, _FLOAT = pa.int64(), pa.float64()

_GOOD: Mapping[str, tuple[Any, ...]] = {
    "seed": (None, 0, 7, 2**32 - 1, 2**53 - 1),
    "seeds": (None, [0], [3, 1, 3], [2**62]),
    "guidance_scale": (None, 0.0, 1.0, 7.5, 1000.0),
    "steps": (None, 1, 4, 1000),
    "scheduler": (None, " ", "ddim", "euler:karras", "ddpm:timesteps=999/500"),
}
"""Cells of the rows beside the odd ones."""
_GOOD_SIZES = ((None, None), (96, 96), (64, 128), (8192, 4))

_NO_UTF8 = (b"\xff", b"\xed\xa0\x80", b"\xed\xb0\x80", b"\xe2\x82", b"\xc0\xaf", b"\xf5\x80\x80\x80")
"""Half surrogates, cut and overlong sequences, beyond Unicode."""
_UNSEEN = "\u200e\u200f\u202e\u2066\u2069\u200b\u200d\ufeff\ufffe\U000e0001\U0010ffff"
_TRICKS = ("../../etc/passwd", "/etc/passwd", "a/../b", "..", ".", "C:\\x", "~root", "x" * 5000, "-rf", "%2e%2e/")
_NO_SCHEDULERS = ("magic", "DDIM", "ddim2", "flow_match_euler", "../ddim", ":", "ddim\0")
_NO_OPTIONS = (
    "ddim:karras", "euler:karras:karras", "ddpm:timesteps=1/2/3", "ddpm:timesteps=nan", "euler:sigmas=inf/nan/0",
    "euler:sigmas=", "euler:x=y", "ddim:" + "a" * 10_000, "ddpm:timesteps=9.5/1", "euler:timesteps=1e400/1",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Odd:
    """Cells that some rows of a manifest have, while the others have ``good`` ones."""

    odd: Draw
    good: Draw
    refused: bool = True
    """Whether these rows must be refused, or planned like the others."""
    kinds: Mapping[str, pa.DataType] = field(default_factory=dict)
    sweep: Mapping[str, object] = field(default_factory=dict)


def _none(_: random.Random) -> Cells:
    return {}


def _one_of(column: str, cells: tuple[Any, ...]) -> Draw:
    return lambda drawn: {column: drawn.choice(cells)}


def _bad(column: str, *cells: Any, kind: pa.DataType | None = None) -> Odd:
    """Each odd row has one of these cells."""
    good = _one_of(column, _GOOD[column]) if column in _GOOD else _none
    return Odd(odd=_one_of(column, cells), good=good, kinds={column: kind} if kind else {})


def _inside(column: str, *parts: bytes | str, refused: bool = True) -> Odd:
    """Each odd row has one of these somewhere in its text."""

    def draw(drawn: random.Random) -> Cells:
        text, part = f"a red circle {drawn.random()}", drawn.choice(parts)
        at = drawn.randrange(len(text))
        if isinstance(part, bytes):
            return {column: text[:at].encode() + part + text[at:].encode()}
        return {column: text[:at] + part + text[at:]}

    return Odd(odd=draw, good=_none, refused=refused)


def _sized(*pairs: tuple[int | None, int | None]) -> Odd:
    def among(sizes: tuple[tuple[int | None, int | None], ...]) -> Draw:
        return lambda drawn: dict(zip(("width", "height"), drawn.choice(sizes), strict=True))

    return Odd(odd=among(pairs), good=among(_GOOD_SIZES), kinds={"width": _INT, "height": _INT})


def _seeds(*cells: list[int | None]) -> Odd:
    return _bad("seeds", *cells, kind=pa.list_(_INT))


_MANY_POINTS = Odd(
    odd=lambda drawn: {"seeds": list(range(drawn.randint(1001, 1100)))},
    good=_none,
    kinds={"seeds": pa.list_(_INT)},
    sweep={"sweep__guidance_scales": "{start: 1.001, stop: 2, step: 0.001}", "sweep__seeds": 0},
)

ODD: Mapping[str, Odd] = {
    "null prompt": _bad("prompt", None),
    "blank prompt": _bad("prompt", "", " ", "\t\r\n", "\u00a0\u2003\u3000"),
    "NUL in a prompt": _inside("prompt", "\0"),
    "prompt that is no UTF-8": _inside("prompt", *_NO_UTF8),
    "NUL in a negative prompt": _inside("negative_prompt", "\0"),
    "negative prompt that is no UTF-8": _inside("negative_prompt", *_NO_UTF8),
    "NUL in a prompt_id": _inside("prompt_id", "\0"),
    "extra text that is no UTF-8": _inside("theme", *_NO_UTF8),
    "negative seed": _bad("seed", -1, -(2**63), kind=_INT),
    "seed beyond 64 bits": _bad("seed", *map(Decimal, (2**64, 2**65, 10**37)), kind=pa.decimal128(38)),
    "seed that is not whole": _bad("seed", 0.5, 1e-300, -0.1, kind=_FLOAT),
    "seed without end": _bad("seed", INF, -INF, 1e300, 2.0**64, 2.0**53 + 2, kind=_FLOAT),
    "empty list of seeds": _seeds([]),
    "null in a list of seeds": _seeds([None], [1, None], [None, None]),
    "bad seed in a list": _seeds([-1], [1, -(2**63)], [1, None]),
    "guidance that is no number": Odd(
        odd=_one_of("guidance_scale", ("7,5", "x", "nan", "0x7")),
        good=_one_of("guidance_scale", (None, "7.5", " 1e0 ", "")),
        kinds={"guidance_scale": pa.string()},
    ),
    "NaN for null": Odd(odd=_one_of("guidance_scale", (NAN,)), good=_none, refused=False),
    "guidance without end": _bad("guidance_scale", INF, -INF, kind=_FLOAT),
    "guidance out of range": _bad("guidance_scale", -0.1, 1000.1, 1e308, kind=_FLOAT),
    "no steps": _bad("steps", 0, kind=_INT),
    "negative steps": _bad("steps", -1, -(2**63), kind=_INT),
    "too many steps": _bad("steps", 1001, 2**31, 2**63 - 1, kind=_INT),
    "steps that are not whole": _bad("steps", 2.5, 1e-9, INF, kind=_FLOAT),
    "steps that the scheduler does not take": _bad("scheduler", "ddpm:timesteps=999", "euler:sigmas=9/3/1/0.1/0"),
    "size that does not divide": _sized((98, 96), (96, 2), (95, 95)),
    "absurd size": _sized((10**6, 10**6), (96, 8196), (2**31, 96), (2**62, 2**62)),
    "size of nothing": _sized((0, 96), (96, 0), (-96, 96), (-(2**63), -4)),
    "width without height": _sized((96, None), (None, 96)),
    "unknown scheduler": _bad("scheduler", *_NO_SCHEDULERS),
    "scheduler with nonsense options": _bad("scheduler", *_NO_OPTIONS),
    "sweep points beyond number": _MANY_POINTS,
    "prompt of 10 MB": Odd(odd=lambda drawn: {"prompt": drawn.randbytes(5_000_000).hex()}, good=_none, refused=False),
    "control characters": _inside("prompt", *map(chr, (*range(1, 32), *range(127, 160))), refused=False),
    "right-to-left marks and others unseen": _inside("prompt", *_UNSEEN, refused=False),
    "path tricks in a prompt_id": Odd(odd=_one_of("prompt_id", _TRICKS), good=_none, refused=False),
    "rows that repeat each other": Odd(
        odd=lambda _: {"prompt": "a", "negative_prompt": "b"}, good=_none, refused=False
    ),
}
"""By class."""


def _trial(kind: Odd, drawn: random.Random, folder: Path) -> Trial:
    """Good rows with one to five odd ones anywhere between them."""
    rows = [row | kind.good(drawn) for row in good_rows(drawn)]
    odd = drawn.sample(range(len(rows)), drawn.randint(1, min(5, len(rows) - 1)))
    for number in odd:
        rows[number] |= kind.odd(drawn)
    write_rows(drawn, folder, rows, kind.kinds)
    usable = set(range(len(rows))) - set(odd if kind.refused else ())
    return Trial(settings=settings(folder, **kind.sweep), usable=frozenset(usable))


ROWS: Mapping[str, Make] = {name: partial(_trial, kind) for name, kind in ODD.items()}
