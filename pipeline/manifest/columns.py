"""The columns Darkroom reads from a manifest: their names and types, and which column of a file is which."""

import io
import string
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ManifestError
from pipeline.manifest import arrow_types
from pipeline.manifest.advice import as_mapping, near_names, prompt_advice, renaming_advice
from pipeline.manifest.foreign_names import misspelt


@dataclass(frozen=True, slots=True)
class Accepted:
    """The Arrow types a column may have in a file."""

    holds: Callable[[pa.DataType], bool]
    allowed: str


_TEXT = Accepted(arrow_types.holds_text, "string, large_string, string_view or a dictionary of strings")
_NAMES = Accepted(
    arrow_types.holds_names, "a string, integer, floating, decimal, boolean, date, time, UUID or binary type"
)
_NUMBER = Accepted(arrow_types.holds_numbers, "an integer, floating or decimal type, or strings of numbers")
_LIST = Accepted(
    arrow_types.holds_lists_of_numbers, "a list of whole numbers; one seed per row goes into a column `seed`"
)

COLUMNS: Mapping[str, Accepted] = {
    "prompt": _TEXT,
    "prompt_id": _NAMES,
    "negative_prompt": _TEXT,
    "seed": _NUMBER,
    "seeds": _LIST,
    "guidance_scale": _NUMBER,
    "num_inference_steps": _NUMBER,
    "scheduler": _TEXT,
    "width": _NUMBER,
    "height": _NUMBER,
}
"""What a manifest file may have, by our names."""

ALIASES: Mapping[str, str] = {"steps": "num_inference_steps"}

ColumnMapping = Mapping[str, str | None]
"""Their name → a setting, the name it travels under, or None to leave it out."""

_BLANKS = string.whitespace + "\N{NO-BREAK SPACE}\N{ZERO WIDTH SPACE}\N{ZERO WIDTH NO-BREAK SPACE}"

BATCH_SCHEMA = pa.schema(
    [
        ("prompt", pa.string()),
        ("prompt_id", pa.string()),
        ("negative_prompt", pa.string()),
        ("seeds", pa.list_(pa.uint64())),
        ("guidance_scale", pa.float64()),
        ("num_inference_steps", pa.uint32()),
        ("scheduler", pa.string()),
        ("width", pa.uint32()),
        ("height", pa.uint32()),
        ("manifest_file", pa.string()),
        ("manifest_row", pa.int64()),
    ]
)
"""What every batch of validated rows begins with; the manifest's extra columns follow. Null means the sweep's value."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Matched:
    """The columns of one file by what they are. Columns that are in neither are left out."""

    settings: Mapping[str, str]
    """Our name → the name in the file."""
    extras: Mapping[str, str]
    """The name in the metadata → the name in the file."""


def trimmed(name: str) -> str:
    """Return a column's name without the blanks and byte order marks around it."""
    return name.strip(_BLANKS)


def checked_mapping(columns: ColumnMapping) -> dict[str, str | None]:
    """Return their name → ours with aliases resolved; another text renames an extra column, None leaves it out.

    Raises ``ManifestError`` for names that cannot be meant and for settings given twice.
    """
    targets = {theirs: ours and ALIASES.get(ours, ours) for theirs, ours in columns.items()}
    for theirs, ours in targets.items():
        if ours is not None and ours not in COLUMNS:
            _check_new_name(theirs, ours)
    for ours, count in Counter(targets.values()).items():
        if count > 1 and ours in COLUMNS:
            raise ManifestError(
                f"{count} columns are mapped to {ours}",
                where="manifest_columns",
                value=[theirs for theirs, target in targets.items() if target == ours],
                allowed="one column for each setting",
            )
    return targets


def _check_new_name(theirs: str, name: str) -> None:
    """Raise ``ManifestError`` for a name that is blank or all but a setting's."""
    alike = name.lower() if name.lower() in COLUMNS else None if name == theirs else misspelt(name)
    if alike is None and name == trimmed(name) != "":
        return
    raise ManifestError(
        f"invalid name for the column {theirs}",
        where=f"manifest_columns.{theirs}",
        value=name,
        allowed=f"{alike}, if the setting is meant; or a name for an extra column that is not so like a setting"
        if alike
        else f"a setting ({', '.join(COLUMNS)}), a name for an extra column, or null to leave it out",
    )


def check_mapped_exist(mapping: ColumnMapping, names: Iterable[str], where: str) -> None:
    """``ManifestError`` when ``manifest_columns`` names a column that no file has."""
    present = dict.fromkeys(names)
    same = {trimmed(name) for name in present}
    for theirs in mapping:
        if theirs not in present and theirs not in same:
            raise ManifestError(
                f"manifest_columns names a column that does not exist: {theirs}",
                where=where,
                value=theirs,
                allowed=f"one of the columns: {', '.join(present)}",
            )


def meaning_of(name: str, mapping: ColumnMapping) -> str | None:
    """Return our name for a column of theirs, or the name it travels under; None where it is left out.

    Without a mapping, our names are matched without case and without the blanks around them.
    """
    plain = trimmed(name)
    for known in (name, plain):
        if known in mapping:
            return mapping[known]
    lower = ALIASES.get(plain.lower(), plain.lower())
    return lower if lower in COLUMNS else plain


