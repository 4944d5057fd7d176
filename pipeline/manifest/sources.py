"""Rows of the text files that prompts come in, under the names the file gives them."""

import codecs
import csv
import json
import re
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from itertools import chain
from pathlib import Path
from typing import Any, TextIO

from pipeline.errors import ManifestError
from pipeline.manifest.columns import trimmed
from pipeline.manifest.foreign_names import meant
from pipeline.manifest.option_lines import has_options, read_options

Row = dict[str, Any]
Lines = Iterator[tuple[int, Row | None]]
"""Each row with the number of its first line, from 1; None for a blank line."""

_MAX_CELL = 2**31 - 1
"""Characters of a CSV cell; Python's own limit is 131,072."""
_BYTE_ORDER_MARKS = {
    codecs.BOM_UTF32_LE: "utf-32",
    codecs.BOM_UTF32_BE: "utf-32",
    codecs.BOM_UTF16_LE: "utf-16",
    codecs.BOM_UTF16_BE: "utf-16",
}
_SEPARATORS = {";": "semicolons", "\t": "tabs", "|": "bars", ",": "commas"}
_JSON_BLANK = re.compile(r"[ \t\n\r]*")


@dataclass(frozen=True, slots=True)
class Format:
    """How a kind of file is read."""

    rows: Callable[[Path], Lines]
    header: Callable[[Path], list[str]] | None
    """The columns, all of them strings; None where only the rows tell."""
    quoted: re.Pattern[str] | None = None
    """A cell whose quotes are read as text, though its author may have meant them as quotes."""


_CSV: Mapping[str, Any] = {"delimiter": ",", "strict": True}
_TSV: Mapping[str, Any] = {"delimiter": "\t", "quoting": csv.QUOTE_NONE}
"""Tabs separate, quotes are characters like others: that is how TSV is written in the field (PartiPrompts)."""


def _csv_rows(path: Path) -> Lines:
    return _separated(path, _CSV)


def _tsv_rows(path: Path) -> Lines:
    return _separated(path, _TSV)


def _csv_header(path: Path) -> list[str]:
    return _header(path, _CSV)


def _tsv_header(path: Path) -> list[str]:
    return _header(path, _TSV)


def _header(path: Path, dialect: Mapping[str, Any]) -> list[str]:
    with _opened(path) as file:
        try:
            return _names(_reader(file, dialect), path, dialect)
        except csv.Error as error:
            raise _unreadable(error, path, 1) from None


def _separated(path: Path, dialect: Mapping[str, Any]) -> Lines:
    with _opened(path) as file:
        reader = _reader(file, dialect)
        names = _names(reader, path, dialect)
        line = reader.line_num + 1
        try:
            for cells in reader:
                yield line, _named(names, cells, f"{path}, line {line}") if cells else None
                line = reader.line_num + 1
        except csv.Error as error:
            raise _unreadable(error, path, line) from None


def _reader(file: TextIO, dialect: Mapping[str, Any]) -> Any:
    csv.field_size_limit(_MAX_CELL)
    return csv.reader(file, **dialect)


def _names(reader: Any, path: Path, dialect: Mapping[str, Any]) -> list[str]:
    """The header's cells without the blanks, byte order marks and quotes around them."""
    cells: list[str] = [_without_nul(cell, f"{path}, line 1") for cell in next(reader, [])]
    other = [sign for sign in _SEPARATORS if sign in "".join(cells)] if len(cells) == 1 else []
    if other:
        own = dialect["delimiter"]
        raise ManifestError(
            f"this file is separated by {_SEPARATORS[other[0]]}",
            where=f"{path}, line 1",
            value=cells[0],
            allowed=f"{_SEPARATORS[own]} in a {path.suffix} file; "
            + ("commas in a .csv file" if own == "\t" else "tabs in a .tsv file"),
        )
    return [_unquoted(trimmed(cell)) for cell in cells]


def _unquoted(name: str) -> str:
    return trimmed(name[1:-1]) if len(name) > 1 and name[0] == name[-1] == '"' else name


def _named(names: list[str], cells: list[str], where: str) -> Row:
    """Nothing between two separators is null."""
    if len(cells) != len(names):
        raise ManifestError(
            "a line has another number of cells than the header", where=where, value=len(cells), allowed=str(len(names))
        )
    return {name: _without_nul(cell, where) or None for name, cell in zip(names, cells, strict=True)}


def _without_nul(text: str, where: str) -> str:
    if "\0" in text:
        raise ManifestError("NUL character", where=where, value=text, allowed="text without NUL, in UTF-8")
    return text


def _json_rows(path: Path) -> Lines:
    """An object a line, or one array of objects."""
    with _opened(path) as file:
        begin = next((line.lstrip() for line in file if line.strip()), "")
    with _opened(path) as file:
        if begin.startswith("["):
            yield from _json_array(file.read(), path)
            return
        for number, line in enumerate(file, 1):
            yield number, _json_object(line, f"{path}, line {number}") if line.strip() else None


