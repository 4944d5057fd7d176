"""What the folder of a model's component may not hold: whatever would make the libraries that load it read a pickle,
run code, or take weights from files that the model's fingerprint does not cover.
"""

import json
import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from pipeline.errors import ModelError
from pipeline.model.files import read_json
from pipeline.model.weights import Weights, is_weights, variant_of, weights_in

LIBRARIES = ("diffusers", "transformers")
"""Whose classes a model's components may be."""
_INDEX = re.compile(r".+\.safetensors\.(?:index\.json|index\.([^.]+)\.json|([^.]+)\.index\.json)")
"""Index of split weights: ``model.safetensors.index.json``, of a variant ``model.safetensors.index.fp16.json``."""
_PART = re.compile(r"-\d{5}-of-\d{5}[.]")
_OWN_WEIGHTS = "transformers_weights"
"""A configuration's own name for the file of its weights."""
_ADAPTER = "adapter_config.json"


def check_class(name: str, entry: list[Any], index: Path) -> None:
    """``ModelError`` for a component that ``model_index.json`` makes of anything but a class of these libraries."""
    library, class_name = entry
    if library not in LIBRARIES or not isinstance(class_name, str):
        raise ModelError(
            "not a module Darkroom loads",
            where=f"{index}: {name}",
            value=entry,
            allowed=f"classes of {' and '.join(LIBRARIES)} that are parts of a pipeline",
        )


def check_part(folder: Path) -> Weights:
    """Return the weights of a component; ``ModelError`` where they cannot be trusted, or are not there.

    No weights are read.
    """
    weights = weights_in(folder)
    if (folder / _ADAPTER).exists():
        raise ModelError(
            "an adapter inside a model is refused, it would be loaded as well",
            where=str(folder),
            value=_ADAPTER,
            allowed="the model alone, with its adapters in model.loras",
        )
    _check_split(folder, weights)
    if (folder / "config.json").is_file():
        for key, value in _entries(read_json(folder / "config.json")):
            _check_entry(key, value, folder / "config.json")
    return weights


def _check_split(folder: Path, weights: Weights) -> None:
    """Hold split weights against their index, which must be there where nothing but parts of weights are."""
    found = [(path, _INDEX.fullmatch(path.name)) for path in sorted(folder.glob("*.json"))]
    indexes = [path for path, match in found if match and (match[1] or match[2]) == weights.variant]
    for path in indexes:
        _check_listed(path, weights.variant)
    if not indexes and all(_PART.search(name) for name in weights.files):
        raise ModelError(
            "the index of split weights is missing",
            where=str(folder),
            value=weights.files[0],
            allowed="*.safetensors.index.json beside them",
        )


def _check_listed(path: Path, variant: str | None) -> None:
    """Check the index of split weights: every file it names is there, and one that may be loaded."""
    listed = read_json(path).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise ModelError(
            "the index of split weights cannot be used",
            where=f"{path}: weight_map",
            value=listed,
            allowed="a mapping of tensors to file names",
        )
    names = sorted(set(listed.values()))
    for name in names:
        if not (is_weights(name) if variant is None else variant_of(name) == variant):
            raise ModelError(
                "the index of split weights names a file that is refused",
                where=f"{path}: weight_map",
                value=name,
                allowed=f"*.safetensors in the same folder, of {'no variant' if variant is None else variant}",
            )
    if missing := [name for name in names if not (path.parent / name).is_file()]:
        raise ModelError(
            f"weights are missing: {len(missing)} of {len(names)} files",
            where=str(path),
            value=", ".join(missing),
            allowed="every file the index names",
        )


def _check_entry(key: str, value: Any, path: Path) -> None:
    if key == _OWN_WEIGHTS and value is not None:
        raise ModelError(
            "a configuration that names its own weights is refused",
            where=f"{path}: {key}",
            value=value,
            allowed="weights under their usual names",
        )
    if key.endswith("_implementation") and "/" in json.dumps(value):
        raise ModelError(
            "a configuration that names code of the Hub is refused",
            where=f"{path}: {key}",
            value=value,
            allowed="an implementation that the library has itself, such as sdpa or eager",
        )


def _entries(config: Any) -> Iterator[tuple[str, Any]]:
    """All entries of a configuration, also those of configurations inside it."""
    if isinstance(config, dict):
        yield from config.items()
        config = list(config.values())
    if isinstance(config, list):
        for value in config:
            yield from _entries(value)