def match_columns(names: Sequence[str], mapping: ColumnMapping, where: str) -> Matched:
    """Return which column of a file is what, each in the order of ``names``."""
    _check_distinct(names, where)
    matched: dict[str, str] = {}
    for name in names:
        meaning = meaning_of(name, mapping)
        if meaning is None:
            continue
        if meaning in matched:
            raise _two_columns(meaning, [matched[meaning], name], mapping, where)
        matched[meaning] = name
    settings = {ours: theirs for ours, theirs in matched.items() if ours in COLUMNS}
    _check_complete(settings, names, where)
    return Matched(settings=settings, extras={new: old for new, old in matched.items() if new not in COLUMNS})


def _two_columns(meaning: str, both: list[str], mapping: ColumnMapping, where: str) -> ManifestError:
    other = next((name for name in both if name not in mapping), both[-1])
    return ManifestError(
        f"two columns are both {meaning}",
        where=where,
        value=both,
        allowed="one of them; rename or drop the other, as in manifest_columns: "
        f"{as_mapping({other: f'other_{trimmed(other)}'})} or {as_mapping({other: None})}",
    )


def near_name_warnings(matched: Iterable[Matched], mapping: ColumnMapping) -> tuple[str, ...]:
    """Return sentences about extra columns that may mean a setting, each once; mapped columns are what they are."""
    found: dict[str, None] = {}
    for file in matched:
        unmapped = [name for name in file.extras if name not in mapping and file.extras[name] not in mapping]
        found.update(dict.fromkeys(near_names(unmapped, file.settings)))
    return tuple(found)


def _check_distinct(names: Sequence[str], where: str) -> None:
    """Two names that differ only in the blanks around them are one."""
    twice = [name for name, count in Counter(map(trimmed, names)).items() if count > 1]
    if twice:
        same = [name for name in names if trimmed(name) == twice[0]]
        raise ManifestError("several columns have the same name", where=where, value=same, allowed="distinct names")


def _check_complete(matched: Mapping[str, str], names: Sequence[str], where: str) -> None:
    if "prompt" not in matched:
        raise ManifestError(
            "there is no prompt column",
            where=where,
            value=list(names),
            allowed=prompt_advice(names),
        )
    if "seed" in matched and "seeds" in matched:
        raise ManifestError(
            "there are both a seed and a seeds column",
            where=where,
            value=[matched["seed"], matched["seeds"]],
            allowed="`seed` (one per row) or `seeds` (a list per row); "
            + renaming_advice([matched["seed"], matched["seeds"]], names),
        )
    if ("width" in matched) != ("height" in matched):
        alone, other = ("width", "height") if "width" in matched else ("height", "width")
        raise ManifestError(
            f"there is a {alone} column without a {other} column",
            where=where,
            value=matched[alone],
            allowed="width and height together, or neither; " + renaming_advice([matched[alone]], names),
        )


def check_reserved(extras: Mapping[str, str], reserved: frozenset[str], where: str) -> None:
    """``ManifestError`` when extra columns (new name → theirs) have names that the metadata needs or cannot hold."""
    for name in extras:
        if "\0" in name:  # pandas and datasets read it as a blank
            raise ManifestError(
                "NUL character in the name of a column", where=where, value=name, allowed="a name without NUL"
            )
    taken = [name for name in extras if name in reserved or name in BATCH_SCHEMA.names]
    if taken:
        many = len(taken) > 1
        raise ManifestError(
            f"extra column{'s' * many} with {'names' if many else 'a name'} of Darkroom's own metadata: "
            f"{', '.join(taken)}",
            where=where,
            value=taken if many else taken[0],
            allowed=renaming_advice([extras[name] for name in taken], [*extras, *reserved]),
        )


def check_storable(name: str, kind: pa.DataType, where: str) -> None:
    """``ManifestError`` when an extra column has a type that Parquet cannot hold, which the metadata is written in."""
    try:
        pq.ParquetWriter(io.BytesIO(), pa.schema([(name, kind)])).close()
    except (pa.ArrowException, UnicodeError) as error:
        raise ManifestError(
            f"the extra column {name!r} cannot travel to the metadata: {str(error).splitlines()[0]}",
            where=where,
            value=str(kind),
            allowed="a type that Parquet holds; convert the column, or drop it",
        ) from None


def check_types(matched: Mapping[str, str], schema: pa.Schema, where: str) -> None:
    """``ManifestError`` when a column of ours has an Arrow type that cannot be read as it."""
    for ours, theirs in matched.items():
        kind = schema.field(theirs).type
        if not COLUMNS[ours].holds(kind):
            raise ManifestError(
                f"the column {theirs} has the wrong type",
                where=where,
                value=str(kind),
                allowed=f"{COLUMNS[ours].allowed}; or, if it is not meant as {ours}, "
                + renaming_advice([theirs], schema.names),
            )
