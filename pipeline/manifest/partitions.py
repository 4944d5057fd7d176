"""Columns that folders state, as Hive and Spark write them: ``style=ink/part-0.parquet`` has a column ``style``."""

from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from urllib.parse import unquote

from pipeline.errors import ManifestError
from pipeline.manifest.columns import COLUMNS, ColumnMapping, meaning_of

_NULL = "__HIVE_DEFAULT_PARTITION__"


@dataclass(frozen=True, slots=True, kw_only=True)
class Stated:
    """The columns that folders state for one file."""

    used: Mapping[str, str | None]
    """Name → the text that every row has."""
    unused: Mapping[str, str]
    """A sentence for every other one, by its name."""


def stated_columns(key: str, names: Sequence[str], mapping: ColumnMapping, reserved: frozenset[str]) -> Stated:
    """Return the columns that the folders of a file with these columns state.

    A setting, or a name of Darkroom's own metadata, counts only where ``mapping`` has it. A column of the file comes
    before one of its folders. Raises ``ManifestError`` for a name twice, and for text that is not UTF-8.
    """
    used: dict[str, str | None] = {}
    unused: dict[str, str] = {}
    for name, value in _pairs(key).items():
        reason = _why_not(name, value, names, mapping, reserved)
        if reason is None:
            used[name] = value
        else:
            unused[name] = reason
    return Stated(used=used, unused=unused)


def partition_warnings(stated: Iterable[Stated]) -> tuple[str, ...]:
    """Return a sentence for every column that some folders state and that is not used."""
    found: dict[str, str] = {}
    for file in stated:
        for name, sentence in file.unused.items():
            found.setdefault(name, sentence)
    return tuple(found.values())


def _pairs(key: str) -> dict[str, str | None]:
    pairs: dict[str, str | None] = {}
    for segment in key.split("/")[:-1]:
        name, sign, value = segment.partition("=")
        if not (name and sign):
            continue
        name = _decoded(name, key)
        if name in pairs:
            raise ManifestError(
                "two folders state the same column", where=key, value=name, allowed="a column once in a path"
            )
        pairs[name] = None if value == _NULL else _decoded(value, key)
    return pairs


def _decoded(text: str, key: str) -> str:
    """Spark writes ``%2F`` for a slash; a percent sign without two digits stands for itself."""
    try:
        return unquote(text, errors="strict")
    except UnicodeDecodeError:
        raise ManifestError(
            "a folder's name is not UTF-8 after decoding", where=key, value=text, allowed="%XX of UTF-8 bytes"
        ) from None


def _why_not(
    name: str, value: str | None, names: Sequence[str], mapping: ColumnMapping, reserved: frozenset[str]
) -> str | None:
    example = f"{name}={_NULL if value is None else value}"
    if name in names:
        return f"the column {name} is in files and in the names of their folders ({example}); the files' cells are used"
    if name in mapping:
        return None
    meaning = meaning_of(name, mapping)
    same = next((other for other in names if meaning_of(other, mapping) == meaning), None)
    if same is not None:
        return f"the column {same} is in files, and folders are named like it ({example}); the files' cells are used"
    if meaning in COLUMNS:
        return (
            f"folders are named like the setting {meaning} ({example}), which has no effect; "
            f"manifest_columns: {{{name}: {meaning}}} makes it one"
        )
    if meaning in reserved:
        return (
            f"folders are named like {name} of Darkroom's own metadata ({example}), which is left out; "
            f"manifest_columns: {{{name}: source_{name}}} keeps it under another name"
        )
    return None
