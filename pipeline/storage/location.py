"""From what a user writes to a store."""

from pathlib import Path
from urllib.parse import unquote, urlsplit

from pipeline.errors import InputError
from pipeline.storage.base import ObjectStore
from pipeline.storage.local import LocalStore
from pipeline.storage.s3 import S3Settings, S3Store

_ALLOWED = "a local path, file:///path or s3://bucket/prefix"


def open_store(uri: str, s3: S3Settings | None = None) -> ObjectStore:
    """The store at a location; nothing is read or written yet. ``InputError`` when it is not one."""
    scheme = uri.partition("://")[0] if "://" in uri else ""
    if not uri.strip() or "\0" in uri:
        raise InputError("this is not a location", value=uri, allowed=_ALLOWED)
    if not scheme:
        return LocalStore(Path(uri).expanduser())
    if scheme == "file":
        return LocalStore(Path(unquote(urlsplit(uri).path)))
    bucket, _, prefix = uri.partition("://")[2].partition("/")
    if scheme != "s3" or not bucket:
        raise InputError("this is not a location", value=uri, allowed=_ALLOWED)
    segments = prefix.strip("/").split("/") if prefix.strip("/") else []
    if any(segment in ("", ".", "..") for segment in segments):
        raise InputError("this is not a location", value=uri, allowed=f"{_ALLOWED}, without empty, '.' or '..' parts")
    return S3Store(bucket, prefix, s3 or S3Settings())


def open_parent(uri: str, s3: S3Settings | None = None) -> tuple[ObjectStore, str]:
    """The store of the directory that holds an object, and the object's key in it."""
    if "://" not in uri:
        path = Path(uri).expanduser().absolute()
        return LocalStore(path.parent), path.name
    parent, _, name = uri.rstrip("/").rpartition("/")
    if parent.endswith(":/") or not name:
        raise InputError("this names no object", value=uri, allowed="s3://bucket/key")
    return open_store(parent, s3), name
