"""Models in object storage: fetched once per machine and version, by one process, whole or not at all."""

import fcntl
import shutil
import uuid
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from hashlib import blake2b
from pathlib import Path

from pipeline.errors import ModelError
from pipeline.storage.base import ObjectInfo, ObjectStore

_FILES_AT_ONCE = 4
_CHUNK_BYTES = 16 << 20


def fetched(store: ObjectStore, choose: Callable[[list[str]], Collection[str]], cache: Path) -> Path:
    """Return the folder with the objects that ``choose`` takes of all keys of a store, fetched if need be.

    Its name follows from what the store lists: another version of a file is another folder. Processes of one machine
    wait for the first that fetches. Raises ``ModelError`` when the cache cannot be written, and what the store raises.
    """
    listed = list(store.list())
    keys = set(choose([info.key for info in listed]))
    wanted = [info for info in listed if info.key in keys]
    folder = cache / _version(store.uri, wanted)
    if folder.is_dir():
        return folder
    try:
        with _only_one(folder.with_suffix(".lock")):
            if not folder.is_dir():
                _sweep(folder)
                _fetch(store, wanted, folder)
    except OSError as error:
        raise ModelError(
            f"the model cannot be kept in the cache: {error.strerror or error}",
            where=str(cache),
            value=store.uri,
            allowed="a folder that can be written; XDG_CACHE_HOME names another one",
        ) from None
    return folder


def _version(uri: str, listed: Iterable[ObjectInfo]) -> str:
    seen = [(info.key, info.size_bytes, info.modified.isoformat()) for info in listed]
    return blake2b(repr((uri, seen)).encode(), digest_size=16).hexdigest()


@contextmanager
def _only_one(path: Path) -> Iterator[None]:
    """Held by one process of this machine; a process that dies lets it go."""
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def _sweep(folder: Path) -> None:
    """Remove what killed processes left of this version: whoever still fetched it would hold the lock."""
    for unfinished in folder.parent.glob(f"{folder.name}-*.part"):
        shutil.rmtree(unfinished, ignore_errors=True)


def _fetch(store: ObjectStore, wanted: Sequence[ObjectInfo], folder: Path) -> None:
    unfinished = folder.with_name(f"{folder.name}-{uuid.uuid4().hex[:8]}.part")
    unfinished.mkdir()
    try:
        with ThreadPoolExecutor(_FILES_AT_ONCE) as pool:
            list(pool.map(lambda info: _copy(store, info, unfinished / info.key), wanted))
        unfinished.rename(folder)
    finally:
        shutil.rmtree(unfinished, ignore_errors=True)


def _copy(store: ObjectStore, info: ObjectInfo, path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with store.open(info.key) as source, path.open("wb") as file:
        shutil.copyfileobj(source, file, _CHUNK_BYTES)
    if path.stat().st_size != info.size_bytes:
        raise ModelError("a file of the model changed while it was fetched", where=store.uri, value=info.key)
