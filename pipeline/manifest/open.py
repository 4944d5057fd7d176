"""Find a manifest's files and check everything that can be known without reading a row."""

from collections.abc import Collection, Iterable, Iterator, Mapping, Sequence, Set
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from functools import partial

import pyarrow as pa

from pipeline.errors import ManifestError, StoreError
from pipeline.manifest import arrow_types
from pipeline.manifest.advice import building_advice
from pipeline.manifest.beyond_python import beyond_python, text_warnings
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
from pipeline.manifest.find import Found, find_files
from pipeline.manifest.pandas_index import lost_index, lost_index_warnings
from pipeline.manifest.partitions import Stated, partition_warnings, stated_columns
from pipeline.manifest.rules import RowRules
from pipeline.manifest.uniting import READERS, settled_type
from pipeline.output.layout import EXPORT_MARK
from pipeline.output.moments import doubtful_columns
from pipeline.parquet import ParquetReader
from pipeline.readable import form_warnings
from pipeline.storage.base import ObjectStore
from pipeline.storage.s3_settings import S3Settings


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
    stated: Mapping[str, str | None]
    """Columns of theirs that the folders' names state, each with the text of all rows."""
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
    """Open a Parquet file, a directory of them, or a glob with ``*``, ``?``, ``[]`` and ``**``; local or s3://.

    What is there under exactly this name comes before a glob.

    Raises ``ManifestError`` for what is missing, not Parquet, or of the wrong schema.
    """
    mapping = checked_mapping(columns)
    try:
        found = find_files(uri, s3)
        footers = _of_prompts(uri, found)
        described = _described(footers, mapping, rules.reserved)
        check_mapped_exist(
            mapping, dict.fromkeys(name for file in described.values() for name in file.schema.names), uri
        )
        alike = {file.schema: _matched(file.schema, mapping, rules, key) for key, file in _alike(described).items()}
        files = tuple(_files(footers, described, alike))
        beyond = beyond_python(found.store, {key: footer.doubtful for key, footer in footers.items()}, files)
        extra_schema = _extra_schema(found.store, files, described, beyond)
    except StoreError as error:
        raise ManifestError(f"the manifest cannot be read: {error}", where="manifest", value=uri) from None
    stated = partition_warnings(file.stated for file in described.values())
    return Manifest(
        store=found.store,
        files=files,
        rules=rules,
        extra_schema=extra_schema,
        warnings=(
            *found.warnings,
            *stated,
            *lost_index_warnings(footer.lost_index for footer in footers.values()),
            *near_name_warnings(alike.values(), mapping),
            *form_warnings(extra_schema),
            *text_warnings(beyond),
        ),
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Footer:
    schema: pa.Schema
    row_groups: tuple[int, ...]
    doubtful: Set[str]
    """Columns that may hold dates, times or durations that Python cannot."""
    is_export: bool
    """Whether it is a table of one of Darkroom's exports."""
    lost_index: str | None
    """The pandas index that is in no column."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Described:
    """The columns of one file."""

    schema: pa.Schema
    """All columns, those that its folders state included."""
    stated: Stated


def _of_prompts(uri: str, found: Found) -> dict[str, _Footer]:
    """The footers of the files by key; of a folder or a glob without the tables of exports."""
    with ThreadPoolExecutor(READERS) as pool:
        footers = dict(zip(found.keys, pool.map(partial(_footer, found.store), found.keys), strict=True))
    if found.is_named:
        return footers
    kept = {key: footer for key, footer in footers.items() if not footer.is_export}
    if not kept:
        raise ManifestError(
            "every Parquet file here is a table of an export of Darkroom",
            where="manifest",
            value=uri,
            allowed="the folder of prompts, or the name of one of these files",
        )
    return kept


def _described(
    footers: Mapping[str, _Footer], mapping: ColumnMapping, reserved: frozenset[str]
) -> dict[str, _Described]:
    """Every file's columns; a file without rows has no types and states nothing, unless no file has rows."""
    with_rows = {key: footer for key, footer in footers.items() if any(footer.row_groups)} or footers
    described = {}
    for key, footer in with_rows.items():
        stated = stated_columns(key, footer.schema.names, mapping, reserved)
        more = [pa.field(name, pa.string()) for name in stated.used]
        described[key] = _Described(schema=pa.schema([*footer.schema, *more]), stated=stated)
    return described


def _alike(described: Mapping[str, _Described]) -> dict[str, _Described]:
    """The first file of every schema: of one writer's files, however many, there is one."""
    first = dict[pa.Schema, str]()
    for key, file in described.items():
        first.setdefault(file.schema, key)
    return {key: described[key] for key in first.values()}


def _files(
    footers: Mapping[str, _Footer], described: Mapping[str, _Described], alike: Mapping[pa.Schema, Matched]
) -> Iterator[ManifestFile]:
    first_row = 0
    for key, footer in footers.items():
        file = described.get(key)
        matched = alike[file.schema] if file else Matched(settings={}, extras={})
        yield ManifestFile(
            key=key,
            name=key,
            columns=matched.settings,
            extras=matched.extras,
            stated=file.stated.used if file else {},
            row_groups=footer.row_groups,
            first_row=first_row,
        )
        first_row += sum(footer.row_groups)


def _matched(schema: pa.Schema, mapping: ColumnMapping, rules: RowRules, key: str) -> Matched:
    matched = match_columns(schema.names, mapping, key)
    check_types(matched.settings, schema, key)
    check_reserved(matched.extras, rules.reserved, key)
    return matched


def _footer(store: ObjectStore, key: str) -> _Footer:
    try:
        with store.open(key) as file:
            read = ParquetReader(file)
            schema = read.schema
            marks = schema.metadata or {}
            return _Footer(
                schema=schema.remove_metadata(),
                row_groups=read.row_groups,
                doubtful=doubtful_columns(read),
                is_export=EXPORT_MARK in marks,
                lost_index=lost_index(schema),
            )
    except (pa.ArrowException, OSError, ValueError) as error:
        raise ManifestError(
            f"this is not a Parquet file: {str(error).partition('. ')[0].splitlines()[0]}",
            where="manifest",
            value=key,
            allowed=building_advice(store.uri, key),
        ) from None


def _extra_schema(
    store: ObjectStore, files: Iterable[ManifestFile], described: Mapping[str, _Described], texts: Collection[str]
) -> pa.Schema:
    """Every extra column with the type that holds its values in all files."""
    found: dict[str, dict[pa.DataType, list[tuple[str, str]]]] = {}
    for file in files:
        for name, theirs in file.extras.items():
            kind = arrow_types.plain(described[file.key].schema.field(theirs).type)
            found.setdefault(name, {}).setdefault(kind, []).append((file.key, theirs))
    schema = pa.schema(
        [(name, pa.string() if name in texts else settled_type(store, places)) for name, places in found.items()]
    )
    for field in schema:
        check_storable(field.name, field.type, next(iter(found[field.name].values()))[0][0])
    return schema
