"""Notes in the store of what workers have in hand: a process that dies leaves them, and so is found out.

A note is written before a shard is begun and deleted after it is committed. Keys hold the launch, so that what an
earlier launch left behind when it was killed makes nobody a suspect.
"""

import json
from dataclasses import asdict, dataclass
from datetime import UTC, datetime, timedelta

from pipeline.errors import ObjectMissingError
from pipeline.output.layout import ATTEMPTS_PREFIX
from pipeline.storage.base import ObjectStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Process:
    """A worker's process; another one in its place has another id."""

    node_id: str
    process_id: str
    """Of this life of the worker: 32 hex digits."""


class Attempts:
    """The notes of one launch, as one of its processes writes and reads them."""

    def __init__(self, store: ObjectStore, launch_id: str, me: Process) -> None:
        self._store, self._me = store, me
        self._prefix = attempts_prefix(launch_id)
        self._in_hand: set[str] = set()

    def begin(self, part_id: str) -> None:
        """Note that this process has a shard in hand."""
        self._in_hand.add(part_id)
        self._store.put(self._key(part_id), json.dumps(asdict(self._me)).encode())

    def end(self, part_id: str) -> None:
        """Forget everything about a shard, which is committed."""
        for info in list(self._store.list(f"{self._prefix}{part_id}/")):
            self._store.delete(info.key)
        self._in_hand.discard(part_id)

    def withdraw(self) -> None:
        """Delete this process's notes before it ends through no fault of what it has in hand: nothing is charged."""
        for part_id in tuple(self._in_hand):
            self._store.delete(self._key(part_id))

    def earlier(self, part_id: str) -> list[Process]:
        """Other processes of this launch that began this shard and have not committed it: they are dead.

        Nobody is given a shard that another one of the same launch still has.
        """
        found = [_read(self._store, info.key) for info in self._store.list(f"{self._prefix}{part_id}/")]
        return [process for process in found if process is not None and process != self._me]

    def charge(self, dead: Process) -> None:
        """Note that a process died of its own work; the same death counts once, however many shards it had."""
        key = f"{self._prefix}deaths/{dead.process_id}.json"
        if self._store.head(key) is None:
            self._store.put(key, json.dumps({"at": datetime.now(UTC).isoformat()}).encode())

    def deaths_within(self, span: timedelta) -> int:
        """How many processes of this launch died of their work lately."""
        since = datetime.now(UTC) - span
        return sum(info.modified >= since for info in self._store.list(f"{self._prefix}deaths/"))

    def _key(self, part_id: str) -> str:
        return f"{self._prefix}{part_id}/{self._me.process_id}.json"


def attempts_prefix(launch_id: str) -> str:
    return f"{ATTEMPTS_PREFIX}{launch_id}/"


def forget_launch(store: ObjectStore, launch_id: str) -> int:
    """Delete the notes of a launch that is over; returns how many of its processes died of their work."""
    keys = [info.key for info in store.list(attempts_prefix(launch_id))]
    for key in keys:
        store.delete(key)
    return sum(key.startswith(f"{attempts_prefix(launch_id)}deaths/") for key in keys)


def forget_old(store: ObjectStore, before: datetime) -> None:
    """Delete notes last written before a moment: their launches were killed, as no shard takes that long."""
    for info in list(store.list(ATTEMPTS_PREFIX)):
        if info.modified < before:
            store.delete(info.key)


def _read(store: ObjectStore, key: str) -> Process | None:
    try:
        return Process(**json.loads(store.get(key)))
    except (ObjectMissingError, ValueError, TypeError):
        return None  # its writer died while it wrote, before it began
