"""A small note per launch: what it set out to do and, at its end, what came of it."""

import json
import threading
from collections.abc import Iterable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, fields, replace
from datetime import UTC, datetime, timedelta

from pipeline.errors import ObjectMissingError, StoreError
from pipeline.output.layout import LAUNCHES_PREFIX
from pipeline.storage.base import ObjectStore

BEAT = timedelta(seconds=20)


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
    """Tasks of the whole run that were done when the launch began: failed ones too, unless it tries these again."""
    rejected_rows: int = 0
    remaining: int = 0
    """Images without an outcome when it ended."""
    workers: int = 0
    room: int = 0
    """Workers there would have been with more to render."""
    retry_failed: bool = False
    alive_at: str | None = None
    """When the launch last said that it is still at work."""
    finished_at: str | None = None
    ok: int = 0
    failed: int = 0
    images_per_s: float | None = None
    megapixel_evaluations_per_s: float | None = None
    """Of all its workers together while they worked."""
    added_key: str | None = None
    """Of the list of tasks that have an outcome through this launch."""

    def is_alive(self, now: datetime) -> bool:
        """Whether the launch is at work, as far as its note tells."""
        if self.finished_at is not None or self.alive_at is None:
            return False
        return now - datetime.fromisoformat(self.alive_at) < 3 * BEAT


@contextmanager
def kept_alive(store: ObjectStore, note: LaunchNote) -> Iterator[None]:
    """Write the note, and again and again while the context lasts, so that others can see that we are at work."""
    write_note(store, note)
    over = threading.Event()

    def beat() -> None:
        while not over.wait(BEAT.total_seconds()):
            with suppress(StoreError):  # the next one may arrive
                write_note(store, replace(note, alive_at=datetime.now(UTC).isoformat()))

    thread = threading.Thread(target=beat, name="heartbeat", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join(timeout=BEAT.total_seconds())
        with suppress(StoreError):
            write_note(store, replace(note, alive_at=None))


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


def last_measured(notes: Iterable[LaunchNote]) -> LaunchNote | None:
    """The last launch that tells how fast it was."""
    told = [note for note in notes if note.megapixel_evaluations_per_s]
    return told[-1] if told else None
