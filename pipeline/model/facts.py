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
from pipeline.schedulers import name_of_class

DTYPES = ("float32", "float16", "bfloat16")
_HEADER_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
_MAX_HEADER_BYTES = 100_000_000


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFacts:
    """What planning needs to know of a model."""

    class_name: str
    family: Family
    size_factor: int
    """Width and height divide by it, in px."""
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
    autoencoder = read_json(folder / "vae" / "config.json")
    levels = autoencoder.get("block_out_channels") or autoencoder.get("encoder_block_out_channels") or [0] * 4
    factor = 2 ** (len(levels) - 1)
    scheduler_config = read_json(folder / "scheduler" / "scheduler_config.json")
    return ModelFacts(
        class_name=class_name,
        family=family,
        size_factor=factor * family.patch,
        native_size=_native_size(config.get("sample_size") or family.sample_size, factor),
        scheduler=name_of_class(str(scheduler_config.get("_class_name")), scheduler_config),
        scheduler_config={key: value for key, value in scheduler_config.items() if not key.startswith("_")},
    )


def is_component(entry: Any) -> bool:
    """Whether an entry of ``model_index.json`` names a part that is loaded: [library, class], not [null, null]."""
    return isinstance(entry, list) and len(entry) == 2 and entry[0] is not None


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model's folder; ``ModelError`` names the file."""
    try:
        read = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ModelError(
            "a file of the model is missing", where=str(path), allowed="a folder in diffusers format"
        ) from None
    except (OSError, ValueError) as error:
        raise ModelError(f"a file of the model cannot be read: {error}", where=str(path)) from None
    if not isinstance(read, dict):
        raise ModelError("a file of the model is not a JSON object", where=str(path))
    return read


def _denoiser(index: Mapping[str, Any]) -> str | None:
    return next((name for name in ("unet", "transformer") if is_component(index.get(name))), None)


def _native_size(sample_size: Any, factor: int) -> tuple[int, int]:
    height, width = sample_size if isinstance(sample_size, list) else (sample_size, sample_size)
    return width * factor, height * factor


def weights_dtype(model_folder: Path) -> str:
    """The dtype most of the denoiser's tensors are stored in."""
    folder = model_folder / (_denoiser(read_json(model_folder / "model_index.json")) or "unet")
    files = [path for path in sorted(folder.glob("*.safetensors")) if not is_variant(path.name)]
    if not files:
        raise ModelError(
            "the denoiser has no safetensors weights",
            where=str(folder),
            allowed="*.safetensors; pickled weights are refused because loading them runs code",
        )
    counts = Counter(tensor["dtype"] for tensor in _header(files[0]).values() if "dtype" in tensor)
    name = counts.most_common(1)[0][0] if counts else "F32"
    if name not in _HEADER_DTYPES:
        raise ModelError(
            "the weights' dtype is not supported", where=str(files[0]), value=name, allowed=", ".join(_HEADER_DTYPES)
        )
    return _HEADER_DTYPES[name]


def _header(path: Path) -> dict[str, Any]:
    """A safetensors header: 8 bytes of length, little endian, then JSON."""
    try:
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _MAX_HEADER_BYTES:
                raise ValueError(f"header of {length} bytes")
            header: dict[str, Any] = json.loads(file.read(length))
            return header
    except (OSError, ValueError, struct.error) as error:
        raise ModelError(f"this is not a safetensors file: {error}", where=str(path)) from None


def is_variant(file_name: str) -> bool:
    """``model.fp16.safetensors`` is a variant that is not loaded; ``model-00001-of-00002.safetensors`` is not one."""
    return file_name.count(".") > 1 and not file_name.endswith(".index.json")
