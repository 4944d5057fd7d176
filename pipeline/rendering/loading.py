"""A model's folder in, a model ready to render out."""

import json
import logging
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from pipeline.errors import ModelError
from pipeline.rendering.stable_diffusion import StableDiffusion

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}

ADAPTERS: Mapping[str, type[StableDiffusion]] = {"StableDiffusionPipeline": StableDiffusion}
"""By the class that ``model_index.json`` names."""

_WEIGHTED = ("text_encoder", "unet", "vae")
_LIBRARIES = ("diffusers", "transformers")


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model on its device, eval, without gradients."""

    adapter: StableDiffusion
    device: str
    dtype: str
    scheduler_config: Mapping[str, Any]
    """The model's own, as its stock pipeline corrects it."""
    latent_factor: int
    """px of the picture per side of one latent pixel"""


def load_model(folder: Path, *, dtype: str, device: str) -> LoadedModel:
    """Load a model in diffusers format from safetensors; nothing is downloaded, no code of the model is run.

    Raises ``ModelError`` for a class that is not supported, and for weights that are missing, pickled, incomplete
    or of other shapes than the configuration says.
    """
    if dtype not in DTYPES:
        raise ModelError("unknown dtype", value=dtype, allowed=", ".join(DTYPES))
    index = _read_index(folder)
    adapter_class = _adapter_class(folder, index)
    _require_vocabulary(folder / "tokenizer")
    with _quiet():
        stock = _load_stock(folder, index, DTYPES[dtype]).to(device)
    stock.set_progress_bar_config(disable=True)
    for name in _WEIGHTED:
        getattr(stock, name).requires_grad_(False).eval()
    adapter = adapter_class(
        stock=stock,
        device=torch.device(device),
        dtype=DTYPES[dtype],
        scheduler_config=dict(stock.scheduler.config),
    )
    return LoadedModel(
        adapter=adapter,
        device=device,
        dtype=dtype,
        scheduler_config=adapter.scheduler_config,
        latent_factor=adapter.latent_factor,
    )


def _read_index(folder: Path) -> Mapping[str, Any]:
    path = folder / "model_index.json"
    try:
        index = json.loads(path.read_text("utf-8"))
    except (OSError, ValueError) as error:
        raise ModelError(f"not a model in diffusers format: {error}", where=str(path)) from None
    if not isinstance(index, dict):
        raise ModelError("not a model in diffusers format: no JSON object", where=str(path))
    return index


def _adapter_class(folder: Path, index: Mapping[str, Any]) -> type[StableDiffusion]:
    named = index.get("_class_name")
    if not isinstance(named, str) or named not in ADAPTERS:
        raise ModelError(
            "this model's pipeline class is not supported",
            where=str(folder / "model_index.json"),
            value=named,
            allowed=", ".join(ADAPTERS),
        )
    return ADAPTERS[named]


def _load_stock(folder: Path, index: Mapping[str, Any], dtype: torch.dtype) -> Any:
    parts = {name: _load_part(folder, name, index.get(name), dtype) for name in _WEIGHTED}
    try:
        return getattr(diffusers, index["_class_name"]).from_pretrained(
            folder,
            dtype=dtype,
            local_files_only=True,
            safety_checker=None,
            feature_extractor=None,
            image_encoder=None,
            requires_safety_checker=False,
            **parts,
        )
    except (OSError, ValueError, RuntimeError) as error:
        raise ModelError(f"the model cannot be loaded: {error}", where=str(folder)) from error


def _load_part(folder: Path, name: str, entry: Any, dtype: torch.dtype) -> Any:
    """One module with weights. Left to itself diffusers fills weights that are missing with noise and only warns."""
    where = folder / name
    if not isinstance(entry, list) or len(entry) != 2 or entry[0] not in _LIBRARIES:
        raise ModelError("not a module Darkroom loads", where=f"{folder / 'model_index.json'}: {name}", value=entry)
    _refuse_pickle(where)
    try:
        module, report = getattr(import_module(entry[0]), str(entry[1])).from_pretrained(
            where, dtype=dtype, use_safetensors=True, local_files_only=True, output_loading_info=True
        )
    except (OSError, ValueError, RuntimeError, AttributeError) as error:
        raise ModelError(f"the {name} cannot be loaded: {error}", where=str(where)) from error
    wanting = sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in report[kind])
    if wanting:
        raise ModelError(f"{len(wanting)} weights are missing or of another shape", where=str(where), value=wanting[0])
    return module


def _refuse_pickle(folder: Path) -> None:
    if any(folder.glob("*.safetensors")):
        return
    pickled = next((path.name for pattern in ("*.bin", "*.pt", "*.ckpt") for path in folder.glob(pattern)), None)
    raise ModelError(
        "no safetensors weights: pickled ones are refused, loading them runs code" if pickled else "no weights",
        where=str(folder),
        value=pickled,
        allowed="*.safetensors",
    )


def _require_vocabulary(folder: Path) -> None:
    """Transformers makes a tokenizer without words from an empty or missing folder and says nothing."""
    names = ("tokenizer.json", "vocab.json")
    if not any((folder / name).is_file() for name in names):
        raise ModelError("the tokenizer has no vocabulary", where=str(folder), allowed=" or ".join(names))


class _Advice(logging.Filter):
    """Drops what the libraries advise on every load and nobody here can act on; warnings and errors stay."""

    _PHRASES = ("requires torchvision", "You have disabled the safety checker", "cannot run with `cpu` device")

    def filter(self, record: logging.LogRecord) -> bool:
        return not any(phrase in record.getMessage() for phrase in self._PHRASES)


@contextmanager
def _quiet() -> Iterator[None]:
    """No progress bars and no advice; every setting as before afterwards."""
    bars = [kit for kit in (diffusers.utils.logging, transformers.utils.logging) if kit.is_progress_bar_enabled()]
    handlers = [handler for name in _LIBRARIES for handler in logging.getLogger(name).handlers]
    advice = _Advice()
    for kit in bars:
        kit.disable_progress_bar()
    for handler in handlers:
        handler.addFilter(advice)
    try:
        yield
    finally:
        for kit in bars:
            kit.enable_progress_bar()
        for handler in handlers:
            handler.removeFilter(advice)
