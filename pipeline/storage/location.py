"""Where things are, as people write it: a local path, `file:///path` or `s3://bucket/prefix`."""

import re
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from urllib.parse import unquote

from pipeline.errors import InputError
from pipeline.storage.base import ObjectStore, check_key
from pipeline.storage.local import LocalStore
from pipeline.storage.s3_settings import S3Settings

_ALLOWED = "a local path, file:///path or s3://bucket/prefix"
_DEFAULTS = S3Settings()
_SCHEME = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://(.*)", re.DOTALL)
_BUCKET = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{1,62}")


@dataclass(frozen=True, slots=True, kw_only=True)
class _S3Location:
    bucket: str
    path: str


def open_store(uri: str, s3: S3Settings = _DEFAULTS, *, where: str | None = None) -> ObjectStore:
    """Return the store rooted at a directory or prefix; nothing is contacted or created yet.

    Raises:
        InputError: `uri` is empty, has another scheme, no bucket, or a path no key can have; its `where` is as given.
    """
    with _at(where):
        location = _parse(uri)
        if isinstance(location, Path):
            return LocalStore(location)
        return _s3_store(location.bucket, _prefix(location.path.removesuffix("/"), uri), s3)


def open_parent(uri: str, s3: S3Settings = _DEFAULTS, *, where: str | None = None) -> tuple[ObjectStore, str]:
    """Return the store a single file is in, and the key of the file there.

    A local symbolic link is resolved first: the store is where the file really is, and the key its name there.

    Raises:
        InputError: as `open_store`, or `uri` names no file: it ends in `/`, is only a bucket, or is a link to itself.
    """
    with _at(where):
        location = _parse(uri)
        if uri.endswith("/"):
            raise InputError("a file is needed here, this is a directory", value=uri, allowed=_ALLOWED)
        if isinstance(location, Path):
            real = _resolved(location, uri)
            return LocalStore(real.parent), _key(real.name, uri)
        above, _, name = location.path.rpartition("/")
        return _s3_store(location.bucket, _prefix(above, uri), s3), _key(name, uri)


def without_folders(place: str) -> str:
    """What others may read of where something is: the last name of an absolute local path, all else as it is."""
    is_local = place.startswith(("/", "~", "file:"))
    return PurePosixPath(place).name or place if is_local else place


@contextmanager
def _at(where: str | None) -> Iterator[None]:
    try:
        yield
    except InputError as error:
        error.where = error.where or where
        raise


def _parse(uri: str) -> Path | _S3Location:
    match = _SCHEME.fullmatch(uri)
    scheme, rest = (match[1].lower(), match[2]) if match else ("", uri)
    if scheme == "":
        return _local(rest, uri)
    if scheme == "file":
        return _local(_path_of_file_uri(rest, uri), uri)
    if scheme == "s3":
        return _s3_location(rest, uri)
    raise InputError(f"{scheme}:// is not supported", value=_shown(uri), allowed=_ALLOWED)


def _local(path: str, uri: str) -> Path:
    if not path.strip() or "\0" in path:
        fault = "a location with a NUL in it" if path.strip() else "an empty location"
        raise InputError(fault, value=uri, allowed=_ALLOWED)
    try:
        return Path(path).expanduser()
    except RuntimeError:
        raise InputError("there is no such user, so no such home directory", value=uri, allowed=_ALLOWED) from None


def _resolved(path: Path, uri: str) -> Path:
    try:
        return path.resolve()
    except RuntimeError:
        raise InputError(
            "this path cannot be followed: its links go in a circle", value=uri, allowed=_ALLOWED
        ) from None


def _path_of_file_uri(rest: str, uri: str) -> str:
    host, _, path = rest.partition("/")
    if host not in ("", "localhost"):
        raise InputError("a file:// address of another machine", value=uri, allowed="file:///path, with three slashes")
    return "/" + unquote(path)


def _s3_location(rest: str, uri: str) -> _S3Location:
    bucket, _, path = rest.partition("/")
    if not bucket:
        raise InputError("no bucket", value=uri, allowed="s3://bucket/prefix")
    if "@" in bucket or (":" in bucket and "@" in path):  # a secret may have slashes in it
        # The value is left out: what stands before the @ is likely a password.
        raise InputError(
            "credentials have no place in an address", allowed="s3://bucket/prefix and the AWS_* variables"
        )
    if not _BUCKET.fullmatch(bucket):
        raise InputError("not the name of a bucket", value=bucket, allowed="3 to 63 of a-z 0-9 . - _")
    return _S3Location(bucket=bucket, path=path)


def _s3_store(bucket: str, prefix: str, s3: S3Settings) -> ObjectStore:
    # boto3 takes half a second to import: who renders into a directory need not wait for it.
    from pipeline.storage.s3 import S3Store

    return S3Store(bucket, prefix, s3)


def _prefix(path: str, uri: str) -> str:
    return _key(path, uri) if path else ""


def _key(name: str, uri: str) -> str:
    try:
        return check_key(name)
    except ValueError as error:
        raise InputError(str(error), value=_shown(uri), allowed=_ALLOWED) from error


def _shown(uri: str) -> str | None:
    return None if "@" in uri.partition("://")[2].partition("/")[0] else uri
