"""The sweep: seeds x guidance scales x step counts x schedulers x sizes, as the user writes it and as values.

Every axis accepts one value or a list. Number axes also accept

    "0-3"                       0, 1, 2, 3
    "0-100 (+10)"               0, 10, ..., 100
    {start, stop, step}         both ends included
    {start, stop, num}          num evenly spaced values, both ends included
    {random: 8, from: 42}       8 distinct seeds drawn from 42 (seeds only)
"""

import math
import re
from collections.abc import Callable, Mapping
from hashlib import blake2b
from typing import Any, TypeGuard, TypeVar

from pipeline.errors import JobFileError

T = TypeVar("T", int, float)

MAX_SEED = 2**64 - 1
"""The largest seed that a generator of torch takes as it is; larger ones overflow."""
MAX_STEPS = 1000
MAX_GUIDANCE = 1000.0
MAX_SIDE_PX = 8192
MAX_AXIS_VALUES = 100_000
_FEW_DIGITS = 2**32

_RANGE = re.compile(r"\s*(-?[\d.]+)\s*-\s*(-?[\d.]+)\s*(?:\(\s*\+\s*([\d.]+)\s*\))?\s*")
_SIZE = re.compile(r"\s*(\d{1,9})\s*x\s*(\d{1,9})\s*", re.ASCII | re.IGNORECASE)
_RANGES_ALLOWED = (
    '{item}, a list of them, "first-last", "first-last (+step)", {{start, stop, step}} or {{start, stop, num}}'
)


def parse_seeds(given: Any) -> tuple[int, ...]:
    """Seeds 0 .. 2**64 - 1."""
    if isinstance(given, Mapping) and "random" in given:
        return _random_seeds(given)
    return _numbers(given, "sweep.seeds", _seed)


def parse_guidance_scales(given: Any) -> tuple[float, ...]:
    """Guidance scales 0 .. 1000."""
    return _numbers(given, "sweep.guidance_scales", _guidance)


def parse_num_inference_steps(given: Any) -> tuple[int, ...]:
    """Step counts 1 .. 1000."""
    return _numbers(given, "sweep.num_inference_steps", _steps)


def parse_sizes(given: Any) -> tuple[tuple[int, int], ...]:
    """[width, height] in px, a list of them, or "640x480"; divisibility is checked where the model is known."""
    if isinstance(given, str) or _is_pair(given):
        given = [given]
    if not isinstance(given, list | tuple) or not given:
        raise _axis_error("sweep.sizes", given, "[width, height] in px, or a list of them")
    return tuple(_size(item) for item in given)


def parse_names(given: Any) -> tuple[str, ...]:
    """Scheduler names; which exist is checked where the model is known."""
    names = [given] if isinstance(given, str) else given
    if not isinstance(names, list | tuple) or not names or not all(isinstance(name, str) and name for name in names):
        raise _axis_error("sweep.schedulers", given, "a scheduler name or a list of names")
    return tuple(names)


def _numbers(given: Any, where: str, check: Callable[[Any, str], T]) -> tuple[T, ...]:
    if isinstance(given, str):
        given = _parse_text(given, where)
    if isinstance(given, Mapping):
        given = _spaced(given, where)
    items = given if isinstance(given, list | tuple) else [given]
    if not items:
        raise _axis_error(where, given, "at least one value; leave the axis out for the default")
    return tuple(check(item, where) for item in items)


def _parse_text(text: str, where: str) -> Any:
    """ "0-3", "0-100 (+10)", or comma separated numbers as typed on a command line."""
    match = _RANGE.fullmatch(text)
    if match:
        start, stop, step = match.groups()
        return {"start": _number(start, where), "stop": _number(stop, where), "step": _number(step or "1", where)}
    return [_number(part, where) for part in text.split(",")]


def _number(text: str, where: str) -> int | float:
    try:
        return int(text)
    except ValueError:
        pass
    try:
        return float(text)
    except ValueError:
        raise _axis_error(where, text, _values("a number", where)) from None


def _spaced(given: Mapping[str, Any], where: str) -> list[int | float]:
    allowed = "{start, stop, step} or {start, stop, num}"
    if set(given) not in ({"start", "stop", "step"}, {"start", "stop", "num"}):
        raise _axis_error(where, dict(given), allowed)
    if not all(_is_number(value) and abs(value) <= MAX_SEED for value in given.values()):
        raise _axis_error(where, dict(given), f"{allowed}, all numbers of at most {MAX_SEED}")
    given = {name: _whole_if_equal(value) for name, value in given.items()}
    start, stop = given["start"], given["stop"]
    if "num" in given:
        return _evenly(start, stop, given["num"], where)
    step = given["step"]
    if step <= 0 or stop < start or (stop - start) / step >= MAX_AXIS_VALUES:
        raise _axis_error(where, dict(given), f"start <= stop, step > 0, at most {MAX_AXIS_VALUES} values")
    if _is_whole(start) and _is_whole(stop) and _is_whole(step):
        return list(range(start, stop + 1, step))
    # Multiples of the step, not a running sum, which would drift; the slack admits a stop that is one of them.
    count = math.floor((stop - start) / step + 1e-9) + 1
    return [_tidy(start + index * step) for index in range(count)]


