"""Rows of the text files that prompts come in, under the names the file gives them."""

import csv
import json
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any, TextIO

from pipeline.errors import ManifestError

Row = dict[str, Any]
Lines = Iterator[tuple[int, Row | None]]
"""Each row with the number of its first line, from 1; None for a blank line."""


@dataclass(frozen=True, slots=True)
class Format:
    """How a kind of file is read."""

    rows: Callable[[Path], Lines]
    header: Callable[[Path], list[str]] | None
    """The columns, all of them strings; None where only the rows tell."""


def _csv_rows(path: Path) -> Lines:
    return _separated(path, delimiter=",", strict=True)


def _tsv_rows(path: Path) -> Lines:
    """Tabs separate, quotes are characters like others: that is how TSV is written in the field (PartiPrompts)."""
    return _separated(path, delimiter="\t", quoting=csv.QUOTE_NONE)


def _csv_header(path: Path) -> list[str]:
    return _header(path, delimiter=",", strict=True)


def _tsv_header(path: Path) -> list[str]:
    return _header(path, delimiter="\t", quoting=csv.QUOTE_NONE)


def _txt_header(_: Path) -> list[str]:
    return ["prompt"]


def _header(path: Path, **dialect: Any) -> list[str]:
    with _opened(path) as file:
        reader = csv.reader(file, **dialect)
        try:
            return next(reader, [])
        except csv.Error as error:
            raise _unreadable(error, path, reader.line_num) from None


def _separated(path: Path, **dialect: Any) -> Lines:
    with _opened(path) as file:
        reader = csv.reader(file, **dialect)
        names = next(reader, [])
        line = reader.line_num + 1
        try:
            for cells in reader:
                yield line, _named(names, cells, f"{path}, line {line}") if cells else None
                line = reader.line_num + 1
        except csv.Error as error:
            raise _unreadable(error, path, line) from None


def _named(names: list[str], cells: list[str], where: str) -> Row:
    """Nothing between two separators is null."""
    if len(cells) != len(names):
        raise ManifestError(
            "a line has another number of cells than the header", where=where, value=len(cells), allowed=str(len(names))
        )
    return {name: cell or None for name, cell in zip(names, cells, strict=True)}


def _json_rows(path: Path) -> Lines:
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            yield number, _json_object(line, f"{path}, line {number}") if line.strip() else None


def _json_object(line: str, where: str) -> Row:
    try:
        read = json.loads(line)
        if "\\ud" in line.lower():
            json.dumps(read, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"this line is not JSON: {error}", where=where) from None
    if not isinstance(read, dict):
        raise ManifestError("this line is not a JSON object", where=where, value=read)
    return read


def _txt_rows(path: Path) -> Lines:
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            yield number, {"prompt": line.strip()} if line.strip() else None


FORMATS: Mapping[str, Format] = {
    ".csv": Format(_csv_rows, _csv_header),
    ".tsv": Format(_tsv_rows, _tsv_header),
    ".jsonl": Format(_json_rows, None),
    ".ndjson": Format(_json_rows, None),
    ".txt": Format(_txt_rows, _txt_header),
}
"""By the end of the file's name."""


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    try:
        with path.open(encoding="utf-8-sig", newline="") as file:
            yield file
    except FileNotFoundError:
        raise ManifestError("there is no such file", where="SOURCE", value=str(path)) from None
    except OSError as error:
        raise ManifestError(f"the file cannot be read: {error.strerror}", where="SOURCE", value=str(path)) from None
    except UnicodeDecodeError as error:
        where = f"{path}, line {_broken_line(path)}"
        raise ManifestError(f"this is not UTF-8: {error.reason}", where=where, allowed="text in UTF-8") from None


def _broken_line(path: Path) -> int:
    """Files are decoded in blocks, so the error itself does not know."""
    with path.open("rb") as file:
        for number, line in enumerate(file, 1):
            try:
                line.decode("utf-8")
            except UnicodeDecodeError:
                return number
    raise AssertionError("called for a file that is not UTF-8")


def _unreadable(error: csv.Error, path: Path, line: int) -> ManifestError:
    return ManifestError(f"this line cannot be read: {error}", where=f"{path}, line {line}")
