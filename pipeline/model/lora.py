"""Check a LoRA by its header and the model's, without torch; the loader decides what they leave open."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path

from pipeline.errors import ModelError
from pipeline.model.family import FAMILIES
from pipeline.model.files import INDEX, denoiser_of, read_json
from pipeline.model.trust import check_part
from pipeline.model.weights import tensors_of

_REFUSED: Mapping[str, str] = {
    ".hada_": "a LoHa (LyCORIS)",
    ".oft_": "an OFT",
    ".lora_mid.": "a LoCon with Tucker decomposition (LyCORIS)",
    ".dora_scale": "a DoRA in kohya's form, whose scales diffusers leaves out",
    ".on_input": "an IA3 (LyCORIS)",
}
"""Adapters that diffusers cannot load, or not whole, by what their keys contain."""
_LOKR = ".lokr_"
_TAKES_LOKR = ("Flux2Pipeline", "Flux2KleinPipeline", "ZImagePipeline")
_LOW_RANK = re.compile(r"(.+?)\.(?:lora_A|lora_B|lora_down|lora_up|lora\.down|lora\.up)\.(?:default\.)?(?:weight|bias)")
_FURTHER = re.compile(r"(.+?)\.(?:alpha|lora_magnitude_vector(?:\.weight)?)")
_OTHER_NAMES = ("input_blocks_", "output_blocks_", "middle_block_")
"""Beginnings of kohya's keys of Stable Diffusion XL, which are not diffusers' names of layers."""
_TEXT_PARTS = ("text_encoder.", "text_encoder_2.", "lora_te_", "lora_te1_", "lora_te2_")
"""Beginnings of text encoders' keys. Layers have other names in files than in memory, so the loader checks them."""
_PAIRS = ((".lora_A.", ".lora_B."), ("lora_down.", "lora_up."), ("lora.down.", "lora.up."))
"""Parts of the names of the two low-rank weights of a layer."""
_SHOWN = 3


def check_loras(files: Sequence[Path], model_folder: Path) -> None:
    """Raise ``ModelError`` for a LoRA that cannot be loaded into the model, or of which only some keys fit it."""
    if not files:
        return
    index = read_json(model_folder / INDEX)
    class_name = str(index.get("_class_name"))
    if not FAMILIES[class_name].loras:
        raise no_loras(class_name, files[0])
    denoiser = denoiser_of(index)
    assert denoiser is not None  # the model has been read
    layers = _layers(model_folder / denoiser)
    for path in files:
        check_lora(path, class_name)
        _check_layers(path, denoiser, layers)


def has_text_weights(path: Path) -> bool:
    """Return whether a LoRA has weights for a text encoder."""
    return any(key.startswith(_TEXT_PARTS) for key in tensors_of(path))


def no_loras(class_name: str, path: Path) -> ModelError:
    """Return the error for a LoRA and a class whose pipeline has no way to load one."""
    return ModelError(f"a {class_name} takes no LoRAs", where="model.loras", value=str(path), allowed="[]")


def unfit(path: Path, total: int, lost: Sequence[str]) -> ModelError:
    """Return the error for a LoRA with keys that fit nothing in the model."""
    return ModelError(
        f"{total - len(lost)} of {total} keys of this LoRA fit this model",
        where=str(path),
        value=_listed(lost),
        allowed="a LoRA of which all keys fit, made for a model of this kind",
    )


def other_shape(path: Path, total: int, misshapen: Sequence[str]) -> ModelError:
    """Return the error for a LoRA of which some weights have another shape than the model's layers."""
    return ModelError(
        f"{len(misshapen)} of {total} keys of this LoRA have another shape than the layers of this model",
        where=str(path),
        value=_listed(misshapen),
        allowed="a LoRA made for a model of this kind",
    )


def incomplete(path: Path, missing: Sequence[str]) -> ModelError:
    """Return the error for a LoRA that lacks low-rank weights which belong to those that it holds."""
    return ModelError(
        f"this LoRA is incomplete: {len(missing)} of the weights that belong together are missing",
        where=str(path),
        value=_listed(missing),
        allowed="a LoRA with all weights of each layer",
    )


