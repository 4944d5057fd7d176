"""Find the files of a manifest: one Parquet file, those of a folder, or those that a glob matches."""

import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

from pipeline.errors import InputError, ManifestError
from pipeline.manifest.walk import MARKER, walk
from pipeline.output.layout import is_table
from pipeline.storage.base import ObjectStore
from pipeline.storage.local import LocalStore
from pipeline.storage.location import open_parent, open_store
from pipeline.storage.s3_settings import S3Settings

_WILDCARDS = "*?["
_ENDING = ".parquet"
_SHOWN = 3


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """The files of a manifest, unopened."""

    store: ObjectStore
    keys: tuple[str, ...]
    is_named: bool
    """Whether a person named exactly this file, rather than a folder or a glob."""
    warnings: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True)
class _Listed:
    """The result of a listing, in the order of keys."""

    keys: tuple[str, ...]
    hidden: tuple[str, ...] = ()
    """Parquet files that are left out for their names."""
    twice: tuple[str, ...] = ()
    """Links to files that have another name here."""
    is_output: bool = False
    """Whether the folder itself is an output of Darkroom."""


def find_files(uri: str, s3: S3Settings) -> Found:
    """Return the files of a manifest. ``ManifestError`` where there are none.

    A name that begins with ``_`` or ``.`` is left out of folders and globs, as Spark and Hive do, unless it is a folder
    ``_key=value`` or the glob spells it. So is what Darkroom wrote.
    """
    try:
        named = _named(uri, s3)
        if named is not None:
            return named
        store, listed = _listed(uri, s3)
    except InputError as error:
        if isinstance(error, ManifestError):
            raise
        raise ManifestError(error.what, where="manifest", value=uri, allowed=error.allowed) from None
    except OSError as error:
        raise ManifestError(
            f"the manifest cannot be read: {error.strerror}", where="manifest", value=error.filename or uri
        ) from None
    if not listed.keys:
        raise _nothing(uri, store, listed)
    return Found(store=store, keys=listed.keys, is_named=False, warnings=tuple(_warnings(listed)))


def is_hidden(name: str) -> bool:
    """Tell whether a name is left out of folders; Spark's rule, by which ``_key=value`` is data."""
    return name.startswith(".") or (name.startswith("_") and "=" not in name)


def _named(uri: str, s3: S3Settings) -> Found | None:
    """The file of exactly this name, before any folder or glob: reading one may be allowed where listing is not.

    This is the first contact with a store: one that cannot be reached is told about in seconds.
    """
    try:
        parent, key = open_parent(uri, s3.impatient())
        if parent.head(key) is None:
            return None
    except (InputError, ValueError):  # no object can have this name, but a directory: "..", "s3://bucket"
        return None
    return Found(store=open_parent(uri, s3)[0], keys=(key,), is_named=True)


def _listed(uri: str, s3: S3Settings) -> tuple[ObjectStore, _Listed]:
    """The files of the folder of this name; without any, those that the glob matches."""
    store = open_store(uri, s3.impatient())
    listed = _list(store, ())
    if any((listed.keys, listed.hidden, listed.is_output)) or not any(sign in uri for sign in _WILDCARDS):
        return _reading(uri, s3), listed
    fixed, pattern = _cut_at_wildcard(uri)
    patterns = tuple(segment for segment in pattern.split("/") if segment not in ("", "."))
    return _reading(fixed or ".", s3), _list(open_store(fixed or ".", s3), patterns)


def _reading(uri: str, s3: S3Settings) -> ObjectStore:
    """The store as planners and workers read it: links lead where they lead."""
    store = open_store(uri, s3)
    return LocalStore(Path(store.uri), follow_links=True) if isinstance(store, LocalStore) else store


def _list(store: ObjectStore, patterns: tuple[str, ...]) -> _Listed:
    if isinstance(store, LocalStore):
        return _list_folder(Path(store.uri), patterns)
    prefix = re.split(r"[*?\[]", "/".join(patterns), maxsplit=1)[0]
    tables, outputs = list[str](), set[str]()
    for info in store.list(prefix):
        above, marker, _ = f"/{info.key}".partition(f"/{MARKER}/")
        if marker:
            outputs.add(above.removeprefix("/"))
        elif patterns or _is_parquet(info.key):
            tables.append(info.key)
    is_output = "" in outputs or next(iter(store.list(f"{MARKER}/")), None) is not None
    inside = tuple(f"{output}/" for output in outputs if output)
    rest = [key for key in tables if not key.startswith(inside) and not (is_output and is_table(key))]
    kept = tuple(key for key in rest if _fits(key, patterns))
    return _Listed(kept, tuple(key for key in rest if _is_left_out(key, patterns)), is_output=is_output)


def _list_folder(root: Path, patterns: tuple[str, ...]) -> _Listed:
    if not root.is_dir():
        return _Listed(())
    is_output = (root / MARKER).is_dir()
    hidden: list[str] = []

    def wanted(names: tuple[str, ...]) -> bool:
        if not _may_fit(names, patterns):
            return False
        if is_hidden(names[-1]) and not any(_names_hidden(pattern, names[-1]) for pattern in patterns):
            hidden.extend(key for key in _parquet_below(root, names) if _is_left_out(key, patterns))
            return False
        return True

    found = {key: real for key, real in walk(root, wanted) if _fits(key, patterns)}
    found = {key: real for key, real in found.items() if not (is_output and is_table(key))}
    keys, twice = _each_once(root, found)
    return _Listed(keys, tuple(sorted(hidden)), twice, is_output)


