"""Loading of models: from a folder in diffusers format to a model that is ready to render."""

import inspect
import logging
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from importlib import import_module
from pathlib import Path
from typing import Any

import diffusers
import torch
import transformers

from pipeline.errors import ModelError
from pipeline.model.facts import ModelFacts, read_facts
from pipeline.model.files import UNUSED_COMPONENTS, is_component, read_json
from pipeline.model.trust import LIBRARIES, check_class, check_part
from pipeline.model.vocabulary import require_vocabulary
from pipeline.rendering.adapter import Adapter
from pipeline.rendering.loras import UNUSABLE, fuse_loras
from pipeline.rendering.precision import check_float8, quantize
from pipeline.rendering.timetables import KeptConfiguration, ModelSchedulers

DTYPES: Mapping[str, torch.dtype] = {
    "float32": torch.float32,
    "float16": torch.float16,
    "bfloat16": torch.bfloat16,
}

_TOKENIZER_LOGGERS = ("transformers.tokenization_utils_base",)
_LEFT_OUT = {
    **dict.fromkeys(UNUSED_COMPONENTS),
    "requires_safety_checker": False,
    "add_watermarker": False,
}
"""Arguments that leave out parts of a diffusers pipeline that do not make the image."""

_FUSED: Mapping[str, tuple[str, ...]] = {
    "to_qkv": ("to_q", "to_k", "to_v"),
    "to_kv": ("to_k", "to_v"),
    "to_added_qkv": ("add_q_proj", "add_k_proj", "add_v_proj"),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class LoadedModel:
    """A model on its device, in eval mode, without gradients."""

    adapter: Adapter
    device: str
    dtype: str


def load_model(
    folder: Path,
    *,
    dtype: str,
    device: str,
    loras: Sequence[tuple[Path, float]] = (),
    compiled: bool = False,
    as_once_read: bool = False,
    precision: str | None = None,
) -> LoadedModel:
    """Load a model in diffusers format from safetensors. Nothing is downloaded, and no code of the model runs.

    ``loras`` are fused into the weights, each with its factor. With ``compiled``, the first image of each size compiles
    the denoiser and the decoder, which takes minutes on a GPU. ``precision`` fp8 quantizes layers of the denoiser.

    Raise ``ModelError`` for a class that is not supported, and for weights that are missing, pickled, incomplete or of
    other shapes than the configuration says. Raise ``JobFileError`` if this machine cannot compute float8.
    """
    facts = read_facts(folder)
    if precision is not None:
        check_float8(dtype, device)
    stock = load_stock(folder, facts, dtype=dtype, device=device, loras=loras)
    adapter_class = _adapter_class(facts.family.name)
    for name in adapter_class.modules:
        if getattr(stock, name) is None:
            raise ModelError("a part of the model is missing", where=str(folder / "model_index.json"), value=name)
    if device != "cpu":
        lay_out_for_gpus(stock)
    if precision is not None:
        quantize(getattr(stock, adapter_class.denoiser_name))
    adapter = adapter_class(
        stock=stock,
        family=facts.family,
        device=torch.device(device),
        dtype=DTYPES[dtype],
        schedulers=schedulers_of(stock, facts, as_once_read=as_once_read),
        compiled=compiled,
    )
    return LoadedModel(adapter=adapter, device=device, dtype=dtype)


def _adapter_class(family: str) -> type[Adapter]:
    """Return the one class of ``pipeline/rendering/families/<family>.py``."""
    module = import_module(f"pipeline.rendering.families.{family}")
    (found,) = (
        own for own in vars(module).values()
        if isinstance(own, type) and issubclass(own, Adapter) and own.__module__ == module.__name__
    )  # fmt: skip
    return found


def schedulers_of(stock: Any, facts: ModelFacts, *, as_once_read: bool = False) -> ModelSchedulers:
    """Return the maker of a loaded model's schedulers; ``as_once_read`` is that of ``load_renderer``."""
    return ModelSchedulers(config=dict(stock.scheduler.config), own=None if as_once_read else facts.scheduler)


def load_stock(
    folder: Path, facts: ModelFacts, *, dtype: str, device: str, loras: Sequence[tuple[Path, float]] = ()
) -> Any:
    """Load a diffusers pipeline to its device, with weights in ``dtype``, in eval mode and without gradients.

    Raise ``ModelError`` as ``load_model`` does.
    """
    if dtype not in DTYPES:
        raise ModelError("unknown dtype", value=dtype, allowed=", ".join(DTYPES))
    with _quiet():
        stock = _from_folder(folder, facts, DTYPES[dtype])
        if loras:
            fuse_loras(stock, loras)
        stock.to(device)
    stock.set_progress_bar_config(disable=True)
    for logger in (type(stock).__module__, *_TOKENIZER_LOGGERS):
        logging.getLogger(logger).addFilter(_TRUNCATION)
    return stock


def _from_folder(folder: Path, facts: ModelFacts, dtype: torch.dtype) -> Any:
    stock_class = getattr(diffusers, facts.class_name)
    takes = inspect.signature(stock_class.__init__).parameters
    left_out = {name: value for name, value in _LEFT_OUT.items() if name in takes}
    index = read_json(folder / "model_index.json")
    # diffusers loads a saved model without its T5 encoder only if the part is given as None.
    parts: dict[str, Any] = dict.fromkeys(
        name for name in _part_names(stock_class) if not is_component(index.get(name))
    )
    if facts.scheduler is None:
        parts["scheduler"] = KeptConfiguration(facts.own_scheduler.class_name, facts.scheduler_config)
    for name, entry in index.items():
        if is_component(entry) and name not in left_out:
            part_class = _part_class(folder, name, entry)
            if name.startswith("tokenizer"):
                require_vocabulary(folder / name)
            if issubclass(part_class, torch.nn.Module):
                parts[name] = load_part(folder / name, part_class, dtype).requires_grad_(False).eval()
    try:
        return stock_class.from_pretrained(
            folder, dtype=dtype, use_safetensors=True, local_files_only=True, **{**parts, **left_out}
        )
    except UNUSABLE as error:
        raise ModelError(f"the model cannot be loaded: {error}", where=str(folder)) from error


def _part_names(stock_class: Any) -> list[str]:
    """Return the names of the parts of a diffusers pipeline."""
    names: list[str] = sorted(stock_class._get_signature_keys(stock_class)[0])
    return names


def _part_class(folder: Path, name: str, entry: list[Any]) -> type:
    """Return the class of a part, always one of diffusers or transformers, never code from the model."""
    index = folder / "model_index.json"
    check_class(name, entry, index)
    found = getattr(import_module(entry[0]), entry[1], None)
    if not isinstance(found, type) or issubclass(found, diffusers.DiffusionPipeline):
        raise ModelError("no such part of a pipeline", where=f"{index}: {name}", value=entry, allowed="a part's class")
    return found


def lay_out_for_gpus(stock: Any) -> None:
    """Put convolutions in channels-last layout and fuse query, key and value: the same function, but faster."""
    for name in ("unet", "vae"):
        if isinstance(getattr(stock, name, None), torch.nn.Module):
            getattr(stock, name).to(memory_format=torch.channels_last)
    if hasattr(stock, "fuse_qkv_projections"):
        stock.fuse_qkv_projections(vae=isinstance(stock.vae, diffusers.AutoencoderKL))
    elif hasattr(stock.transformer, "fuse_qkv_projections"):
        stock.transformer.fuse_qkv_projections()
    for part in stock.components.values():
        if isinstance(part, torch.nn.Module):
            _drop_unfused(part)


def _drop_unfused(part: torch.nn.Module) -> None:
    """Drop the separate weights of fused projections, up to a quarter of the denoiser, which diffusers keeps."""
    for module in part.modules():
        for fused, own in _FUSED.items():
            if isinstance(getattr(module, fused, None), torch.nn.Linear):
                for name in own:
                    setattr(module, name, None)


def load_part(where: Path, part_class: Any, dtype: torch.dtype) -> Any:
    """Load one module with its weights. Raise ``ModelError`` for missing ones: diffusers would fill in noise."""
    variant = check_part(where).variant
    try:
        module, report = part_class.from_pretrained(
            where,
            dtype=dtype,
            use_safetensors=True,
            local_files_only=True,
            output_loading_info=True,
            variant=variant,
        )
    except UNUSABLE as error:
        raise ModelError(f"the {where.name} cannot be loaded: {error}", where=str(where)) from error
    wanting = sorted(str(key) for kind in ("missing_keys", "mismatched_keys") for key in report[kind])
    if wanting:
        raise ModelError(f"{len(wanting)} weights are missing or of another shape", where=str(where), value=wanting[0])
    return module


class _Advice(logging.Filter):
    """A filter of advice that the libraries log at every load and no user of Darkroom can act on."""

    _PHRASES = (
        "requires torchvision",
        "You have disabled the safety checker",
        "cannot run with `cpu` device",
        "No LoRA keys associated",
    )

    def filter(self, record: logging.LogRecord) -> bool:
        return not any(phrase in record.getMessage() for phrase in self._PHRASES)


class _Truncation(logging.Filter):
    """A filter of warnings about long prompts, which are in the metadata of their images."""

    def filter(self, record: logging.LogRecord) -> bool:
        message = record.getMessage()
        return "was truncated" not in message and "sequence length is longer" not in message


_TRUNCATION = _Truncation()


@contextmanager
def _quiet() -> Iterator[None]:
    """Silence progress bars and advice, and restore every setting afterwards."""
    bars = [kit for kit in (diffusers.utils.logging, transformers.utils.logging) if kit.is_progress_bar_enabled()]
    handlers = [handler for name in LIBRARIES for handler in logging.getLogger(name).handlers]
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
