"""Facts of a model from its JSON files and safetensors headers; no weights are read, no torch is loaded."""

from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.errors import ModelError
from pipeline.model.check import check_parts
from pipeline.model.family import FAMILIES, Family, family_of
from pipeline.model.files import denoiser_of, read_json
from pipeline.model.own_scheduler import OwnScheduler, read_own_scheduler
from pipeline.model.trust import check_part
from pipeline.model.weights import tensors_of
from pipeline.schedulers import usable_schedulers
from pipeline.sweep import MAX_SIDE_PX

DTYPES = ("float32", "float16", "bfloat16")
_HEADER_DTYPES = {"F32": "float32", "F16": "float16", "BF16": "bfloat16"}
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
    own_scheduler: OwnScheduler

    @property
    def scheduler(self) -> str | None:
        """Our name of the model's own scheduler; None for one that has no name of ours."""
        return self.own_scheduler.name

    @property
    def scheduler_config(self) -> Mapping[str, Any]:
        """The model's own scheduler configuration, without private keys."""
        return self.own_scheduler.config

    @property
    def usable_schedulers(self) -> tuple[str, ...]:
        """Names of the schedulers that the family takes and the model's scheduler configuration lets work."""
        return usable_schedulers(self.family.schedulers(), self.scheduler_config)

    @property
    def offered_schedulers(self) -> str:
        """The same as a text for an error."""
        return ", ".join(self.usable_schedulers) or "none: no scheduler works with scheduler/scheduler_config.json"


def read_facts(folder: Path, *, single: bool = False) -> ModelFacts:
    """Read a model in diffusers format; with ``single`` its family is one of one call per image.

    Raises ``ModelError`` when files are missing or broken, or when the class is not supported.
    """
    where = folder / "model_index.json"
    index = read_json(where)
    class_name = str(index.get("_class_name"))
    if class_name not in FAMILIES:
        raise ModelError("this model is not supported", where=str(where), value=class_name, allowed=", ".join(FAMILIES))
    check_parts(index, FAMILIES[class_name], str(where))
    denoiser = denoiser_of(index)
    assert denoiser is not None
    config = read_json(folder / denoiser / "config.json")
    family = family_of(class_name, config, single=single)
    assert family is not None
    factor = 2 ** (_levels(folder / "vae" / "config.json") - 1)
    return ModelFacts(
        class_name=class_name,
        family=family,
        size_factor=factor * family.patch,
        max_side_px=min(family.max_side_px(config, factor) or MAX_SIDE_PX, MAX_SIDE_PX),
        native_size=_native_size(config.get("sample_size"), family, factor, folder / denoiser / "config.json"),
        own_scheduler=read_own_scheduler(folder, index),
    )


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
    folder = model_folder / (denoiser_of(read_json(model_folder / "model_index.json")) or "unet")
    first = folder / check_part(folder).files[0]
    counts = Counter(str(tensor["dtype"]) for tensor in tensors_of(first).values() if "dtype" in tensor)
    name = counts.most_common(1)[0][0] if counts else "F32"
    if name not in _HEADER_DTYPES:
        raise ModelError(
            "the weights' dtype is not supported", where=str(first), value=name, allowed=", ".join(_HEADER_DTYPES)
        )
    return _HEADER_DTYPES[name]


def resolved_dtype(wanted: str, model_folder: Path, *, gpus: bool, precision: str | None = None) -> str:
    """What ``auto`` means: float32 without GPUs, else the weights' own half dtype, else bfloat16; of any GPU.

    With a ``precision`` it means bfloat16.
    """
    if wanted != "auto":
        return wanted
    if precision is not None:
        return "bfloat16"
    if not gpus:
        return "float32"
    stored = weights_dtype(model_folder)
    return stored if stored != "float32" else "bfloat16"