def _each_once(root: Path, found: dict[str, Path | None]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The keys in order, each file once, and the names of links that lead to one of the others.

    A file is read again where folders state other columns for it.
    """
    top = root.resolve()
    seen = (
        {(top / key, *_stating(key)) for key, real in found.items() if real is None} if any(found.values()) else set()
    )
    keys, twice = list[str](), list[str]()
    for key in sorted(found, key=os.fsencode):
        real = found[key]
        (twice if real and (real, *_stating(key)) in seen else keys).append(key)
        if real is not None:
            seen.add((real, *_stating(key)))
    return tuple(keys), tuple(twice)


def _stating(key: str) -> list[str]:
    return [name for name in key.split("/")[:-1] if "=" in name]


def _parquet_below(root: Path, names: tuple[str, ...]) -> Iterable[str]:
    """Parquet files of a hidden name. Folders that begin with a dot are tools' own, and not looked into."""
    path, key = root.joinpath(*names), "/".join(names)
    if names[-1] == MARKER:
        return []
    if path.is_dir():
        inner = path.rglob(f"*{_ENDING}") if names[-1].startswith("_") else ()
        return [f"{key}/{file.relative_to(path).as_posix()}" for file in inner]
    return [key] if _is_parquet(key) else []


def _is_parquet(key: str) -> bool:
    return key.lower().endswith(_ENDING)


def _has_hidden(key: str) -> bool:
    return any(map(is_hidden, key.split("/")))


def _fits(key: str, patterns: tuple[str, ...]) -> bool:
    return _matches(key.split("/"), patterns) if patterns else _is_parquet(key) and not _has_hidden(key)


def _is_left_out(key: str, patterns: tuple[str, ...]) -> bool:
    """Whether only a hidden name keeps a Parquet file from being read."""
    would_fit = not patterns or _matches(key.split("/"), patterns, hidden=True)
    return _is_parquet(key) and would_fit and not _fits(key, patterns)


def _may_fit(names: tuple[str, ...], patterns: tuple[str, ...]) -> bool:
    """Whether something of this name or below it may match; false only where the pattern has no place for it."""
    deep = len(names) - 1
    if not patterns or "**" in patterns[: deep + 1]:
        return True
    return deep < len(patterns) and _matches_one(names[-1], patterns[deep], hidden=True)


def _matches(names: Sequence[str], patterns: Sequence[str], *, hidden: bool = False) -> bool:
    """Whether the pattern takes these names; with ``hidden``, whatever they begin with."""
    if not patterns:
        return not names
    if patterns[0] == "**":
        seen = [hidden or not is_hidden(name) for name in names]
        most = seen.index(False) if False in seen else len(names)
        return any(_matches(names[skip:], patterns[1:], hidden=hidden) for skip in range(most + 1))
    matches_first = bool(names) and _matches_one(names[0], patterns[0], hidden=hidden)
    return matches_first and _matches(names[1:], patterns[1:], hidden=hidden)


def _matches_one(name: str, pattern: str, *, hidden: bool) -> bool:
    return PurePosixPath(name).match(pattern) and (hidden or not is_hidden(name) or _names_hidden(pattern, name))


def _names_hidden(pattern: str, name: str) -> bool:
    """Whether a pattern asks for a hidden name by its first character, as in a shell."""
    return pattern[0] == name[0]


def _cut_at_wildcard(uri: str) -> tuple[str, str]:
    """The directory before the first wildcard, and the pattern below it."""
    segments = uri.split("/")
    first = next(number for number, segment in enumerate(segments) if any(sign in segment for sign in _WILDCARDS))
    fixed = "/".join(segments[:first])
    return fixed or ("/" if uri.startswith("/") else ""), "/".join(segments[first:])


def _warnings(listed: _Listed) -> Iterable[str]:
    if listed.hidden:
        yield f"names that begin with _ or . are left out: {_some(listed.hidden)}"
    if listed.twice:
        yield f"files that several names lead to are read once; left out: {_some(listed.twice)}"


def _some(keys: Sequence[str]) -> str:
    more = len(keys) - _SHOWN
    return ", ".join(keys[:_SHOWN]) + (f" and {more:,} more" if more > 0 else "")


def _nothing(uri: str, store: ObjectStore, listed: _Listed) -> ManifestError:
    allowed = "a Parquet file, a directory of them, or a glob"
    if listed.is_output:
        what = "this is an output of Darkroom, and holds no Parquet file but Darkroom's own"
        allowed = "the folder or file of prompts; a table of an output has to be named exactly"
    elif listed.hidden:
        what = f"names that begin with _ or . are left out, and nothing else is there: {_some(listed.hidden)}"
        allowed = "the name of such a file or folder itself"
    elif isinstance(store, LocalStore) and Path(uri).is_symlink() and not Path(uri).exists():
        what = "this symbolic link leads nowhere"
    elif any(sign in uri for sign in _WILDCARDS):
        what = "no file matches the manifest's pattern"
    elif isinstance(store, LocalStore) and Path(store.uri).is_dir():
        what = "the manifest directory holds no Parquet file"
    else:
        what = "there is no such manifest"
    return ManifestError(what, where="manifest", value=uri, allowed=allowed)
