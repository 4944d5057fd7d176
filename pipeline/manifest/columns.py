"""The columns Darkroom reads from a manifest: their names and types, and which column of a file is which."""

import io
from collections import Counter
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import ManifestError
from pipeline.manifest import arrow_types


@dataclass(frozen=True, slots=True)
class Accepted:
    """The Arrow types a column may have in a file."""

    holds: Callable[[pa.DataType], bool]
    allowed: str


_TEXT = Accepted(arrow_types.holds_text, "string, large_string, string_view or a dictionary of strings")
_NAMES = Accepted(arrow_types.holds_names, "a string or an integer type")
_WHOLE = Accepted(arrow_types.holds_whole_numbers, "an integer type, or a floating type whose values are whole numbers")
_NUMBER = Accepted(arrow_types.holds_numbers, "an integer, floating or decimal type")
_LIST = Accepted(
    arrow_types.holds_lists_of_whole_numbers, "a list of integers; one seed per row goes into a column `seed`"
)

COLUMNS: Mapping[str, Accepted] = {
    "prompt": _TEXT,
    "prompt_id": _NAMES,
    "negative_prompt": _TEXT,
    "seed": _WHOLE,
    "seeds": _LIST,
    "guidance_scale": _NUMBER,
    "num_inference_steps": _WHOLE,
    "scheduler": _TEXT,
    "width": _WHOLE,
    "height": _WHOLE,
}
"""What a manifest file may have, by our names."""

ALIASES: Mapping[str, str] = {"steps": "num_inference_steps"}

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


def checked_mapping(columns: Mapping[str, str]) -> dict[str, str]:
    """Their name → ours, with aliases resolved; ``ManifestError`` for targets that are not ours or given twice."""
    targets = {theirs: ALIASES.get(ours, ours) for theirs, ours in columns.items()}
    for theirs, ours in targets.items():
        if ours not in COLUMNS:
            raise ManifestError(
                "a column is mapped to a name that is not ours",
                where=f"manifest_columns.{theirs}",
                value=ours,
                allowed=", ".join(COLUMNS),
            )
    for ours, count in Counter(targets.values()).items():
        if count > 1:
            raise ManifestError(
                f"{count} columns are mapped to {ours}",
                where="manifest_columns",
                value=[theirs for theirs, target in targets.items() if target == ours],
                allowed="one column for each of ours",
            )
    return targets


def check_mapped_exist(mapping: Mapping[str, str], names: Iterable[str], where: str) -> None:
    """``ManifestError`` when ``manifest_columns`` names a column that no file has."""
    present = dict.fromkeys(names)
    for theirs in mapping:
        if theirs not in present:
            raise ManifestError(
                f"manifest_columns names a column that does not exist: {theirs}",
                where=where,
                value=theirs,
                allowed=f"one of the columns: {', '.join(present)}",
            )


def ours_of(name: str, mapping: Mapping[str, str]) -> str | None:
    """Our name for a column of theirs, None for an extra column. Without a mapping, names are matched without case."""
    if name in mapping:
        return mapping[name]
    lower = name.lower()
    lower = ALIASES.get(lower, lower)
    return lower if lower in COLUMNS else None


def match_columns(names: Sequence[str], mapping: Mapping[str, str], where: str) -> dict[str, str]:
    """Which column of a file is which of ours, ours → theirs, in the order of ``names``."""
    _check_distinct(names, where)
    matched: dict[str, str] = {}
    for name in names:
        ours = ours_of(name, mapping)
        if ours in matched:
            raise ManifestError(
                f"two columns are both {ours}",
                where=where,
                value=[matched[ours], name],
                allowed="one of them; rename or drop the other",
            )
        if ours is not None:
            matched[ours] = name
    _check_complete(matched, names, where)
    return matched


def _check_distinct(names: Sequence[str], where: str) -> None:
    twice = [name for name, count in Counter(names).items() if count > 1]
    if twice:
        raise ManifestError("several columns have the same name", where=where, value=twice[0], allowed="distinct names")


def _check_complete(matched: Mapping[str, str], names: Sequence[str], where: str) -> None:
    if "prompt" not in matched:
        raise ManifestError(
            "there is no prompt column",
            where=where,
            value=list(names),
            allowed="a column `prompt`, or its name in `manifest_columns: {<its name>: prompt}` of a job, "
            "or in `darkroom manifest … --column <its name>=prompt`",
        )
    if "seed" in matched and "seeds" in matched:
        raise ManifestError(
            "there are both a seed and a seeds column",
            where=where,
            value=[matched["seed"], matched["seeds"]],
            allowed="`seed` (one per row) or `seeds` (a list per row)",
        )
    if ("width" in matched) != ("height" in matched):
        alone, other = ("width", "height") if "width" in matched else ("height", "width")
        raise ManifestError(
            f"there is a {alone} column without a {other} column",
            where=where,
            value=matched[alone],
            allowed="width and height together, or neither",
        )


def check_reserved(extras: Iterable[str], reserved: frozenset[str], where: str) -> None:
    """``ManifestError`` when an extra column has a name that the metadata needs for itself."""
    for name in extras:
        if name in reserved or name in BATCH_SCHEMA.names:
            raise ManifestError(
                f"the extra column {name} has a name of Darkroom's own metadata",
                where=where,
                value=name,
                allowed=f"another name; if it is one of ours, say so with manifest_columns: {{{name}: <our name>}} "
                f"({', '.join(COLUMNS)})",
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
                allowed=COLUMNS[ours].allowed,
            )
