"""Make a manifest from CSV, TSV, JSON, JSONL or TXT, streamed, written whole or not at all."""

import json
import os
import tempfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import ManifestError, OutputError
from pipeline.manifest.columns import (
    COLUMNS,
    ColumnMapping,
    Matched,
    check_mapped_exist,
    check_reserved,
    checked_mapping,
    match_columns,
    meaning_of,
    near_name_warnings,
)
from pipeline.manifest.foreign_names import meant
from pipeline.manifest.parse import CELLS, Cell
from pipeline.manifest.signs import Signs
from pipeline.manifest.sources import FORMATS, Format, Row
from pipeline.parquet import ParquetReader

ROW_GROUP_ROWS = 10_000
_MAX_DEPTH = 30
MADE_FROM = b"darkroom.made_from"
"""Key of a built manifest's own metadata: the name of its source."""
_REFUSED = (pa.ArrowException, OverflowError)
"""What Arrow raises for Python values that are not of one type."""

Numbered = list[tuple[int, Row]]
"""Rows with their line numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    manifest: Path
    rows: int
    blank_lines: int
    columns: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    """Sentences about what may not mean what it seems."""


def build_manifest(
    source: Path,
    out: Path | None = None,
    *,
    columns: ColumnMapping | None = None,
    reserved: frozenset[str] = frozenset(),
) -> BuildReport:
    """Write the Parquet manifest ``out``; by default the source's name with the ending .parquet.

    Raises ``ManifestError`` with file, line and column for what cannot be read, ``OutputError`` for what cannot be
    written. Only a named ``out`` replaces a file that was not built from this source.
    """
    mapping = checked_mapping(columns or {})
    kind = _format(source)
    out = _place(source) if out is None else out
    if out.suffix.lower() in FORMATS:
        raise OutputError("a manifest is Parquet", where="OUT", value=str(out), allowed="a name that ends in .parquet")
    types = _types(source, kind, mapping)
    check_mapped_exist(mapping, types, str(source))
    matched = match_columns(list(types), mapping, str(source))
    check_reserved(matched.extras, reserved, str(source))
    built = _Columns(source, kind, types, matched)
    try:
        rows, blank_lines = _written(source, kind, built, out)
    except OSError as error:
        raise OutputError(f"the manifest cannot be written: {error.strerror}", where="OUT", value=str(out)) from None
    return BuildReport(
        manifest=out,
        rows=rows,
        blank_lines=blank_lines,
        columns=tuple(built.schema.names),
        warnings=(*near_name_warnings([matched], mapping), *built.warnings()),
    )


def _place(source: Path) -> Path:
    """Return the default for OUT. ``OutputError`` where a file lies that was not built from this source."""
    out = source.with_suffix(".parquet")
    if out.exists() and _made_from(out) != source.name:
        raise OutputError(
            f"there is a file already that was not built from {source.name}",
            where="OUT",
            value=str(out),
            allowed="another name, or this one as the second argument, which replaces the file",
        )
    return out


def _made_from(manifest: Path) -> str | None:
    try:
        with manifest.open("rb") as file:
            found = ParquetReader(file).schema.metadata or {}
    except (pa.ArrowException, OSError, ValueError):
        return None
    return found.get(MADE_FROM, b"").decode() or None


def _format(source: Path) -> Format:
    found = FORMATS.get(source.suffix.lower())
    if found is None:
        raise ManifestError("unknown kind of file", where=str(source), value=source.suffix, allowed=", ".join(FORMATS))
    return found


def _types(source: Path, kind: Format, mapping: ColumnMapping) -> dict[str, pa.DataType | None]:
    """Every column of the file, with the type of its values if it is not a setting; None is JSON text.

    JSON has types, but no place that declares them: the whole file is read once to know them.
    """
    if kind.header is not None:
        header = kind.header(source)
        match_columns(header, mapping, str(source))  # before a dict hides a name that is there twice
        return dict.fromkeys(header, pa.string())
    types: dict[str, pa.DataType | None] = {}
    for group in _groups(row for row in kind.rows(source) if row[1] is not None):
        for name in dict.fromkeys(name for _, row in group for name in row):
            before = types.get(name, pa.null())
            is_extra = meaning_of(name, mapping) not in (None, *COLUMNS)
            types[name] = _wider(before, [row.get(name) for _, row in group]) if is_extra else before
    return {name: kind and _storable(kind) for name, kind in types.items()}


def _wider(before: pa.DataType | None, values: Sequence[Any]) -> pa.DataType | None:
    """The type of the values and of those before, None if they have none in common; ints among floats are floats."""
    if before is None:
        return None
    try:
        schemas = [pa.schema([("x", before)]), pa.schema([("x", pa.array(values).type)])]
        return pa.unify_schemas(schemas, promote_options="permissive").field(0).type
    except _REFUSED:
        return None


def _storable(kind: pa.DataType, depth: int = 0) -> pa.DataType | None:
    """A column without any value counts as text. Parquet has no objects without keys: None, they are JSON text.

    So is what is nested deeper than ``_MAX_DEPTH``: readers of Parquet refuse schemas of more than 100 levels.
    """
    if depth > _MAX_DEPTH:
        return None
    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_list(kind):
        inner = _storable(kind.value_type, depth + 1)
        return inner and pa.list_(inner)
    if pa.types.is_struct(kind):
        fields = {field.name: _storable(field.type, depth + 1) for field in kind}
        return pa.struct(list(fields.items())) if fields and None not in fields.values() else None
    return kind


class _NotOfItsTypeError(Exception):
    """A value does not fit the type of its column exactly."""

    def __init__(self, name: str) -> None:
        super().__init__(name)
        self.name = name


class _Columns:
    """The manifest's columns: from rows of the file to tables under our names."""

    def __init__(self, source: Path, kind: Format, types: Mapping[str, pa.DataType | None], matched: Matched) -> None:
        self._source, self._quoted = source, kind.quoted
        names = {theirs: name for name, theirs in (*matched.settings.items(), *matched.extras.items())}
        self._names = {theirs: names[theirs] for theirs in types if theirs in names}
        self._types = {theirs: types[theirs] for theirs in self._names}
        self.begin()

    def begin(self) -> None:
        """Forget what was seen of the rows."""
        self._signs, self._quotes, self._hashes = Signs(), 0, 0
        self._header: str | None = None

    def keep_as_json(self, name: str) -> None:
        self._types[name] = None

    @property
    def schema(self) -> pa.Schema:
        kinds = [
            (name, CELLS[name].kind if name in CELLS else self._types[theirs] or pa.string())
            for theirs, name in self._names.items()
        ]
        return pa.schema(kinds, metadata={MADE_FROM: self._source.name})

    def table(self, group: Numbered) -> pa.Table:
        """``_NotOfItsTypeError`` for a column that has to be JSON text."""
        schema = self.schema
        arrays = [self._array(group, name, field.type) for name, field in zip(self._names, schema, strict=True)]
        table = pa.table(arrays, schema=schema)
        self._look_at(table, group)
        return table

    def _array(self, group: Numbered, name: str, kind: pa.DataType) -> pa.Array:
        cell = CELLS.get(self._names[name])
        if cell is not None:
            return pa.array([self._parsed(cell, row.get(name), line, name) for line, row in group], kind)
        values = [row.get(name) for _, row in group]
        if self._types[name] is None:
            return pa.array(
                [None if value is None else json.dumps(value, ensure_ascii=False) for value in values], kind
            )
        try:
            return pa.array(values, kind)
        except _REFUSED:
            raise _NotOfItsTypeError(name) from None

    def _parsed(self, cell: Cell, value: Any, line: int, name: str) -> Any:
        if value is None or value != value:  # NaN, as Python's json writes a number that is missing
            return None
        if isinstance(value, str) and not pa.types.is_string(cell.kind) and not value.strip():
            return None
        try:
            return cell.parse(value)
        except (ValueError, OverflowError):
            where = f"{self._source}, line {line}, column {name}"
            raise ManifestError("this cell cannot be read", where=where, value=value, allowed=cell.allowed) from None

    def _look_at(self, table: pa.Table, group: Numbered) -> None:
        self._signs.see(table)
        if self._quoted is None or not group:
            return
        cells = (cell for _, row in group for cell in row.values() if cell)
        self._quotes += sum(self._quoted.fullmatch(cell) is not None for cell in cells)
        self._hashes += pc.sum(pc.starts_with(table["prompt"], "#")).as_py() or 0
        line, first = group[0]
        if line == 1 and meant(first.get("prompt") or "") == "prompt":  # only a list has a prompt in line 1
            self._header = first["prompt"]

    def warnings(self) -> Iterator[str]:
        """Yield sentences about what may not mean what it seems."""
        for name, kind in self._types.items():
            if kind is None and self._names[name] not in CELLS:
                yield f"the values of the column {name!r} have no Parquet type in common; it holds them as JSON text"
        yield from self._signs.warnings()
        if self._quotes:
            yield f"cells that begin and end with quotes: {self._quotes:,}; the quotes are kept as part of the text"
        if self._hashes:
            yield f"prompts that begin with #: {self._hashes:,}; they are drawn as text, as every line is"
        if self._header:
            yield f"the first line, {self._header!r}, is drawn as text; a table with a header ends in .csv or .tsv"


