"""What the folder of a model's component may not hold: whatever would make the libraries that load it read a pickle,
run code, or take weights from files that the model's fingerprint does not cover.
"""

import json
from collections.abc import Iterator
from pathlib import Path, PurePath
from typing import Any

from pipeline.errors import ModelError
from pipeline.model.files import read_json

LIBRARIES = ("diffusers", "transformers")
"""Whose classes a model's components may be."""
_PICKLED = ("*.bin", "*.pt", "*.pth", "*.ckpt")
_SPLIT = ".safetensors.index.json"
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


def check_part(folder: Path) -> None:
    """``ModelError`` for a component with weights that cannot be trusted, or has none. No weights are read."""
    if not any(is_weights(path.name) for path in folder.glob("*.safetensors")):
        pickled = sorted(path.name for pattern in _PICKLED for path in folder.glob(pattern))
        raise ModelError(
            "pickled weights are refused, loading them runs code" if pickled else "no weights",
            where=str(folder),
            value=pickled[0] if pickled else None,
            allowed="*.safetensors",
        )
    if (folder / _ADAPTER).exists():
        raise ModelError(
            "an adapter inside a model is refused, it would be loaded as well",
            where=str(folder),
            value=_ADAPTER,
            allowed="the model alone, with its adapters in model.loras",
        )
    for path in sorted(folder.glob(f"*{_SPLIT}")):
        if path.name.count(".") == _SPLIT.count("."):  # one more is a variant's
            _check_listed(path)
    if (folder / "config.json").is_file():
        for key, value in _entries(read_json(folder / "config.json")):
            _check_entry(key, value, folder / "config.json")


def is_weights(file_name: str) -> bool:
    """A name by which weights are loaded and fingerprinted: of this folder, safetensors, and no variant's.

    ``model-00001-of-00002.safetensors`` is one, ``model.fp16.safetensors`` is a variant's.
    """
    return PurePath(file_name).name == file_name and file_name.endswith(".safetensors") and file_name.count(".") == 1


def _check_listed(path: Path) -> None:
    """The index of split weights: every file it names is there, and one that may be loaded."""
    listed = read_json(path).get("weight_map")
    if not isinstance(listed, dict) or not all(isinstance(name, str) for name in listed.values()):
        raise ModelError(
            "the index of split weights cannot be used",
            where=f"{path}: weight_map",
            value=listed,
            allowed="a mapping of tensors to file names",
        )
    for name in sorted(set(listed.values())):
        if not is_weights(name):
            raise ModelError(
                "the index of split weights names a file that is refused",
                where=f"{path}: weight_map",
                value=name,
                allowed="*.safetensors in the same folder, of no variant",
            )
        if not (path.parent / name).is_file():
            raise ModelError("weights are missing", where=str(path), value=name, allowed="every file the index names")


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