def _is_number(value: Any) -> TypeGuard[int | float]:
    """YAML's true and false are no numbers, though Python counts with them."""
    return isinstance(value, int | float) and not isinstance(value, bool)


def _is_whole(value: Any) -> TypeGuard[int]:
    return isinstance(value, int) and not isinstance(value, bool)


def _evenly(start: int | float, stop: int | float, num: Any, where: str) -> list[int | float]:
    if not _is_whole(num) or not 1 <= num <= MAX_AXIS_VALUES or (num == 1 and start != stop):
        raise _axis_error(where, num, f"num: a whole number from 2 to {MAX_AXIS_VALUES}")
    if num == 1:
        return [start]
    return [_between(start, stop, index, num - 1) for index in range(num)]


def _between(start: int | float, stop: int | float, index: int, last: int) -> int | float:
    """Return value ``index`` of ``last`` even steps; whole numbers stay exact, however large."""
    if _is_whole(start) and _is_whole(stop) and (stop - start) * index % last == 0:
        return start + (stop - start) * index // last
    return _tidy(start + (stop - start) * index / last)


def _tidy(value: float) -> int | float:
    """0.1 + 0.2 is written 0.3: twelve significant digits, whole numbers as int; seeds may have more digits."""
    return _whole_if_equal(float(f"{value:.12g}") if abs(value) < _FEW_DIGITS else value)


def _whole_if_equal(value: int | float) -> int | float:
    return int(value) if isinstance(value, float) and value.is_integer() else value


def _random_seeds(given: Mapping[str, Any]) -> tuple[int, ...]:
    count, origin = given.get("random"), given.get("from", 0)
    allowed = f"{{random: how many, from: a whole number of at most {MAX_SEED}}}"
    if set(given) - {"random", "from"} or not _is_whole(count) or not _is_whole(origin) or abs(origin) > MAX_SEED:
        raise _axis_error("sweep.seeds", dict(given), allowed)
    if not 1 <= count <= MAX_AXIS_VALUES:
        raise _axis_error("sweep.seeds", count, f"random: 1 to {MAX_AXIS_VALUES}")
    drawn: dict[int, None] = {}
    index = 0
    while len(drawn) < count:
        digest = blake2b(f"{origin}:{index}".encode(), digest_size=4).digest()
        drawn[int.from_bytes(digest, "little")] = None
        index += 1
    return tuple(drawn)


def _seed(value: Any, where: str) -> int:
    if not _is_whole(value) or not 0 <= value <= MAX_SEED:
        raise _axis_error(where, value, _values(f"a whole number from 0 to {MAX_SEED}", where))
    return value


def _steps(value: Any, where: str) -> int:
    if not _is_whole(value) or not 1 <= value <= MAX_STEPS:
        raise _axis_error(where, value, _values(f"a whole number from 1 to {MAX_STEPS}", where))
    return value


def _guidance(value: Any, where: str) -> float:
    if not _is_number(value) or not 0 <= value <= MAX_GUIDANCE:
        raise _axis_error(where, value, _values(f"a number from 0 to {MAX_GUIDANCE:g}", where))
    return float(value)


def _is_pair(given: Any) -> bool:
    return isinstance(given, list | tuple) and len(given) == 2 and all(map(_is_whole, given))


def _size(given: Any) -> tuple[int, int]:
    if isinstance(given, str):
        match = _SIZE.fullmatch(given)
        given = [int(side) for side in match.groups()] if match else given
    if not _is_pair(given) or not all(1 <= side <= MAX_SIDE_PX for side in given):
        raise _axis_error("sweep.sizes", given, f"[width, height] in px, each from 1 to {MAX_SIDE_PX}")
    return given[0], given[1]


def _values(item: str, where: str) -> str:
    """Return what an axis of numbers may hold."""
    random = ", or {random: how many, from: a whole number}" if where == "sweep.seeds" else ""
    return _RANGES_ALLOWED.format(item=item) + random


def _axis_error(where: str, value: Any, allowed: str) -> JobFileError:
    return JobFileError("this sweep axis cannot be read", where=where, value=value, allowed=allowed)