def _groups(rows: Iterator[tuple[int, Any]]) -> Iterator[list[tuple[int, Any]]]:
    while group := list(islice(rows, ROW_GROUP_ROWS)):
        yield group


def _written(source: Path, kind: Format, columns: _Columns, out: Path) -> tuple[int, int]:
    """The rows written and the blank lines left out. Columns whose values differ too much become JSON text."""
    while True:
        columns.begin()
        try:
            return _write(kind.rows(source), columns, out)
        except _NotOfItsTypeError as error:
            columns.keep_as_json(error.name)


def _write(lines: Iterator[tuple[int, Row | None]], columns: _Columns, out: Path) -> tuple[int, int]:
    """The rows written and the blank lines left out."""
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(prefix=".tmp-", dir=out.parent)
    written = blank_lines = 0
    try:
        with os.fdopen(handle, "wb") as file:
            with pq.ParquetWriter(file, columns.schema, compression="zstd", write_page_checksum=True) as writer:
                for group in _groups(lines):
                    rows = [(line, row) for line, row in group if row is not None]
                    writer.write_table(columns.table(rows))
                    written, blank_lines = written + len(rows), blank_lines + len(group) - len(rows)
            file.flush()
            os.fchmod(file.fileno(), 0o644)
            os.fsync(file.fileno())
        os.replace(unfinished, out)
    except BaseException:
        with suppress(OSError):
            os.unlink(unfinished)
        raise
    return written, blank_lines
