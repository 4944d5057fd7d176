"""``finalized.json``: what finalize left, so that ``verify`` can tell what is gone or changed since.

Nothing else reads it. Parts need no such note: index segments name them, and they are named by their own bytes.
"""

import json
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from pipeline.errors import ObjectMissingError
from pipeline.output.layout import FINALIZED_KEY
from pipeline.output.payloads import StoredObject
from pipeline.output.segments import segment_keys
from pipeline.storage.base import ObjectStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Left:
    """What there was after a finalize."""

    tables: Mapping[str, StoredObject] = field(default_factory=dict)
    """By key."""
    segments: frozenset[str] = frozenset()
    """Keys of index segments."""


def write_finalized(store: ObjectStore, tables: Mapping[str, StoredObject]) -> None:
    """Note the tables, and the index segments as they are now."""
    noted = {"tables": {key: asdict(stored) for key, stored in tables.items()}, "segments": segment_keys(store)}
    store.put(FINALIZED_KEY, json.dumps(noted, indent=1).encode())


def read_finalized(store: ObjectStore) -> Left:
    """What was noted; nothing before the first finalize, or where the note cannot be read."""
    try:
        noted = json.loads(store.get(FINALIZED_KEY))
        tables = {key: StoredObject(**stored) for key, stored in noted["tables"].items()}
        return Left(tables=tables, segments=frozenset(noted["segments"]))
    except (ObjectMissingError, ValueError, TypeError, KeyError, AttributeError):
        return Left()
