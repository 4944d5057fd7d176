"""Where the images of a shard go: each into an object of its own at once, or all of them into one at the commit.

Nothing is true before the commit names it (``part.py``). Objects are named by their own bytes, and what goes into them
follows from tasks and pixels alone: no time, host, attempt or version, so that equal pixels give equal objects.
"""

import hashlib
import os
import threading
import weakref
from collections.abc import Callable, Mapping
from contextlib import closing
from dataclasses import dataclass, field
from typing import BinaryIO, Protocol

import pyarrow as pa

from pipeline.output.archives import write_table, write_tar
from pipeline.output.encode import EncodedImage
from pipeline.output.layout import EXTENSIONS, Packing, data_key, image_key, shard_key
from pipeline.output.local_disk import GATHERING, local_disk, temporary_file
from pipeline.storage.base import ObjectStore


@dataclass(frozen=True, slots=True, kw_only=True)
class StoredObject:
    """What the commit remembers of an object that holds several images."""

    sha256: str
    bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Stored:
    """Where the images of a part are."""

    file_names: list[str]
    """One per row; what ``object_of`` reads."""
    objects: Mapping[str, StoredObject] = field(default_factory=dict)
    """By key; those that are single images have their digests in their rows."""


class Payloads(Protocol):
    """The images of one shard on their way to the store."""

    def add(self, task_id: str, image: EncodedImage) -> None:
        """Take an image, from any thread."""

    def store(self, part_id: str, rows: pa.Table) -> Stored:
        """All images of a part, named by its metadata rows, are durable on return. Called once, after the last add."""


def open_payloads(store: ObjectStore, packing: Packing) -> Payloads:
    """Those of the run's layout."""
    if packing.layout == "webdataset":
        return Gathered(store, packing, write_tar, shard_key)
    if packing.layout == "parquet":
        return Gathered(store, packing, write_table, data_key)
    return Files(store, packing)


class Files:
    """An object per image, put as soon as there is one."""

    def __init__(self, store: ObjectStore, packing: Packing) -> None:
        self._store, self._extension = store, EXTENSIONS[packing.format]

    def add(self, task_id: str, image: EncodedImage) -> None:
        self._store.put(image_key(task_id, image.file_sha256, self._extension), image.body)

    def store(self, part_id: str, rows: pa.Table) -> Stored:
        named = zip(rows["task_id"].to_pylist(), rows["file_sha256"].to_pylist(), strict=True)
        return Stored(file_names=[image_key(task_id, digest, self._extension) for task_id, digest in named])


class Gathered:
    """One object per part. Images wait on local disk, so that memory holds none and their order is the shard's."""

    def __init__(
        self,
        store: ObjectStore,
        packing: Packing,
        write: Callable[[BinaryIO, pa.Table, Callable[[str], bytes], str], None],
        key_of: Callable[[str, str], str],
    ) -> None:
        """``write`` makes the object's content of rows, images by task and their extension; ``key_of`` names it."""
        self._store, self._write, self._key_of = store, write, key_of
        self._extension = EXTENSIONS[packing.format]
        self._spool = _Spool()

    def add(self, task_id: str, image: EncodedImage) -> None:
        self._spool.add(task_id, image.body)

    def store(self, part_id: str, rows: pa.Table) -> Stored:
        if not rows.num_rows:
            return Stored(file_names=[])
        with closing(temporary_file(GATHERING)) as file:
            with local_disk(GATHERING):
                self._write(file, rows, self._spool.read, self._extension)
                size = file.seek(0, os.SEEK_END)
                file.seek(0)
                digest = hashlib.file_digest(file, "sha256").hexdigest()
            key = self._key_of(part_id, digest)
            self._store.put_file(key, file)
        return Stored(
            file_names=[f"{key}/{task_id}.{self._extension}" for task_id in rows["task_id"].to_pylist()],
            objects={key: StoredObject(sha256=digest, bytes=size)},
        )


class _Spool:
    """Bytes by name in a temporary file: added from any thread, read from one after the last was added."""

    def __init__(self) -> None:
        self._file = temporary_file(GATHERING)
        weakref.finalize(self, self._file.close)
        self._places: dict[str, tuple[int, int]] = {}
        self._lock = threading.Lock()

    def add(self, name: str, body: bytes) -> None:
        with self._lock, local_disk(GATHERING):
            start = self._file.seek(0, os.SEEK_END)
            self._file.write(body)
            self._places[name] = start, len(body)

    def read(self, name: str) -> bytes:
        start, length = self._places[name]
        self._file.seek(start)
        return self._file.read(length)
