"""Make a manifest from CSV, TSV, JSONL or TXT, streamed, written whole or not at all."""

import os
import tempfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import pyarrow as pa
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
from pipeline.manifest.parse import CELLS, Cell
from pipeline.manifest.sources import FORMATS, Format, Row

ROW_GROUP_ROWS = 10_000
_REFUSED = (pa.ArrowException, OverflowError)
"""What Arrow raises for Python values that are not of one type."""

Numbered = list[tuple[int, Row]]
"""Rows with their line numbers."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    rows: int
    blank_lines: int
    columns: tuple[str, ...]
    warnings: tuple[str, ...] = ()
    """Sentences about what may not mean what it seems."""


def build_manifest(
    source: Path, out: Path, *, columns: ColumnMapping | None = None, reserved: frozenset[str] = frozenset()
) -> BuildReport:
    """Write the Parquet manifest ``out``.

    Raises ``ManifestError`` with file, line and column for what cannot be read, ``OutputError`` for what cannot be
    written.
    """
    mapping = checked_mapping(columns or {})
    kind = _format(source)
    if out.suffix.lower() in FORMATS:
        raise OutputError("a manifest is Parquet", where="OUT", value=str(out), allowed="a name that ends in .parquet")
    types = _extra_types(source, kind, mapping)
    check_mapped_exist(mapping, types, str(source))
    matched = match_columns(list(types), mapping, str(source))
    check_reserved(matched.extras, reserved, str(source))
    built = _Columns(source, types, matched)
    try:
        rows, blank_lines = _write(kind.rows(source), built, out)
    except OSError as error:
        raise OutputError(f"the manifest cannot be written: {error.strerror}", where="OUT", value=str(out)) from None
    return BuildReport(
        rows=rows,
        blank_lines=blank_lines,
        columns=tuple(built.schema.names),
        warnings=near_name_warnings([matched], mapping),
    )


def _format(source: Path) -> Format:
    found = FORMATS.get(source.suffix.lower())
    if found is None:
        raise ManifestError(
            "this kind of file is not known", where=str(source), value=source.suffix, allowed=", ".join(FORMATS)
        )
    return found


def _extra_types(source: Path, kind: Format, mapping: ColumnMapping) -> dict[str, pa.DataType]:
    """Every column of the file, with the type of its values if it is not one of ours.

    JSON has types, but no place that declares them: the whole file is read once to know them.
    """
    if kind.header is not None:
        header = kind.header(source)
        match_columns(header, mapping, str(source))  # before a dict hides a name that is there twice
        return dict.fromkeys(header, pa.string())
    types: dict[str, pa.DataType] = {}
    for group in _groups(row for row in kind.rows(source) if row[1] is not None):
        for name in dict.fromkeys(name for _, row in group for name in row):
            before = types.get(name, pa.null())
            types[name] = (
                before if meaning_of(name, mapping) in (None, *COLUMNS) else _wider(before, group, name, source)
            )
    return {name: _storable(kind, name, source) for name, kind in types.items()}


def _wider(before: pa.DataType, group: Numbered, name: str, source: Path) -> pa.DataType:
    """The type of the group's values and of those before: ints and floats together are floats."""

    def attempt(values: Sequence[Any]) -> pa.DataType:
        schemas = [pa.schema([(name, before)]), pa.schema([(name, pa.array(values).type)])]
        return pa.unify_schemas(schemas, promote_options="permissive").field(name).type

    return _converted(group, name, attempt, source, before)


def _converted(
    group: Numbered, name: str, convert: Callable[[Sequence[Any]], Any], source: Path, kind: pa.DataType
) -> Any:
    """A column of the group, converted; the error names the first line that does not go with those above it."""
    values = [row.get(name) for _, row in group]
    try:
        return convert(values)
    except _REFUSED:
        good, bad = 0, len(values)
    while bad - good > 1:
        middle = (good + bad) // 2
        try:
            convert(values[:middle])
            good = middle
        except _REFUSED:
            bad = middle
    raise ManifestError(
        "the values of this column are not all of one type",
        where=f"{source}, line {group[good][0]}, column {name}",
        value=values[good],
        allowed="values of one type" if pa.types.is_null(kind) else f"{kind}, as in the lines above",
    )


def _storable(kind: pa.DataType, name: str, source: Path) -> pa.DataType:
    """A column without any value counts as text. Parquet has no objects without keys."""
    if pa.types.is_null(kind):
        return pa.string()
    if pa.types.is_list(kind):
        return pa.list_(_storable(kind.value_type, name, source))
    if pa.types.is_struct(kind):
        if not kind.num_fields:
            raise ManifestError("this column has objects without keys", where=f"{source}, column {name}", value={})
        return pa.struct([(field.name, _storable(field.type, name, source)) for field in kind])
    return kind


class _Columns:
    """The manifest's columns: from rows of the file to tables under our names."""

    def __init__(self, source: Path, types: Mapping[str, pa.DataType], matched: Matched) -> None:
        self._source = source
        names = {theirs: name for name, theirs in (*matched.settings.items(), *matched.extras.items())}
        self._names = {theirs: names[theirs] for theirs in types if theirs in names}
        self.schema = pa.schema(
            [(name, CELLS[name].kind if name in CELLS else types[theirs]) for theirs, name in self._names.items()]
        )

    def table(self, group: Numbered) -> pa.Table:
        arrays = [self._array(group, name, field.type) for name, field in zip(self._names, self.schema, strict=True)]
        return pa.table(arrays, schema=self.schema)

    def _array(self, group: Numbered, name: str, kind: pa.DataType) -> pa.Array:
        cell = CELLS.get(self._names[name])
        if cell is None:
            return _converted(group, name, lambda values: pa.array(values, kind), self._source, kind)
        return pa.array([self._parsed(cell, row.get(name), line, name) for line, row in group], kind)

    def _parsed(self, cell: Cell, value: Any, line: int, name: str) -> Any:
        if value is None:
            return None
        try:
            return cell.parse(value)
        except (ValueError, OverflowError):
            where = f"{self._source}, line {line}, column {name}"
            raise ManifestError("this cell cannot be read", where=where, value=value, allowed=cell.allowed) from None


def _groups(rows: Iterator[tuple[int, Any]]) -> Iterator[list[tuple[int, Any]]]:
    while group := list(islice(rows, ROW_GROUP_ROWS)):
        yield group


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
