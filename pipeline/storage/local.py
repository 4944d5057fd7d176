"""Objects as files below a directory."""

import errno
import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import ObjectMissingError, StoreDeniedError, StoreError, StoreUnavailableError
from pipeline.storage.base import PROBE_KEY, ObjectInfo, check_key

_UNFINISHED = ".tmp-"
_DENIED = {errno.EACCES, errno.EPERM, errno.EROFS, errno.ENOTDIR, errno.EISDIR, errno.ENAMETOOLONG, errno.ELOOP}
_MISSING = {errno.ENOENT, errno.ENOTDIR, errno.EISDIR}


class LocalStore:
    """A directory. A put is a temporary file, fsync, rename, fsync of the directory: it survives a power cut."""

    def __init__(self, root: Path) -> None:
        self._root = root.absolute()

    @property
    def uri(self) -> str:
        return str(self._root)

    def put(self, key: str, body: bytes) -> None:
        path = self._path(key)
        with _mapped(path):
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, unfinished = tempfile.mkstemp(prefix=_UNFINISHED, dir=path.parent)
            try:
                with os.fdopen(handle, "wb") as file:
                    file.write(body)
                    file.flush()
                    os.fchmod(file.fileno(), 0o644)
                    os.fsync(file.fileno())
                os.replace(unfinished, path)
            except BaseException:
                with suppress(OSError):
                    os.unlink(unfinished)
                raise
            _sync_directory(path.parent)

    def get(self, key: str) -> bytes:
        path = self._path(key)
        with _mapped(path):
            return path.read_bytes()

    def get_range(self, key: str, start: int, length: int) -> bytes:
        with self.open(key) as file, _mapped(self._path(key)):
            file.seek(start)
            return file.read(length)

    def head(self, key: str) -> ObjectInfo | None:
        path = self._path(key)
        try:
            return _info(key, path) if path.is_file() else None
        except FileNotFoundError:
            return None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        folder = prefix.rpartition("/")[0]
        yield from self._walk(self._root / folder, f"{folder}/" if folder else "", prefix)

    def delete(self, key: str) -> None:
        path = self._path(key)
        with suppress(ObjectMissingError), _mapped(path):
            path.unlink()

    def open(self, key: str) -> BinaryIO:
        path = self._path(key)
        with _mapped(path):
            return path.open("rb")

    def check_writable(self) -> None:
        self.put(PROBE_KEY, b"")
        self.delete(PROBE_KEY)

    def _path(self, key: str) -> Path:
        return self._root / check_key(key)

    def _walk(self, folder: Path, base: str, prefix: str) -> Iterator[ObjectInfo]:
        """A directory's name sorts as if it ended in "/", which is how its objects' keys sort."""
        try:
            entries = list(os.scandir(folder))
        except OSError as error:
            if error.errno in _MISSING:
                return
            raise _store_error(error, folder) from None
        named = [
            (f"{base}{entry.name}{'/' if entry.is_dir(follow_symlinks=False) else ''}", entry) for entry in entries
        ]
        for key, entry in sorted(named, key=lambda item: os.fsencode(item[0])):
            if key.endswith("/"):
                if key.startswith(prefix) or prefix.startswith(key):
                    yield from self._walk(folder / entry.name, key, prefix)
            elif key.startswith(prefix) and not entry.name.startswith(_UNFINISHED):
                with suppress(FileNotFoundError):
                    yield _info(key, Path(entry.path))


def _info(key: str, path: Path) -> ObjectInfo:
    status = path.stat()
    return ObjectInfo(key=key, size_bytes=status.st_size, modified=datetime.fromtimestamp(status.st_mtime, UTC))


def _sync_directory(folder: Path) -> None:
    handle = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


@contextmanager
def _mapped(path: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise _store_error(error, path) from None


def _store_error(error: OSError, path: Path) -> StoreError:
    if error.errno == errno.ENOENT:
        return ObjectMissingError(f"no such object: {path}")
    if error.errno in _DENIED:
        return StoreDeniedError(f"{error.strerror}: {path}")
    if error.errno in (errno.ENOSPC, errno.EDQUOT, errno.EFBIG):
        return StoreUnavailableError(f"the disk is full: {path}")
    return StoreUnavailableError(f"{error.strerror}: {path}")
