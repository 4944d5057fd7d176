"""Find a manifest's files and check everything that can be known without reading a row."""

import re
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial
from pathlib import Path, PurePosixPath

import pyarrow as pa

from pipeline.errors import InputError, ManifestError, StoreError
from pipeline.manifest import arrow_types
from pipeline.manifest.advice import building_advice
from pipeline.manifest.columns import (
    ColumnMapping,
    Matched,
    check_mapped_exist,
    check_reserved,
    check_storable,
    check_types,
    checked_mapping,
    match_columns,
    near_name_warnings,
)
from pipeline.manifest.rules import RowRules
from pipeline.parquet import ParquetReader
from pipeline.readable import form_warnings
from pipeline.storage.base import ObjectStore
from pipeline.storage.location import open_parent, open_store
from pipeline.storage.s3_settings import S3Settings

_WILDCARDS = "*?["
_READERS = 16
"""Footers read at a time: in a store far away each is a wait."""


@dataclass(frozen=True, slots=True, kw_only=True)
class ManifestFile:
    key: str
    """In the manifest's store."""
    name: str
    """As in ``manifest_file``: the path below the manifest's root."""
    columns: Mapping[str, str]
    """Ours → theirs."""
    extras: Mapping[str, str]
    """The name in the metadata → theirs."""
    row_groups: tuple[int, ...]
    """Rows of each row group."""
    first_row: int
    """The file's first row, counted over the whole manifest."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Split:
    """Row groups ``start`` to ``stop`` of one file."""

    file_index: int
    start: int
    stop: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Manifest:
    """The files of a manifest, looked at but not read. Pickles, so that planners anywhere can read it."""

    store: ObjectStore
    files: tuple[ManifestFile, ...]
    rules: RowRules
    extra_schema: pa.Schema
    """Columns that travel to the metadata unchanged, with plain types."""
    warnings: tuple[str, ...] = ()
    """Sentences about what may not mean what it seems; ``check``, ``plan`` and ``render`` print them."""

    @property
    def rows(self) -> int:
        return sum(sum(file.row_groups) for file in self.files)

    def splits(self, max_rows: int) -> list[Split]:
        """Pieces of about ``max_rows`` rows; a row group is never cut."""
        return [split for index, file in enumerate(self.files) for split in _splits(index, file, max_rows)]


def _splits(file_index: int, file: ManifestFile, max_rows: int) -> Iterator[Split]:
    for run in runs(file.row_groups, max_rows):
        yield Split(file_index=file_index, start=run.start, stop=run.stop)


def runs(row_groups: Sequence[int], max_rows: int) -> Iterator[range]:
    """Neighbouring row groups of about ``max_rows`` rows together, given the rows of each; one group at least."""
    start = rows = 0
    for number, count in enumerate(row_groups):
        if number > start and rows + count > max_rows:
            yield range(start, number)
            start, rows = number, 0
        rows += count
    if start < len(row_groups):
        yield range(start, len(row_groups))


def open_manifest(uri: str, *, columns: ColumnMapping, rules: RowRules, s3: S3Settings) -> Manifest:
    """A Parquet file, a directory of them, or a glob with ``*``, ``?``, ``[]`` and ``**``; local or s3://.

    What is there under exactly this name comes before a glob.

    Raises ``ManifestError`` for what is missing, not Parquet, or of the wrong schema.
    """
    mapping = checked_mapping(columns)
    try:
        store, keys = find_files(uri, s3)
        with ThreadPoolExecutor(_READERS) as pool:
            footers = dict(zip(keys, pool.map(partial(_footer, store), keys), strict=True))
    except StoreError as error:
        raise ManifestError(f"the manifest cannot be read: {error}", where="manifest", value=uri) from None
    check_mapped_exist(mapping, (name for schema, _ in footers.values() for name in schema.names), uri)
    files: list[ManifestFile] = []
    all_matched: list[Matched] = []
    extras: dict[str, tuple[pa.DataType, str]] = {}
    first_row = 0
    for key, (schema, groups) in footers.items():
        matched = match_columns(schema.names, mapping, key)
        check_types(matched.settings, schema, key)
        check_reserved(matched.extras, rules.reserved, key)
        _merge_extras(extras, schema, matched, key)
        all_matched.append(matched)
        files.append(
            ManifestFile(
                key=key,
                name=key,
                columns=matched.settings,
                extras=matched.extras,
                row_groups=groups,
                first_row=first_row,
            )
        )
        first_row += sum(groups)
    for name, (kind, key) in extras.items():
        check_storable(name, kind, key)
    extra_schema = pa.schema([(name, kind) for name, (kind, _) in extras.items()])
    return Manifest(
        store=store,
        files=tuple(files),
        rules=rules,
        extra_schema=extra_schema,
        warnings=(*near_name_warnings(all_matched, mapping), *form_warnings(extra_schema)),
    )


def find_files(uri: str, s3: S3Settings) -> tuple[ObjectStore, list[str]]:
    """The files of a manifest, unopened: a store and their keys there. ``ManifestError`` when there are none."""
    try:
        named = _named(uri, s3)
        if named is not None:
            return named
        if any(sign in uri for sign in _WILDCARDS):
            return _glob(uri, s3)
    except InputError as error:
        raise ManifestError(error.what, where="manifest", value=uri, allowed=error.allowed) from None
    empty = "://" not in uri and Path(uri).expanduser().is_dir()
    what = "the manifest directory holds no Parquet file" if empty else "there is no such manifest"
    raise ManifestError(what, where="manifest", value=uri, allowed="a Parquet file, a directory of them, or a glob")


def _named(uri: str, s3: S3Settings) -> tuple[ObjectStore, list[str]] | None:
    """The file or the directory of exactly this name. A file first: reading one may be allowed where listing is not.

    This is the first contact with a store: one that cannot be reached is told about in seconds.
    """
    try:
        parent, key = open_parent(uri, s3.impatient())
        if parent.head(key) is not None:
            return open_parent(uri, s3)[0], [key]
    except (InputError, ValueError):  # no object can have this name, but a directory: "..", "s3://bucket"
        pass
    listed = open_store(uri, s3.impatient()).list()
    keys = [info.key for info in listed if info.key.endswith(".parquet")]
    return (open_store(uri, s3), keys) if keys else None


def _glob(uri: str, s3: S3Settings) -> tuple[ObjectStore, list[str]]:
    fixed, pattern = _cut_at_wildcard(uri)
    store = open_store(fixed or ".", s3)
    patterns = [segment for segment in pattern.split("/") if segment not in ("", ".")]
    listed = store.list(re.split(r"[*?\[]", pattern, maxsplit=1)[0])
    keys = [info.key for info in listed if _matches(info.key.split("/"), patterns)]
    if not keys:
        raise ManifestError("no file matches the manifest's pattern", where="manifest", value=uri)
    return store, keys


def _cut_at_wildcard(uri: str) -> tuple[str, str]:
    """The directory before the first wildcard, and the pattern below it."""
    segments = uri.split("/")
    first = next(number for number, segment in enumerate(segments) if any(sign in segment for sign in _WILDCARDS))
    fixed = "/".join(segments[:first])
    return fixed or ("/" if uri.startswith("/") else ""), "/".join(segments[first:])


def _matches(names: list[str], patterns: list[str]) -> bool:
    if not patterns:
        return not names
    if patterns[0] == "**":
        return any(_matches(names[skip:], patterns[1:]) for skip in range(len(names) + 1))
    return bool(names) and PurePosixPath(names[0]).match(patterns[0]) and _matches(names[1:], patterns[1:])


def _footer(store: ObjectStore, key: str) -> tuple[pa.Schema, tuple[int, ...]]:
    """The schema of a file and the rows of each row group."""
    try:
        with store.open(key) as file:
            read = ParquetReader(file)
            return read.schema, read.row_groups
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ManifestError(
            f"this is not a Parquet file: {str(error).partition('. ')[0].splitlines()[0]}",
            where="manifest",
            value=key,
            allowed=building_advice(store.uri, key),
        ) from None


def _merge_extras(extras: dict[str, tuple[pa.DataType, str]], schema: pa.Schema, matched: Matched, key: str) -> None:
    for name, theirs in matched.extras.items():
        kind = arrow_types.plain(schema.field(theirs).type)
        before, where = extras.get(name, (kind, key))
        merged = arrow_types.merged(before, kind)
        if merged is None:
            raise ManifestError(
                f"the column {name} has another type than in {where}",
                where=key,
                value=str(kind),
                allowed=str(before),
            )
        extras[name] = merged, where
