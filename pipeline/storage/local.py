"""Objects as files below one directory: durable and atomic on any POSIX file system.

A put writes a temporary file beside its target, syncs it, renames it and syncs the directory. A process killed
between these steps leaves at most a file named `.tmp-…`, which no listing shows and `sweep` deletes.
"""

import errno
import io
import os
import re
import secrets
import shutil
import stat
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from datetime import UTC, datetime
from pathlib import Path
from typing import BinaryIO

from pipeline.errors import ObjectMissingError, StoreDeniedError, StoreError, StoreUnavailableError
from pipeline.storage.base import TEMPORARY_PREFIX, ObjectInfo, check_key, is_key, prove_writable
from pipeline.storage.traffic import Meter, Traffic

_ABSENT = (errno.ENOENT, errno.ENOTDIR, errno.EISDIR)
_FULL = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG)
_IN_THE_WAY = (errno.EEXIST, errno.ENOTDIR, errno.EISDIR)
_DENIED = (errno.EACCES, errno.EPERM, errno.EROFS, errno.ELOOP, errno.ENAMETOOLONG)
_COPY_BYTES = 2**20
_TEMPORARY = re.compile(re.escape(TEMPORARY_PREFIX) + "[0-9]+-[0-9a-f]{16}")


class LocalStore:
    """An `ObjectStore` in the directory `root`, which the first put creates. Keys are paths below it.

    A symbolic link below the root is refused where it leads out of it; in a listing, links to directories are not
    followed. With `follow_links` they are read wherever they lead, which is meant for folders that a person named, not
    for outputs. Unlike in S3, `a` and `a/b` cannot both be objects: the second is StoreDeniedError.
    """

    def __init__(self, root: Path, *, follow_links: bool = False) -> None:
        self._root = root.absolute()
        self._follow_links = follow_links
        self._meter = Meter()

    def __repr__(self) -> str:
        return f"LocalStore({self.uri!r})"

    @property
    def uri(self) -> str:
        """The absolute path of the root."""
        return str(self._root)

    @property
    def traffic(self) -> Traffic:
        """Every operation is a request, and none is repeated. What is read from an opened file is not seen here."""
        return self._meter.total

    def put(self, key: str, body: bytes) -> None:
        """Write or replace the file; it survives a power cut once this returns."""
        self.put_file(key, io.BytesIO(body))

    def put_file(self, key: str, file: BinaryIO) -> None:
        """Write or replace the file with a copy of the given one, as `put` does."""
        path = self._path(key)
        with self._meter.putting(), _translated("write", path):
            _make_directories(path.parent)
            self._meter.add(Traffic(bytes_put=_replace(path, file)))

    def get(self, key: str) -> bytes:
        """Return the whole file. Raises ObjectMissingError."""
        with self.open(key) as file:
            return self._got(file.read())

    def get_range(self, key: str, start: int, length: int) -> bytes:
        """Return `length` bytes from byte `start` on, fewer where the file ends. Raises ObjectMissingError."""
        assert min(start, length) >= 0, (start, length)
        with self.open(key) as file:
            file.seek(start)
            return self._got(file.read(length))

    def head(self, key: str) -> ObjectInfo | None:
        """Return size and time of the file, None if there is none."""
        path = self._path(key)
        try:
            with _translated("look at", path, reading=True):
                return _info(key, path.stat())
        except ObjectMissingError:
            return None

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        """Yield the files whose key begins with `prefix`, as S3 orders them; nothing if the root does not exist."""
        self._meter.add(Traffic(requests=1))
        return self._walk("", prefix)

    def delete(self, key: str) -> None:
        """Remove the file, if there is one. Its directories stay."""
        path = self._path(key)
        with suppress(ObjectMissingError), _translated("delete", path, reading=True):
            path.unlink()

    def sweep(self, prefix: str, before: datetime) -> int:
        """Delete temporary files last written before a moment, in and below the directory that `prefix` ends in."""
        self._meter.add(Traffic(requests=1))
        above, deep = prefix.rpartition("/")[0], not prefix or prefix.endswith("/")
        directory = self._root / check_key(above) if above else self._root
        self._refuse_outside(directory)
        return sum(_delete_if_old(path, before) for path in _temporary_files(directory, deep=deep))

    def open(self, key: str) -> BinaryIO:
        """Open the file for reading. Raises ObjectMissingError."""
        path = self._path(key)
        with _translated("read", path, reading=True):
            return path.open("rb")

    def check_writable(self) -> None:
        """Write and delete a small file under `_darkroom/`."""
        prove_writable(self)

    def _path(self, key: str) -> Path:
        """Where the object is; every operation on one begins here."""
        path = self._root / check_key(key)
        self._meter.add(Traffic(requests=1))
        self._refuse_outside(path)
        return path

    def _got(self, body: bytes) -> bytes:
        self._meter.add(Traffic(bytes_got=len(body)))
        return body

    def _refuse_outside(self, path: Path) -> None:
        if not self._follow_links and not Path(os.path.realpath(path)).is_relative_to(os.path.realpath(self._root)):
            raise StoreDeniedError(f"{path} leads out of {self._root} through a symbolic link")

    def _walk(self, above: str, prefix: str) -> Iterator[ObjectInfo]:
        """Yield the files below the directory `above` ("" or ending in `/`), in key order."""
        for entry in _entries(self._root / above):
            key = above + entry.name
            if not is_key(key):
                continue
            if entry.is_symlink():
                self._refuse_outside(Path(entry.path))
            if entry.is_dir(follow_symlinks=False):
                if f"{key}/".startswith(prefix) or prefix.startswith(f"{key}/"):
                    yield from self._walk(f"{key}/", prefix)
            elif key.startswith(prefix) and (info := _listed(key, entry)) is not None:
                yield info


