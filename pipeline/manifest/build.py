"""Make a manifest from CSV, TSV, JSONL or TXT, streamed, written whole or not at all."""

import csv
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any, TextIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ManifestError
from pipeline.manifest.columns import ALIASES, check_reserved, checked_mapping, match_columns, ours_of

ROW_GROUP_ROWS = 10_000
_NUMBERS: Mapping[str, tuple[Callable[[str], Any], pa.DataType, str]] = {
    "seed": (int, pa.uint64(), "a whole number"),
    "num_inference_steps": (int, pa.uint32(), "a whole number"),
    "width": (int, pa.uint32(), "a whole number of px"),
    "height": (int, pa.uint32(), "a whole number of px"),
    "guidance_scale": (float, pa.float64(), "a number"),
}

Row = tuple[int, dict[str, Any]]
"""A line number, from 1, and the cells by our names."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BuildReport:
    rows: int
    blank_lines: int
    columns: tuple[str, ...]


def build_manifest(
    source: Path, out: Path, *, columns: Mapping[str, str] | None = None, reserved: frozenset[str] = frozenset()
) -> BuildReport:
    """Write the Parquet manifest ``out``. ``ManifestError`` names file, line and column of what cannot be read."""
    readers = {".csv": _csv, ".tsv": _tsv, ".jsonl": _jsonl, ".ndjson": _jsonl, ".txt": _txt}
    reader = readers.get(source.suffix.lower())
    if reader is None:
        allowed = ", ".join(readers)
        raise ManifestError("this kind of file is not known", where=str(source), value=source.suffix, allowed=allowed)
    mapping = checked_mapping(columns or {})
    blank = [0]
    try:
        with source.open(encoding="utf-8-sig", newline="") as file:
            rows = reader(file, source, mapping, reserved, blank)
            written, names = _write(rows, out)
    except FileNotFoundError:
        raise ManifestError("there is no such file", where="SOURCE", value=str(source)) from None
    except UnicodeDecodeError as error:
        raise ManifestError(f"this is not UTF-8: {error}", where=str(source)) from None
    return BuildReport(rows=written, blank_lines=blank[0], columns=names)


def _csv(
    file: TextIO, source: Path, mapping: Mapping[str, str], reserved: frozenset[str], _: list[int]
) -> Iterator[Row]:
    return _separated(csv.reader(file, strict=True), source, mapping, reserved)


def _tsv(
    file: TextIO, source: Path, mapping: Mapping[str, str], reserved: frozenset[str], _: list[int]
) -> Iterator[Row]:
    """Tabs separate, quotes are characters like others: that is how TSV is written in the field (PartiPrompts)."""
    return _separated(csv.reader(file, delimiter="\t", quoting=csv.QUOTE_NONE), source, mapping, reserved)


def _separated(reader: Any, source: Path, mapping: Mapping[str, str], reserved: frozenset[str]) -> Iterator[Row]:
    try:
        header: list[str] = next(reader, [])
        names = _our_names(header, mapping, reserved, str(source))
        for cells in reader:
            if not cells:
                continue
            if len(cells) != len(names):
                raise ManifestError(
                    "a line has another number of cells than the header",
                    where=f"{source}, line {reader.line_num}",
                    value=len(cells),
                    allowed=str(len(names)),
                )
            where = f"{source}, line {reader.line_num}"
            yield reader.line_num, {n: _cell(n, c, where) for n, c in zip(names, cells, strict=True)}
    except csv.Error as error:
        raise ManifestError(f"this line cannot be read: {error}", where=f"{source}, line {reader.line_num}") from None


def _jsonl(
    file: TextIO, source: Path, mapping: Mapping[str, str], reserved: frozenset[str], blank: list[int]
) -> Iterator[Row]:
    for number, line in enumerate(file, 1):
        if not line.strip():
            blank[0] += 1
            continue
        try:
            read = json.loads(line)
        except ValueError as error:
            raise ManifestError(f"this line is not JSON: {error}", where=f"{source}, line {number}") from None
        if not isinstance(read, dict):
            raise ManifestError("this line is not a JSON object", where=f"{source}, line {number}", value=read)
        names = _our_names(list(read), mapping, reserved, f"{source}, line {number}")
        yield number, dict(zip(names, read.values(), strict=True))


def _txt(file: TextIO, _: Path, __: Mapping[str, str], ___: frozenset[str], blank: list[int]) -> Iterator[Row]:
    for number, line in enumerate(file, 1):
        if line.strip():
            yield number, {"prompt": line.strip()}
        else:
            blank[0] += 1


def _our_names(header: list[str], mapping: Mapping[str, str], reserved: frozenset[str], where: str) -> list[str]:
    match_columns(header, mapping, where)
    names = [ours_of(name, mapping) or name for name in header]
    check_reserved(
        [name for name, own in zip(header, names, strict=True) if name == own and ours_of(name, mapping) is None],
        reserved,
        where,
    )
    return names


def _cell(name: str, cell: str, where: str) -> Any:
    name = ALIASES.get(name, name)
    if cell == "":
        return None
    if name == "seeds":
        name, parts = "seed", cell.strip("[] ").replace(",", " ").split()
        return [_cell(name, part, where) for part in parts]
    if name not in _NUMBERS:
        return cell
    parse, _, allowed = _NUMBERS[name]
    try:
        return parse(cell)
    except ValueError:
        raise ManifestError(
            "this cell cannot be read", where=f"{where}, column {name}", value=cell, allowed=allowed
        ) from None


def _write(rows: Iterator[Row], out: Path) -> tuple[int, tuple[str, ...]]:
    out.parent.mkdir(parents=True, exist_ok=True)
    handle, unfinished = tempfile.mkstemp(prefix=".tmp-", dir=out.parent)
    os.close(handle)
    written, writer = 0, None
    try:
        while group := list(islice(rows, ROW_GROUP_ROWS)):
            table = _table([cells for _, cells in group], writer.schema if writer else None, group[0][0])
            writer = writer or pq.ParquetWriter(unfinished, table.schema, compression="zstd")
            writer.write_table(table)
            written += table.num_rows
        if writer is None:
            writer = pq.ParquetWriter(unfinished, pa.schema([("prompt", pa.string())]))
        writer.close()
        os.chmod(unfinished, 0o644)
        os.replace(unfinished, out)
    except BaseException:
        with suppress(OSError):
            os.unlink(unfinished)
        raise
    return written, tuple(writer.schema.names)


def _table(rows: list[dict[str, Any]], schema: pa.Schema | None, first_line: int) -> pa.Table:
    names = schema.names if schema else list(dict.fromkeys(name for row in rows for name in row))
    new = dict.fromkeys(name for row in rows for name in row if name not in names)
    if new:
        raise ManifestError("a column appears only later in the file", where=f"from line {first_line}", value=list(new))
    arrays = []
    for name in names:
        kind = schema.field(name).type if schema else _kind(name, rows)
        try:
            arrays.append(pa.array([row.get(name) for row in rows], kind))
        except (pa.ArrowInvalid, pa.ArrowTypeError, OverflowError) as error:
            raise ManifestError(
                f"the values of this column are not all of one type: {error}",
                where=f"column {name}, from line {first_line}",
                allowed=str(kind) if kind else None,
            ) from None
    return pa.table(arrays, names=names)


def _kind(name: str, rows: list[dict[str, Any]]) -> pa.DataType | None:
    """Ours have our types; others are strings as soon as one cell is, else what Arrow makes of them."""
    if name in _NUMBERS:
        return _NUMBERS[name][1]
    if name == "seeds":
        return pa.list_(pa.uint64())
    values = [row.get(name) for row in rows]
    return pa.string() if any(isinstance(v, str) for v in values) or all(v is None for v in values) else None
