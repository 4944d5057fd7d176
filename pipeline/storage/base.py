"""What Darkroom asks of an object store: bytes under keys, ranged reads, listing in key order."""

import io
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import BinaryIO, Protocol

PROBE_KEY = "_darkroom/probe"


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """One object of a listing."""

    key: str
    size_bytes: int
    modified: datetime
    """UTC"""


class ObjectStore(Protocol):
    """A place for objects. Safe to use from many threads; pickles, and opens its connections anew per process.

    Every method may raise ``StoreDeniedError`` or ``StoreUnavailableError``; reading a key that is not there raises
    ``ObjectMissingError``.
    """

    @property
    def uri(self) -> str:
        """Where it is, as a user would write it."""
        ...

    def put(self, key: str, body: bytes) -> None:
        """Store an object, whole or not at all, over any older one."""
        ...

    def get(self, key: str) -> bytes: ...

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Up to ``length`` bytes from ``start``; fewer, perhaps none, at the end."""
        ...

    def head(self, key: str) -> ObjectInfo | None:
        """None when there is no such object."""
        ...

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """All objects whose key starts with the prefix, in the order of their keys' UTF-8 bytes."""
        ...

    def delete(self, key: str) -> None:
        """Remove an object; no error when there is none."""
        ...

    def open(self, key: str) -> BinaryIO:
        """A seekable reader that fetches only what is read."""
        ...

    def check_writable(self) -> None:
        """Write and remove a small object, so that a bad location is known before any work is done."""
        ...


def check_key(key: str) -> str:
    """Keys are made by us: a bad one is a mistake of ours (``ValueError``)."""
    segments = key.split("/")
    if any(segment in ("", ".", "..") for segment in segments) or any(ord(char) < 32 for char in key):
        raise ValueError(f"not a key: {key!r}")
    return key


class RangeReader(io.RawIOBase):
    """A seekable file over ranged reads of one object."""

    def __init__(self, store: ObjectStore, key: str, size_bytes: int) -> None:
        self._store, self._key, self._size_bytes, self._at = store, key, size_bytes, 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def tell(self) -> int:
        return self._at

    def seek(self, offset: int, whence: int = io.SEEK_SET) -> int:
        origin = {io.SEEK_SET: 0, io.SEEK_CUR: self._at, io.SEEK_END: self._size_bytes}[whence]
        self._at = max(0, origin + offset)
        return self._at

    def readinto(self, buffer: memoryview) -> int:  # type: ignore[override]  # typeshed's WriteableBuffer is private
        length = min(len(buffer), self._size_bytes - self._at)
        if length <= 0:
            return 0
        read = self._store.get_range(self._key, self._at, length)
        buffer[: len(read)] = read
        self._at += len(read)
        return len(read)
