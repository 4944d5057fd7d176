"""Texts that say what to write about a column: which mapping sets, renames or drops it."""

import json
import re
import shlex
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import PurePosixPath

from pipeline.manifest.foreign_names import SIZE, meant

TEXT_ENDINGS = (".csv", ".tsv", ".jsonl", ".ndjson", ".json", ".txt")
"""Endings of the files that ``darkroom manifest build`` reads."""

_PLAIN = re.compile(r"[A-Za-z_][\w.-]*(?: [\w.-]+)*", re.ASCII)
_YAML_WORDS = frozenset({"null", "true", "false", "yes", "no", "on", "off", "y", "n"})


def as_mapping(columns: Mapping[str, str | None]) -> str:
    """Return ``{their name: ours}`` as YAML on one line."""
    pairs = (f"{_as_yaml(theirs)}: {'null' if ours is None else _as_yaml(ours)}" for theirs, ours in columns.items())
    return f"{{{', '.join(pairs)}}}"


def _as_yaml(name: str) -> str:
    if _PLAIN.fullmatch(name) and name.lower() not in _YAML_WORDS:
        return name
    return json.dumps(name, ensure_ascii=not name.isprintable())


def near_names(extras: Iterable[str], settings: Collection[str]) -> Iterator[str]:
    """Yield a sentence for each extra column whose name may mean a setting that no column gives."""
    for name in extras:
        ours = meant(name)
        if ours is not None and not _given(ours, settings):
            yield f"the column {name!r} sets nothing and travels as an extra column. {_if_meant(name, ours)}; " + (
                f"to keep it as it is without this warning, write {as_mapping({name: name})}"
            )


def _given(ours: str, settings: Collection[str]) -> bool:
    same = {SIZE: "width", "seed": "seeds", "seeds": "seed"}
    return ours in settings or same.get(ours) in settings


def _if_meant(name: str, ours: str) -> str:
    if ours == SIZE:
        return "If it means the image size, put its numbers into two columns, width and height"
    option = f"--column {shlex.quote(f'{name}={ours}')}"
    written = (
        f"If it means {ours}, write manifest_columns: {as_mapping({name: ours})}, or in `darkroom manifest …` {option}"
    )
    if ours == "scheduler":
        return f"{written}, with values that are Darkroom's schedulers, such as euler_ancestral for 'Euler a'"
    return written


def prompt_advice(names: Iterable[str]) -> str:
    """Return what to write for a manifest without a prompt column."""
    alike = [name for name in names if meant(name) == "prompt"]
    mappings = [as_mapping({name: "prompt"}) for name in alike] or ["{<its name>: prompt}"]
    options = [shlex.quote(f"{name}=prompt") for name in alike] or ["'<its name>=prompt'"]
    return (
        f"a column `prompt`, or its name in manifest_columns: {' or '.join(mappings)} of a job, "
        f"or in `darkroom manifest … --column {' or '.join(options)}`"
    )


def renaming_advice(reserved: Collection[str], taken: Collection[str]) -> str:
    """Return what to write for columns of a file whose names the metadata needs for itself."""
    renamed = {name: _free(f"source_{name}", taken) for name in reserved}
    options = " ".join(f"--column {shlex.quote(f'{theirs}={new}')}" for theirs, new in renamed.items())
    dropped = as_mapping(dict.fromkeys(reserved))
    return (
        f"manifest_columns: {as_mapping(renamed)} renames, {dropped} leaves out; "
        f"in `darkroom manifest …`: {options} (nothing behind the = leaves out)"
    )


def _free(name: str, taken: Collection[str]) -> str:
    while name in taken:
        name += "_"
    return name


def building_advice(folder: str, key: str) -> str:
    """Return what to write for a manifest that is not Parquet, with the one command that makes it."""
    stem, _, ending = key.rpartition(".")
    if f".{ending.lower()}" not in TEXT_ENDINGS:
        return "Parquet; `darkroom manifest build` makes it from CSV, TSV, JSONL, JSON or TXT"
    if "://" in folder:
        name = shlex.quote(PurePosixPath(key).name)
        return f"Parquet; download the file, build it with `darkroom manifest build {name}`, and upload what that makes"
    source, built = (shlex.quote(str(PurePosixPath(folder, name))) for name in (key, f"{stem}.parquet"))
    return f"Parquet: type `darkroom manifest build {source}`, then give {built} as the manifest"
