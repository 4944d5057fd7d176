"""A worker's journal: a file on its machine that says, after its process has died, what it had in hand.

A record is written before the work that it names is begun. The kernel keeps what was written when the process is
killed; only the end of the machine loses it.
"""

import os
import threading
from dataclasses import dataclass
from pathlib import Path

_BEGUN, _DONE, _PART = b"+", b"-", b"p"
_RECORD = 17
"""A letter and an id of 16 bytes."""
MOST_BYTES = 2**20
"""A journal of so many bytes is written anew, with what is in flight alone."""


@dataclass(frozen=True, slots=True)
class InHand:
    """What a process had in hand when it died."""

    in_flight: frozenset[bytes]
    """Ids of tasks that were begun and not stored."""
    parts: tuple[str, ...]
    """Ids of parts that were about to be committed."""


class Journal:
    """Written by one process, from any of its threads."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._lock = threading.Lock()
        self._in_flight: set[bytes] = set()
        self._file = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_APPEND | os.O_TRUNC, 0o600)
        self._bytes = 0

    def begin(self, task_id: bytes) -> None:
        """Note that work on a task begins."""
        with self._lock:
            if task_id not in self._in_flight:
                self._in_flight.add(task_id)
                self._write(_BEGUN + task_id)

    def done(self, task_id: bytes) -> None:
        """Note that a task is stored, or given back."""
        with self._lock:
            if task_id in self._in_flight:
                self._in_flight.remove(task_id)
                self._write(_DONE + task_id)

    def part(self, part_id: str) -> None:
        """Note that a part is about to be committed."""
        with self._lock:
            self._write(_PART + bytes.fromhex(part_id))

    def remove(self) -> None:
        """Delete the file: the process ends with nothing in hand."""
        self.path.unlink(missing_ok=True)

    def _write(self, record: bytes) -> None:
        os.write(self._file, record)
        self._bytes += len(record)
        if self._bytes > MOST_BYTES and record[:1] == _DONE:
            self._compact()

    def _compact(self) -> None:
        fresh = self.path.with_suffix(".new")
        fresh.write_bytes(b"".join(_BEGUN + task_id for task_id in self._in_flight))
        os.replace(fresh, self.path)
        os.close(self._file)
        self._file = os.open(self.path, os.O_WRONLY | os.O_APPEND)
        self._bytes = 0


def read_journal(path: Path) -> InHand:
    """Return what a dead process had in hand. Raises ``OSError`` where its journal is not here."""
    written = path.read_bytes()
    in_flight, parts = set[bytes](), list[str]()
    for start in range(0, len(written) - _RECORD + 1, _RECORD):
        letter, name = written[start : start + 1], written[start + 1 : start + _RECORD]
        if letter == _BEGUN:
            in_flight.add(name)
        elif letter == _DONE:
            in_flight.discard(name)
        else:
            parts.append(name.hex())
    return InHand(in_flight=frozenset(in_flight), parts=tuple(parts))