def _json_array(text: str, path: Path) -> Lines:
    """The objects of an array, each with the line it begins in."""
    line, counted, position = 1, 0, text.index("[") + 1
    decoder = json.JSONDecoder()
    while True:
        begin = _after_blanks(text, position)
        line, counted = line + text.count("\n", counted, begin), begin
        if text[begin : begin + 1] == "]" and not text[begin + 1 :].strip():
            return
        where = f"{path}, line {line}"
        try:
            _, end = decoder.raw_decode(text, begin)
        except (ValueError, RecursionError) as error:
            raise ManifestError(f"this array is not JSON: {error}", where=where) from None
        yield line, _json_object(text[begin:end], where)
        position = _after_blanks(text, end)
        if text[position : position + 1] == ",":
            position += 1
        elif text[position : position + 1] != "]":
            raise ManifestError("this array is not JSON: expected a comma or ]", where=where)


def _after_blanks(text: str, position: int) -> int:
    found = _JSON_BLANK.match(text, position)
    return found.end() if found else position


def _json_object(text: str, where: str) -> Row:
    try:
        read = json.loads(text, object_pairs_hook=_distinct_keys)
        if "\\ud" in text.lower():
            json.dumps(read, ensure_ascii=False).encode()  # half a surrogate pair is no text
    except (ValueError, RecursionError) as error:
        raise ManifestError(f"this is not JSON: {error}", where=where) from None
    if not isinstance(read, dict):
        raise ManifestError("this is not a JSON object", where=where, value=read)
    return read


def _distinct_keys(pairs: list[tuple[str, Any]]) -> Row:
    read = dict(pairs)
    if len(read) < len(pairs):
        twice = next(key for key, count in Counter(key for key, _ in pairs).items() if count > 1)
        raise ValueError(f"the key {twice!r} stands twice")
    return read


def _txt_rows(path: Path) -> Lines:
    """A prompt a line, or the options of one."""
    with _opened(path) as file:
        for number, line in enumerate(file, 1):
            where = f"{path}, line {number}"
            text = _without_nul(line.strip(), where)
            yield number, (read_options(text, where) if has_options(text) else {"prompt": text}) if text else None


def _txt_header(path: Path) -> list[str]:
    rows = (row for _, row in _txt_rows(path) if row)
    first = next(rows, {"prompt": ""})
    _check_no_table(first["prompt"], path)
    return list(dict.fromkeys(chain(["prompt"], first, *(row for row in rows if len(row) > 1))))


def _check_no_table(line: str, path: Path) -> None:
    """Raise ``ManifestError`` for a first line that is the header of a table."""
    cells = re.split(r"[\t,;|]", line)
    if len(cells) > 1 and "prompt" in map(meant, cells) and all(map(meant, cells)):
        raise ManifestError(
            "this is a table with a header, not a list of prompts",
            where=f"{path}, line 1",
            value=line,
            allowed="a name that ends in .csv (commas) or .tsv (tabs)",
        )


_JSON = Format(_json_rows, None)

FORMATS: Mapping[str, Format] = {
    ".csv": Format(_csv_rows, _csv_header, re.compile(r"""\s+".*"\s*|\s*'.*'\s*""", re.DOTALL)),
    ".tsv": Format(_tsv_rows, _tsv_header, re.compile(r"""\s*(?:".*"|'.*')\s*""", re.DOTALL)),
    ".jsonl": _JSON,
    ".ndjson": _JSON,
    ".json": _JSON,
    ".txt": Format(_txt_rows, _txt_header, re.compile(r"""(?:".*"|'.*'),?""")),
}
"""By the end of the file's name."""


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    try:
        with path.open(encoding=_encoding(path), newline="") as file:
            yield file
    except FileNotFoundError:
        raise ManifestError("no such file", where="SOURCE", value=str(path)) from None
    except OSError as error:
        raise ManifestError(f"the file cannot be read: {error.strerror}", where="SOURCE", value=str(path)) from None
    except UnicodeError as error:
        line = (
            f", line {_broken_line(path)}"
            if isinstance(error, UnicodeDecodeError) and error.encoding == "utf-8"
            else ""
        )
        reason = error.reason if isinstance(error, UnicodeDecodeError) else str(error)
        raise ManifestError(
            f"this is not UTF-8: {reason}",
            where=f"{path}{line}",
            allowed="text in UTF-8, or in UTF-16 with its byte order mark, as Excel writes it",
        ) from None


def _encoding(path: Path) -> str:
    """UTF-8 unless a byte order mark says something else."""
    with path.open("rb") as file:
        begin = file.read(4)
    found = (encoding for mark, encoding in _BYTE_ORDER_MARKS.items() if begin.startswith(mark))
    return next(found, "utf-8-sig")


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