def _entries(directory: Path) -> list[os.DirEntry[str]]:
    """Return what the directory holds so that walking it depth first meets keys in the order of their bytes.

    A directory stands for keys that go on with `/`: `a-b` and `a.b` come before what is in `a`, `a0` after it.
    """
    with _translated("list", directory):
        try:
            with os.scandir(directory) as entries:
                return sorted(entries, key=_listing_order)
        except FileNotFoundError:
            return []


def _temporary_files(directory: Path, *, deep: bool) -> Iterator[Path]:
    for entry in _entries(directory):
        if entry.is_dir(follow_symlinks=False):
            if deep:
                yield from _temporary_files(Path(entry.path), deep=True)
        elif _TEMPORARY.fullmatch(entry.name) and entry.is_file(follow_symlinks=False):
            yield Path(entry.path)


def _delete_if_old(path: Path, before: datetime) -> bool:
    try:
        with _translated("delete", path, reading=True):
            if datetime.fromtimestamp(path.stat().st_mtime, UTC) >= before:
                return False
            path.unlink()
    except ObjectMissingError:  # its writer lives, and has renamed it
        return False
    return True


def _listing_order(entry: os.DirEntry[str]) -> bytes:
    return os.fsencode(f"{entry.name}/" if entry.is_dir(follow_symlinks=False) else entry.name)


def _listed(key: str, entry: os.DirEntry[str]) -> ObjectInfo | None:
    try:
        return _info(key, entry.stat())
    except OSError as error:
        if error.errno in (errno.ENOENT, errno.ELOOP):  # deleted since the directory was read, or a link to nothing
            return None
        raise _translate(error, f"cannot look at {entry.path}: {error.strerror}") from error


def _info(key: str, status: os.stat_result) -> ObjectInfo | None:
    if not stat.S_ISREG(status.st_mode):
        return None
    return ObjectInfo(key=key, size_bytes=status.st_size, modified=datetime.fromtimestamp(status.st_mtime, UTC))


def _make_directories(directory: Path) -> None:
    """Create the directory and those above it, each durable in the one that holds it."""
    if directory.is_dir():
        return
    _make_directories(directory.parent)
    directory.mkdir(exist_ok=True)
    _sync_directory(directory.parent)


def _replace(path: Path, content: BinaryIO) -> int:
    """Returns the size in bytes."""
    temporary = path.parent / f"{TEMPORARY_PREFIX}{os.getpid()}-{secrets.token_hex(8)}"
    try:
        with temporary.open("xb") as file:
            content.seek(0)
            shutil.copyfileobj(content, file, _COPY_BYTES)
            size_bytes = file.tell()
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    finally:
        temporary.unlink(missing_ok=True)
    _sync_directory(path.parent)
    return size_bytes


def _sync_directory(directory: Path) -> None:
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    except OSError as error:
        # Some network file systems cannot sync directories and say so; their renames are durable at once.
        if error.errno != errno.EINVAL:
            raise
    finally:
        os.close(descriptor)


@contextmanager
def _translated(verb: str, path: Path, *, reading: bool = False) -> Iterator[None]:
    """Turn an OSError into the StoreError that says what to do. `reading`: a path that is no file is an absence."""
    try:
        yield
    except OSError as error:
        if reading and error.errno in _ABSENT:
            raise ObjectMissingError(f"no object at {path}") from error
        raise _translate(error, f"cannot {verb} {path}: {error.strerror or error}") from error


def _translate(error: OSError, reason: str) -> StoreError:
    if error.errno in _FULL:
        return StoreUnavailableError(f"disk full: {reason}. Free some space there and run again")
    if error.errno in _IN_THE_WAY:
        return StoreDeniedError(f"{reason}. A file is in the way where a directory is needed, or the reverse")
    if error.errno in _DENIED:
        return StoreDeniedError(f"{reason}. The user running Darkroom must be able to write and read there")
    return StoreUnavailableError(reason)
