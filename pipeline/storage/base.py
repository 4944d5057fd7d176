"""What a store of objects is: bytes under keys, listed in key order, read whole or in ranges.

Two stores keep this promise, `LocalStore` and `S3Store`; both pass `tests/storage/test_contract.py`.
"""

import secrets
import unicodedata
from collections.abc import Iterator
from dataclasses import dataclass
from datetime import datetime
from typing import BinaryIO, Protocol

from pipeline.storage.traffic import Traffic

TEMPORARY_PREFIX = ".tmp-"
_SEGMENT_LIMIT_BYTES = 255


@dataclass(frozen=True, slots=True, kw_only=True)
class ObjectInfo:
    """One object as a listing shows it. `modified` is in UTC; S3 servers give it to the second."""

    key: str
    size_bytes: int
    modified: datetime


class ObjectStore(Protocol):
    """Bytes under keys. Safe to use from several threads at once, and to pickle.

    A key is a relative path with `/` between its segments, see `check_key`; a key that breaks its rules is a
    `ValueError` everywhere. Every method may raise StoreDeniedError (a person must act) and StoreUnavailableError
    (it kept failing after every retry). No message holds credentials.
    """

    @property
    def uri(self) -> str:
        """Where the store is, in the form `open_store` takes."""

    @property
    def traffic(self) -> Traffic:
        """What this process has asked of the store through this object."""

    def put(self, key: str, body: bytes) -> None:
        """Write the object, or replace it. It is durable on return; no reader ever sees half of it."""

    def put_file(self, key: str, file: BinaryIO) -> None:
        """As `put`, with all that an open, seekable file holds, wherever it stands; memory never holds all of it."""

    def get(self, key: str) -> bytes:
        """Return the whole object. Raises ObjectMissingError."""

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return `length` bytes from byte `start` on, fewer where the object ends. Raises ObjectMissingError."""

    def head(self, key: str) -> ObjectInfo | None:
        """Return what is known of the object without reading it, None if there is none."""

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the objects whose key begins with the characters of `prefix`, in the order of their UTF-8 bytes.

        Things in the same place that no valid key can name (directory markers, temporary files) are left out.
        """

    def delete(self, key: str) -> None:
        """Remove the object. It is no error if there is none."""

    def sweep(self, prefix: str, before: datetime) -> int:
        """Remove what writers that were killed left of puts begun before a moment, and return how many there were.

        These are temporary files and unfinished uploads, which no listing shows, of keys that begin with `prefix`;
        where the store cannot tell their keys, all beside such objects.
        """

    def open(self, key: str) -> BinaryIO:
        """Open the object for seeking and reading; only what is read is fetched. Raises ObjectMissingError.

        The file belongs to one thread. Close it after use. Should the object be replaced meanwhile, it goes on as it
        was or raises ObjectReplacedError; it never mixes the two.
        """

    def check_writable(self) -> None:
        """Write and delete a small object under `_darkroom/`, so that a job fails before it renders, not after."""


def check_key(key: str) -> str:
    """Return `key` if it is the same good name in every store.

    Raises:
        ValueError: it is empty, begins or ends with `/`, has an empty, `.` or `..` segment, a segment of more than
            255 bytes or beginning with `.tmp-`, a control character, or text that is not UTF-8.
    """
    fault = _fault(key)
    if fault is not None:
        raise ValueError(f"not a key: {key[:200]!r} {fault}")
    return key


def is_key(text: str) -> bool:
    """Tell whether `check_key` would accept `text`."""
    return _fault(text) is None


def prove_writable(store: ObjectStore) -> None:
    """Put and delete a probe: the `check_writable` of every store. Several at once do not disturb each other."""
    key = f"_darkroom/probe-{secrets.token_hex(8)}"
    store.put(key, b"Darkroom tries whether it can write here. This object can be deleted.\n")
    store.delete(key)


def _fault(key: str) -> str | None:
    if any(unicodedata.category(character) in ("Cc", "Cs") for character in key):
        return "has a control character or is not UTF-8 text"
    for segment in key.split("/"):
        if segment in ("", ".", ".."):
            return "has an empty, '.' or '..' segment"
        if segment.startswith(TEMPORARY_PREFIX):
            return f"has a segment beginning with {TEMPORARY_PREFIX!r}"
        if len(segment.encode()) > _SEGMENT_LIMIT_BYTES:
            return f"has a segment of more than {_SEGMENT_LIMIT_BYTES} bytes"
    return None