def _listed(keys: Sequence[str]) -> str | None:
    return ", ".join([*keys[:_SHOWN], *(["…"] if len(keys) > _SHOWN else [])]) or None


def check_lora(path: Path, class_name: str) -> None:
    """Raise ``ModelError`` for a file that is incomplete, no LoRA, or of a kind that diffusers cannot load."""
    keys = list(tensors_of(path))
    kinds = _REFUSED if class_name in _TAKES_LOKR else {**_REFUSED, _LOKR: "a LoKr (LyCORIS)"}
    for mark, kind in kinds.items():
        if found := [key for key in keys if mark in key]:
            raise ModelError(
                f"this file is {kind}, which cannot be loaded into a {class_name}",
                where=str(path),
                value=found[0],
                allowed="a LoRA, as diffusers, PEFT or kohya's scripts save it",
            )
    if not any("lora" in key or _LOKR in key for key in keys):
        raise ModelError(
            f"this file holds no LoRA: 0 of {len(keys)} keys are low-rank weights",
            where=str(path),
            value=keys[0] if keys else None,
            allowed="a LoRA, as diffusers, PEFT or kohya's scripts save it",
        )
    if missing := sorted(_counterparts(keys).difference(keys)):
        raise incomplete(path, missing)


def _counterparts(keys: Sequence[str]) -> set[str]:
    """Return the names of the weights that belong to those in a file: a layer has a pair of them."""
    both_ways = [*_PAIRS, *((up, down) for down, up in _PAIRS)]
    return {
        key.replace(one, other) for key in keys for one, other in both_ways if one in key and key.endswith(".weight")
    }


def _check_layers(path: Path, denoiser: str, layers: Mapping[str, Sequence[int]]) -> None:
    """Count the denoiser's keys that fit, where all of them are named as diffusers or kohya's scripts name layers."""
    joined = {layer.replace(".", "_"): layer for layer in layers}
    tensors, lost, misshapen = tensors_of(path), [], []
    for key, tensor in tensors.items():
        match = _LOW_RANK.fullmatch(key) or _FURTHER.fullmatch(key)
        if match is None or ".processor." in key or _is_renamed(key):
            return
        layer = match[1].removeprefix(f"{denoiser}.") if key.startswith(f"{denoiser}.") else None
        if key.startswith("lora_unet_") and denoiser == "unet":
            layer = joined.get(match[1].removeprefix("lora_unet_"), "")
        if layer is None and not key.startswith(_TEXT_PARTS):
            return
        if layer is not None and layer not in layers:
            lost.append(key)
        elif layer is not None and not _fits(key, tensor["shape"], layers[layer]):
            misshapen.append(key)
    if lost:
        raise unfit(path, len(tensors), lost)
    if misshapen:
        raise other_shape(path, len(tensors), misshapen)


def _is_renamed(key: str) -> bool:
    return key.startswith("lora_unet_") and key.removeprefix("lora_unet_").startswith(_OTHER_NAMES)


def _fits(key: str, shape: Sequence[int], layer: Sequence[int]) -> bool:
    """Return whether a low-rank weight goes with the weight of its layer, (out, in, …), as far as its name tells."""
    if len(shape) < 2 or len(layer) < 2:
        return True
    if any(mark in key for mark in (".lora_A.", ".lora_down.", ".lora.down.")):
        return shape[1] == layer[1]
    return shape[0] == layer[0] or "magnitude" in key


def _layers(component: Path) -> dict[str, Sequence[int]]:
    """Return the shape of the weight of each layer of a network, from its headers."""
    files = check_part(component).files
    tensors = {key: tensor for name in files for key, tensor in tensors_of(component / name).items()}
    return {key.removesuffix(".weight"): tensor["shape"] for key, tensor in tensors.items() if key.endswith(".weight")}
