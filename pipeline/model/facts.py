"""Facts of a model from its JSON files and safetensors headers; no weights are read, no torch is loaded."""

import json
import struct
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ModelError
from pipeline.model.family import FAMILIES, Family, family_of
from pipeline.model.files import CHECKER, UNUSED_COMPONENTS, has_checker, is_component, read_json, require_vocabulary
from pipeline.model.trust import check_class, check_part, is_weights
from pipeline.schedulers import name_of_class
from pipeline.sweep import MAX_SIDE_PX

DTYPES = ("float32", "float16", "bfloat16")
_HEADER_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_MAX_HEADER_BYTES = 100_000_000
_DEFAULT_LEVELS = 4
_MAX_LEVELS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What planning needs to know of a model."""

    class_name: str
    family: Family
    size_factor: int
    """Width and height divide by it, in px."""
    max_side_px: int
    """Of width and height."""
    native_size: tuple[int, int]
    """(width, height) in px when the sweep names none."""
    scheduler: str
    """Our name of the model's own scheduler."""
    scheduler_config: Mapping[str, Any]


def read_facts(folder: Path, *, single: bool = False) -> ModelFacts:
    """Read a model in diffusers format; with ``single`` its family is one of one call per image.

    Raises ``ModelError`` when files are missing or broken, or when the class is not supported.
    """
    index = read_json(folder / "model_index.json")
    class_name = str(index.get("_class_name"))
    denoiser = _denoiser(index)
    config = read_json(folder / denoiser / "config.json") if denoiser else {}
    family = family_of(class_name, config, single=single)
    if family is None or denoiser is None:
        raise ModelError(
            "this model is not supported",
            where=str(folder / "model_index.json"),
            value=class_name,
            allowed=", ".join(FAMILIES),
        )
    factor = 2 ** (_levels(folder / "vae" / "config.json") - 1)
    scheduler_config = read_json(folder / "scheduler" / "scheduler_config.json")
    return ModelFacts(
        class_name=class_name,
        family=family,
        size_factor=factor * family.patch,
        max_side_px=min(family.max_side_px(config, factor) or MAX_SIDE_PX, MAX_SIDE_PX),
        native_size=_native_size(config.get("sample_size"), family, factor, folder / denoiser / "config.json"),
        scheduler=name_of_class(str(scheduler_config.get("_class_name")), scheduler_config),
        scheduler_config={key: value for key, value in scheduler_config.items() if not key.startswith("_")},
    )


def _denoiser(index: Mapping[str, Any]) -> str | None:
    return next((name for name in ("unet", "transformer") if is_component(index.get(name))), None)


def _levels(path: Path) -> int:
    """How many resolutions the autoencoder has; each but the first halves the sides."""
    config = read_json(path)
    for key in ("block_out_channels", "encoder_block_out_channels"):
        channels = config.get(key)
        if channels is None:
            continue
        if not isinstance(channels, list) or not 1 <= len(channels) <= _MAX_LEVELS or not all(map(_is_count, channels)):
            raise ModelError(
                "the model's configuration cannot be used",
                where=f"{path}: {key}",
                value=channels,
                allowed=f"a list of 1 to {_MAX_LEVELS} whole numbers from 1",
            )
        return len(channels)
    return _DEFAULT_LEVELS


def _native_size(sample_size: Any, family: Family, factor: int, path: Path) -> tuple[int, int]:
    """(width, height) in px, from latent pixels: one number for a square, [height, width], or null."""
    given = family.sample_size if sample_size is None else sample_size
    sides = given if isinstance(given, list) else [given, given]
    if len(sides) != 2 or not all(map(_is_count, sides)) or max(sides) * factor > MAX_SIDE_PX:
        raise ModelError(
            "the model's configuration cannot be used",
            where=f"{path}: sample_size",
            value=sample_size,
            allowed=f"a whole number from 1, a list of two (height, width), or null; in px at most {MAX_SIDE_PX}",
        )
    return sides[1] * factor, sides[0] * factor


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def weights_dtype(model_folder: Path) -> str:
    """The dtype most of the denoiser's tensors are stored in."""
    folder = model_folder / (_denoiser(read_json(model_folder / "model_index.json")) or "unet")
    first = _weights(folder)[0]
    counts = Counter(str(tensor["dtype"]) for tensor in _header(first).values() if "dtype" in tensor)
    name = counts.most_common(1)[0][0] if counts else "F32"
    if name not in _HEADER_DTYPES:
        raise ModelError(
            "the weights' dtype is not supported", where=str(first), value=name, allowed=", ".join(_HEADER_DTYPES)
        )
    return _HEADER_DTYPES[name]


def resolved_dtype(wanted: str, model_folder: Path, *, gpus: bool) -> str:
    """What ``auto`` means: float32 without GPUs, else the weights' own half dtype, else bfloat16; of any GPU."""
    if wanted != "auto":
        return wanted
    if not gpus:
        return "float32"
    stored = weights_dtype(model_folder)
    return stored if stored != "float32" else "bfloat16"


def check_weights(model_folder: Path) -> None:
    """Look at the class and the weights of every component and the vocabulary of every tokenizer, without torch.

    Raises ``ModelError`` for what is missing, refused (``trust.py``) or no safetensors file, long before loading would.
    """
    index = read_json(model_folder / "model_index.json")
    for name in sorted(name for name, entry in index.items() if is_component(entry) and name not in UNUSED_COMPONENTS):
        check_class(name, index[name], model_folder / "model_index.json")
        folder = model_folder / name
        if name.startswith("tokenizer"):
            require_vocabulary(folder)
        elif name != "scheduler" and (folder / "config.json").is_file():
            for path in _weights(folder):
                _header(path)


def check_checker(model_folder: Path) -> None:
    """Look at the safety checker's weights as ``check_weights`` does at the others'; some models have none."""
    if not has_checker(model_folder):
        return
    try:
        for path in _weights(model_folder / CHECKER):
            _header(path)
    except ModelError as error:
        error.allowed = f"{error.allowed}; or render.safety_checker: off"
        raise


def _weights(folder: Path) -> list[Path]:
    """The safetensors files of a component that are loaded, at least one."""
    check_part(folder)
    return [path for path in sorted(folder.glob("*.safetensors")) if is_weights(path.name)]


def _header(path: Path) -> dict[str, dict[str, Any]]:
    """A safetensors header: 8 bytes of length, little endian, then JSON; a mapping for each tensor."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _MAX_HEADER_BYTES:
                raise ValueError(f"header of {length} bytes")
            header = json.loads(file.read(length))
        if not isinstance(header, dict) or not all(isinstance(tensor, dict) for tensor in header.values()):
            raise ValueError("its header names no tensors")
        return header
    except (OSError, ValueError, RecursionError, struct.error) as error:
        raise ModelError(
            f"this is not a safetensors file: {error}", where=str(path), allowed="a safetensors file"
        ) from None
