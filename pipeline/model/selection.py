"""The files to fetch of a model that is elsewhere. A repository often holds the same weights several times."""

from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath
from typing import Any

from pipeline.model.files import CHECKER, EXTRACTOR, INDEX, UNUSED_COMPONENTS, is_component, names_checker
from pipeline.model.weights import is_weights, weights_among

SUFFIXES_OF_FACTS = ("json", "txt", "model")
"""Tokenizers' vocabularies are among the facts: ``plan`` counts the prompts that are cut."""
SUFFIXES_OF_WEIGHTS = ("json", "safetensors", "txt", "model")
NO_VARIANTS = ["*.*.safetensors"]
"""Patterns of weights that are loaded only where there are no plain ones, such as ``model.fp16.safetensors``."""


def patterns_of_files(index: Mapping[str, Any], suffixes: Sequence[str], *, checked: bool = False) -> list[str]:
    """Return patterns of the files that may be loaded: those in the folders that ``model_index.json`` names."""
    return [INDEX, *(f"{name}/*.{suffix}" for name in _components(index, checked=checked) for suffix in suffixes)]


def files_of_model(
    names: Iterable[str], index: Mapping[str, Any], suffixes: Sequence[str], *, checked: bool, where: str
) -> list[str]:
    """Return the files to fetch among the ``names`` of all: of weights the plain ones, else those of one variant.

    Raises ``ModelError`` for a part whose weights cannot be loaded.
    """
    patterns = patterns_of_files(index, suffixes, checked=checked)
    every = list(names)
    wanted = {name for name in every if any(fnmatchcase(name, pattern) for pattern in patterns)}
    chosen = {name for name in wanted if not name.endswith(".safetensors") or is_weights(PurePosixPath(name).name)}
    if "safetensors" in suffixes:
        for part in _components(index, checked=checked):
            inside = [name.removeprefix(f"{part}/") for name in every if name.startswith(f"{part}/")]
            if _has_weights(part, inside):
                found = weights_among([name for name in inside if "/" not in name], f"{where}: {part}")
                chosen.update(f"{part}/{file}" for file in found.files)
    return sorted(chosen)


def without_weights(folder: Path, index: Mapping[str, Any], *, checked: bool) -> list[str]:
    """Return the parts of a fetched model whose weights have not come."""
    inside = {part: [path.name for path in (folder / part).glob("*")] for part in _components(index, checked=checked)}
    return [part for part, names in inside.items() if _has_weights(part, names) and not any(map(is_weights, names))]


def _components(index: Mapping[str, Any], *, checked: bool) -> list[str]:
    wanted = (CHECKER, EXTRACTOR) if checked and names_checker(index) else ()
    unused = set(UNUSED_COMPONENTS).difference(wanted)
    return sorted(name for name, entry in index.items() if is_component(entry) and name not in unused)


def _has_weights(part: str, names: Sequence[str]) -> bool:
    return "config.json" in names and not part.startswith(("tokenizer", "scheduler"))
