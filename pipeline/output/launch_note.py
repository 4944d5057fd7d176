"""A small note per launch: what it set out to do and, at its end, what came of it."""

import json
from collections.abc import Iterator
from dataclasses import asdict, dataclass, fields

from pipeline.errors import ObjectMissingError
from pipeline.output.layout import LAUNCHES_PREFIX
from pipeline.storage.base import ObjectStore


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchNote:
    launch_id: str
    """Start time and a random suffix; sorts by time."""
    started_at: str
    """UTC, ISO 8601"""
    planned: int
    """Images the job is about, committed ones included."""
    to_render: int
    committed_before: int = 0
    """Tasks of the whole run, failed ones included, that had an outcome when the launch began."""
    rejected_rows: int = 0
    workers: int = 0
    finished_at: str | None = None
    ok: int = 0
    failed: int = 0
    images_per_s: float | None = None
    evaluations_per_s: float | None = None


_FIELDS = {field.name for field in fields(LaunchNote)}


def write_note(store: ObjectStore, note: LaunchNote) -> None:
    store.put(f"{LAUNCHES_PREFIX}{note.launch_id}.json", json.dumps(asdict(note), indent=1).encode())


def read_notes(store: ObjectStore) -> Iterator[LaunchNote]:
    """All notes that can be read, oldest first."""
    for info in store.list(LAUNCHES_PREFIX):
        try:
            read = json.loads(store.get(info.key))
            yield LaunchNote(**{name: value for name, value in read.items() if name in _FIELDS})
        except (ValueError, TypeError, AttributeError, ObjectMissingError):
            continue  # a note is only for people; one of another version is left out
