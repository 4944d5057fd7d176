"""JSON that every reader takes, for values that may hold numbers JSON has no place for.

Python writes ``NaN`` and ``Infinity`` as bare words, which the standard forbids. Here such a number is the object
``{"float": "NaN"}``, ``{"float": "Infinity"}`` or ``{"float": "-Infinity"}``, and is read back as the number.
"""

import json
import math
from collections.abc import Mapping
from typing import Any

_KEY = "float"
_NAMES = {"NaN": math.nan, "Infinity": math.inf, "-Infinity": -math.inf}


def strict(value: Any) -> Any:
    """Return a value of mappings, lists and scalars with every number that is not finite as its object."""
    if isinstance(value, Mapping):
        return {key: strict(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [strict(inner) for inner in value]
    if isinstance(value, float) and not math.isfinite(value):
        return {_KEY: "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"}
    return value


def dumps(value: Any, **options: Any) -> str:
    """Return the JSON text of a value; ``options`` are those of ``json.dumps``."""
    return json.dumps(strict(value), allow_nan=False, **options)


def loads(text: str | bytes) -> Any:
    """Return the value that ``dumps`` wrote."""
    return json.loads(text, object_hook=_restored)


def _restored(read: dict[str, Any]) -> Any:
    name = read.get(_KEY)
    return _NAMES[name] if len(read) == 1 and isinstance(name, str) and name in _NAMES else read
