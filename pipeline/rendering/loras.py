"""LoRAs, fused into the weights of a loaded pipeline: whole, or not at all."""

import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch
from diffusers.utils import convert_state_dict_to_diffusers, convert_state_dict_to_peft, convert_unet_state_dict_to_peft
from safetensors import SafetensorError

from pipeline.errors import ModelError
from pipeline.model.lora import check_lora, incomplete, no_loras, unfit

UNUSABLE = (OSError, ValueError, RuntimeError, ImportError, SafetensorError)
"""Errors of the libraries for files that they cannot use, or cannot use here."""
_BROKEN = (*UNUSABLE, KeyError, AttributeError, TypeError, IndexError)


def fuse_loras(stock: Any, loras: Sequence[tuple[Path, float]]) -> None:
    """Add low-rank weights to the weights they are for; nothing of them is left to compute at each step.

    Raises ``ModelError`` for a LoRA of which any key does not fit the pipeline.
    """
    if loras and not hasattr(stock, "load_lora_weights"):
        raise no_loras(type(stock).__name__, loras[0][0])
    names = [f"lora{number}" for number in range(len(loras))]
    parts: set[str] = set()
    for name, (path, _) in zip(names, loras, strict=True):
        check_lora(path, type(stock).__name__)
        wanted = _wanted(stock, path)
        _check_fit(path, wanted, {part: _modules(getattr(stock, part)) for part in wanted if _is_network(stock, part)})
        _load(stock, path, name)
        made = {part: _made(getattr(stock, part), name) for part in wanted}
        _check_fit(path, wanted, {part: made[part] | _without_weight(made[part]) for part in wanted})
        _check_whole(path, wanted, made)
        parts.update(wanted)
    with _broken("the LoRAs cannot be fused into this model", *(path for path, _ in loras)):
        stock.set_adapters(names, [weight for _, weight in loras])
        stock.fuse_lora(components=sorted(parts))  # by default some pipelines leave out text encoders
        stock.unload_lora_weights()


@contextmanager
def _broken(what: str, *paths: Path) -> Iterator[None]:
    """Raise ``ModelError`` for what the libraries raise meanwhile."""
    try:
        yield
    except _BROKEN as error:
        shape = "weights have another shape than the layers of this model: " if "size mismatch" in str(error) else ""
        raise ModelError(f"{what}: {shape}{error}", where=", ".join(map(str, paths))) from error


def _load(stock: Any, path: Path, name: str) -> None:
    with _broken("the LoRA cannot be loaded", path), warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="Already found a `peft_config`")  # several are meant
        stock.load_lora_weights(
            path.parent, weight_name=path.name, adapter_name=name, use_safetensors=True, local_files_only=True
        )


def _wanted(stock: Any, path: Path) -> dict[str, set[str]]:
    """Return the keys of a file as PEFT names them, by the part of the pipeline they belong to."""
    told = {"unet_config": stock.unet.config} if hasattr(stock, "unet") else {}
    parts: dict[str, dict[str, Any]] = {}
    with _broken("the LoRA cannot be loaded", path):
        found = stock.lora_state_dict(
            path.parent, weight_name=path.name, use_safetensors=True, local_files_only=True, **told
        )
        for key, tensor in (found[0] if isinstance(found, tuple) else found).items():
            part, _, inside = key.partition(".")
            parts.setdefault(part, {})[inside] = tensor
        return {part: set(_as_peft(stock, part, keys)) for part, keys in parts.items()}


def _as_peft(stock: Any, part: str, keys: dict[str, Any]) -> list[str]:
    """Return keys as PEFT names them, with the conversions that diffusers makes before it hands them over."""
    if part.startswith("text_encoder"):
        converted = convert_state_dict_to_peft(convert_state_dict_to_diffusers(keys))
        flat = not hasattr(getattr(stock, part, None), "text_model")
        return [key.removeprefix("text_model.") if flat else key for key in converted]
    return list(keys if "lora_A" in next(iter(keys)) else convert_unet_state_dict_to_peft(keys))


def _is_network(stock: Any, part: str) -> bool:
    return isinstance(getattr(stock, part, None), torch.nn.Module)


def _modules(network: torch.nn.Module) -> set[str]:
    """Return the keys a LoRA may have for a network: one for each low-rank weight of each layer."""
    kinds = ("lora_A.weight", "lora_B.weight", "lora_B.bias", "lora_magnitude_vector", "lora_magnitude_vector.weight")
    return {f"{name}.{kind}" for name, _ in network.named_modules() for kind in kinds}


def _made(network: torch.nn.Module, adapter: str) -> set[str]:
    """Return the names of the low-rank weights that PEFT has made."""
    return {name.replace(f".{adapter}", "") for name, _ in network.named_parameters() if f".{adapter}" in name}


def _without_weight(names: set[str]) -> set[str]:
    """Return the other form of the names of magnitudes."""
    return {name.removesuffix(".weight") for name in names if "magnitude" in name}


def _check_whole(path: Path, wanted: Mapping[str, set[str]], made: Mapping[str, set[str]]) -> None:
    """Raise ``ModelError`` for weights that PEFT has made and the file does not hold: their content is arbitrary."""
    for part, names in made.items():
        empty = [name for name in sorted(names - wanted[part]) if not _without_weight({name}) & wanted[part]]
        if empty:
            raise incomplete(path, [f"{part}.{name}" for name in empty])


def _check_fit(path: Path, wanted: Mapping[str, set[str]], known: Mapping[str, set[str]]) -> None:
    lost = [f"{part}.{key}" for part, keys in sorted(wanted.items()) for key in sorted(keys - known.get(part, set()))]
    if lost or not wanted:
        raise unfit(path, sum(map(len, wanted.values())), lost)
