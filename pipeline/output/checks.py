"""Whether one object still is what was written: present, of the size and digest recorded for it."""

import hashlib
from collections.abc import Callable
from dataclasses import dataclass
from typing import Literal, TypeVar

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import JobBrokenError, ObjectMissingError, StoreDeniedError
from pipeline.output.layout import object_of, part_of_key
from pipeline.output.outcomes import UNREADABLE, Outcomes, outcomes_of
from pipeline.output.part import objects_of
from pipeline.output.payloads import StoredObject
from pipeline.output.requests import are_named
from pipeline.output.segments import Segment, read_segment
from pipeline.parquet import ParquetReader
from pipeline.storage.base import ObjectStore, check_key

What = Literal["missing", "corrupt", "unreadable", "outdated"]
"""Gone; other bytes than were written; kept back by the store; right once, but more was committed since."""

_T = TypeVar("_T")
_CHUNK_BYTES = 8 * 2**20
_PART_COLUMNS = ["task_id", "status", "file_name", "file_sha256", "file_bytes"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """One object that is not as it should be."""

    key: str
    what: What
    detail: str


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Part:
    """What a part that is sound says."""

    key: str
    outcomes: Outcomes
    objects: tuple[tuple[str, StoredObject], ...]
    """All it names, each once, with what they should be."""
    object_of_row: NDArray[np.int64]
    """For each row the number of the object that holds its image, -1 where it has none."""


def seen(store: ObjectStore, key: str) -> StoredObject:
    """Size and SHA-256 of an object as it is, read a few MiB at a time. Raises ``ObjectMissingError``."""
    digest, size_bytes = hashlib.sha256(), 0
    while True:
        chunk = store.get_range(key, size_bytes, _CHUNK_BYTES)
        digest.update(chunk)
        size_bytes += len(chunk)
        if len(chunk) < _CHUNK_BYTES:
            return StoredObject(sha256=digest.hexdigest(), bytes=size_bytes)


def check_object(store: ObjectStore, key: str, wanted: StoredObject) -> Fault | None:
    """Read it all and compare. A store that fails altogether raises ``StoreUnavailableError``."""

    def compare() -> Fault | None:
        found = seen(store, key)
        if found.bytes != wanted.bytes:
            return Fault(key=key, what="corrupt", detail=f"{found.bytes:,} bytes, {wanted.bytes:,} were written")
        if found.sha256 != wanted.sha256:
            return Fault(key=key, what="corrupt", detail="other bytes than were written")
        return None

    return guarded(key, compare)


def check_part(store: ObjectStore, key: str) -> Part | Fault:
    """Read a part and compare it with its name."""

    def read() -> Part | Fault:
        body = store.get(key)
        if not _is_named_by(key, hashlib.sha256(body).hexdigest()):
            return _renamed(key)
        try:
            return _part(key, ParquetReader(body).read(_PART_COLUMNS))
        except UNREADABLE as error:
            return Fault(key=key, what="corrupt", detail=f"no part: {error}")

    return guarded(key, read)


def check_segment(store: ObjectStore, key: str) -> Segment | Fault:
    """Read an index segment and compare it with its name."""

    def read() -> Segment | Fault:
        if not _is_named_by(key, seen(store, key).sha256):
            return _renamed(key)
        try:
            return read_segment(store, key)
        except JobBrokenError as error:
            return Fault(key=key, what="corrupt", detail=str(error))

    return guarded(key, read)


def check_requests(store: ObjectStore, key: str) -> Fault | None:
    """Read an object with requests and compare it with its name."""

    def compare() -> Fault | None:
        return None if are_named(key, store.get(key)) else _renamed(key)

    return guarded(key, compare)


def _is_named_by(key: str, digest: str) -> bool:
    """Whether a name ends in the first digits of this digest."""
    return part_of_key(key).rpartition("-")[2] == digest[:8]


def _renamed(key: str) -> Fault:
    return Fault(key=key, what="corrupt", detail="other bytes than its name tells of")


def guarded(key: str, read: Callable[[], _T]) -> _T | Fault:
    """What ``read`` returns, or that the object is gone or may not be read."""
    try:
        return read()
    except ObjectMissingError:
        return Fault(key=key, what="missing", detail="there is no such object")
    except (StoreDeniedError, OSError) as error:
        return Fault(key=key, what="unreadable", detail=str(error))


def _part(key: str, table: pa.Table) -> Part:
    outcomes, objects = outcomes_of(table), objects_of(table)
    numbers = {name: number for number, name in enumerate(objects)}
    of_row = np.full(table.num_rows, -1, np.int64)
    columns = (table[name].to_pylist() for name in ("file_name", "file_sha256", "file_bytes"))
    for row, (file_name, digest, size_bytes) in enumerate(zip(*columns, strict=True)):
        if file_name is not None:
            name, member = object_of(file_name)
            if member is None:
                objects[name] = StoredObject(sha256=digest, bytes=size_bytes)
                numbers.setdefault(name, len(numbers))
            of_row[row] = numbers[name]
    for name in objects:
        check_key(name)  # a part may have been written by anybody who can write there
    if ((of_row >= 0) != outcomes.ok).any():
        raise ValueError("images without a file, or files without an image")
    return Part(key=key, outcomes=outcomes, objects=tuple(objects.items()), object_of_row=of_row)
