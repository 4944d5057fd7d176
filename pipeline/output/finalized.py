"""``finalized.json``: what finalize left. ``verify`` sees by it what is gone or changed, the next finalize what is new.

It is gone while a finalize replaces tables, and stays away when one is stopped. Index segments, parts and requests are
noted by name alone: they are named by their own bytes.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from pipeline.errors import ObjectMissingError
from pipeline.output.layout import FINALIZED_KEY
from pipeline.output.payloads import StoredObject
from pipeline.storage.base import ObjectStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Table(StoredObject):
    """A table, and what the dataset card says of its rows."""

    rows: int
    prompts: int = 0
    """Different ones."""
    values: Mapping[str, list[Any]] = field(default_factory=dict)
    """By axis of the sweep, see ``tables.few``."""
    objects: list[str] = field(default_factory=list)
    """Keys of those that hold several of its images, in order."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What there was after a finalize."""

    tables: Mapping[str, Table] = field(default_factory=dict)
    """By key."""
    segments: frozenset[str] = frozenset()
    """Keys of index segments."""
    parts: frozenset[str] = frozenset()
    """Names of the parts whose rows are in the tables."""
    requests: frozenset[str] = frozenset()
    """Keys of the objects with the requests of launches."""
    asked: str = ""
    """Digest of what the requests came from."""
    replaced: frozenset[str] = field(default=frozenset(), compare=False)
    """Keys of tables that earlier notes named: there until whoever wrote this one, or the next, has deleted them."""


def forget_finalized(store: ObjectStore) -> None:
    """Take the note away before a table it names is replaced: until the next one, they are as they may be."""
    store.delete(FINALIZED_KEY)


def write_finalized(store: ObjectStore, left: Left) -> None:
    noted = {
        "tables": {key: asdict(table) for key, table in left.tables.items()},
        "segments": sorted(left.segments),
        "parts": sorted(left.parts),
        "requests": sorted(left.requests),
        "asked": left.asked,
        "replaced": sorted(left.replaced),
    }
    store.put(FINALIZED_KEY, json.dumps(noted, indent=1).encode())


def read_finalized(store: ObjectStore) -> Left:
    """What was noted; nothing before the first finalize, or where the note cannot be read."""
    try:
        noted = json.loads(store.get(FINALIZED_KEY))
        return Left(
            tables={key: Table(**table) for key, table in noted["tables"].items()},
            segments=frozenset(noted["segments"]),
            parts=frozenset(noted["parts"]),
            requests=frozenset(noted.get("requests", ())),
            asked=noted["asked"],
            replaced=frozenset(noted.get("replaced", ())),
        )
    except (ObjectMissingError, ValueError, TypeError, KeyError, AttributeError):
        return Left()
