"""Find missing parts of a model in its folder, without torch and long before loading would find them."""

import re
from collections.abc import Collection, Mapping
from importlib import import_module
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.errors import ModelError
from pipeline.model.family import Family
from pipeline.model.files import (
    CHECKER,
    DENOISERS,
    UNUSED_COMPONENTS,
    denoiser_of,
    has_checker,
    is_component,
    read_json,
)
from pipeline.model.trust import check_class, check_part
from pipeline.model.vocabulary import require_vocabulary
from pipeline.model.weights import STEMS, is_found, read_header

_WITHOUT_WEIGHTS = ("Processor", "ImageProcessorPil", "FeatureExtractor")
"""Ends of the names of classes that are neither networks nor tokenizers nor schedulers."""
_WELL_KNOWN = frozenset(
    {
        "CLIPTextModel", "CLIPTextModelWithProjection", "CLIPTokenizer", "CLIPTokenizerFast", "T5EncoderModel",
        "T5Tokenizer", "T5TokenizerFast",
    }
)  # fmt: skip
"""Classes of transformers that most models name, so that transformers need not be imported to look for them."""


def check_weights(model_folder: Path) -> None:
    """Look at the class and the files of every component, without torch.

    Raises ``ModelError`` for what is missing, incomplete, refused (``trust.py``) or no safetensors file.
    """
    index = read_json(model_folder / "model_index.json")
    for name in sorted(name for name, entry in index.items() if is_component(entry) and name not in UNUSED_COMPONENTS):
        check_class(name, index[name], model_folder / "model_index.json")
        _check_known(name, index[name], model_folder / "model_index.json")
        _check_component(model_folder / name, *index[name])


def check_files(model_folder: Path, *, checked: bool) -> None:
    """Run ``check_weights``, and ``check_checker`` for a model whose safety checker is wanted."""
    check_weights(model_folder)
    if checked:
        check_checker(model_folder)


def check_checker(model_folder: Path) -> None:
    """Look at the safety checker's weights as ``check_weights`` does at the others'; some models have none."""
    if not has_checker(model_folder):
        return
    try:
        _check_headers(model_folder / CHECKER)
    except ModelError as error:
        error.allowed = f"{error.allowed}; or render.safety_checker: off"
        raise


def check_parts(index: Mapping[str, Any], family: Family, where: str) -> None:
    """Raise ``ModelError`` for a ``model_index.json`` without a part that the family cannot draw without."""
    needed = {"scheduler", "vae", *family.text_parts}
    if denoiser_of(index) is None:
        raise ModelError("the model has no denoiser", where=where, allowed=f"one of {', '.join(DENOISERS)}")
    for name in sorted(needed):
        if not is_component(index.get(name)):
            raise ModelError(
                f"the model has no {name}, and its class cannot draw without one",
                where=where,
                value=index.get(name),
                allowed="[library, class] for each of " + ", ".join(sorted(needed)),
            )
    for name in index:
        tokenizer = name.replace("text_encoder", "tokenizer")
        if name.startswith("text_encoder") and is_component(index[name]) and not is_component(index.get(tokenizer)):
            raise ModelError(
                f"the model has a {name} and no {tokenizer}",
                where=where,
                value=index.get(tokenizer),
                allowed="both or neither",
            )


def _check_component(folder: Path, library: str, class_name: str) -> None:
    if not folder.is_dir():
        raise ModelError(
            "a folder of the model is missing", where=str(folder), allowed=f"a folder with the files of a {class_name}"
        )
    if folder.name.startswith("tokenizer"):
        require_vocabulary(folder)
    elif folder.name == "scheduler":
        read_json(folder / "scheduler_config.json")
    elif not class_name.endswith(_WITHOUT_WEIGHTS):
        read_json(folder / "config.json")
        _check_headers(folder)
        _check_found(folder, STEMS[library])


def _check_found(folder: Path, stem: str) -> None:
    """Raise ``ModelError`` for weights under names under which the component's library does not look for them."""
    weights = check_part(folder)
    if weights.variant is None and not any(is_found(path.name, [stem]) for path in folder.iterdir()):
        raise ModelError(
            "the weights have a name under which they are not looked for",
            where=str(folder),
            value=", ".join(weights.files),
            allowed=f"{stem}.safetensors",
        )


def _check_headers(folder: Path) -> None:
    for name in check_part(folder).files:
        for tensor in read_header(folder / name):
            if ".lora_A." in tensor or ".base_layer." in tensor:
                raise ModelError(
                    "these weights were saved with an adapter inside, unfused",
                    where=str(folder / name),
                    value=tensor,
                    allowed="the weights of the model alone, with its adapters in model.loras",
                )


def _check_known(name: str, entry: list[Any], index: Path) -> None:
    """Raise ``ModelError`` for a class that the installed library does not have; diffusers is not imported for it."""
    library, class_name = entry
    if class_name not in _WELL_KNOWN and class_name not in _classes_of(library):
        raise ModelError(
            f"the installed {library} has no class of this name",
            where=f"{index}: {name}",
            value=class_name,
            allowed=f"a class of {library}",
        )


def _classes_of(library: str) -> Collection[str]:
    if library == "transformers":
        return dir(import_module(library))  # lazy: it imports no torch
    spec = find_spec(library)
    if spec is None or spec.origin is None:
        return ()
    return set(re.findall(r'"(\w+)"', Path(spec.origin).read_text("utf-8")))
