"""The files of a model's folder, in diffusers format."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import ModelError
from pipeline.model.weights import check_content

INDEX = "model_index.json"
UNUSED_COMPONENTS = ("safety_checker", "feature_extractor", "image_encoder")
"""What stock pipelines load beside what makes the picture: neither loaded here nor part of the fingerprint."""
DENOISERS = ("unet", "transformer")
CHECKER, EXTRACTOR = "safety_checker", "feature_extractor"
"""What looks at finished pictures, and what prepares them for it."""
_CHECKER_CLASS = ["stable_diffusion", "StableDiffusionSafetyChecker"]
"""As ``model_index.json`` names it: the module of diffusers it is in, then the class."""


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model's folder; ``ModelError`` names the file."""
    try:
        content = path.read_bytes()
        check_content(content, path)
        read = json.loads(content.decode("utf-8"))
    except FileNotFoundError:
        raise ModelError(
            "a file of the model is missing", where=str(path), allowed="a folder in diffusers format"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"a file of the model cannot be read: {error}", where=str(path), allowed="a JSON object"
        ) from None
    if not isinstance(read, dict):
        raise ModelError(
            "a file of the model is not a JSON object", where=str(path), value=read, allowed="a JSON object"
        )
    return read


def is_component(entry: Any) -> bool:
    """Whether an entry of ``model_index.json`` names a part that is loaded: [library, class], not [null, null]."""
    return isinstance(entry, list) and len(entry) == 2 and entry[0] is not None


def denoiser_of(index: Mapping[str, Any]) -> str | None:
    """Return the name of the network that is called at every step, or None where ``model_index.json`` names none."""
    return next((name for name in DENOISERS if is_component(index.get(name))), None)


def names_checker(index: Mapping[str, Any]) -> bool:
    """Whether a ``model_index.json`` names a safety checker of the kind that is known, with all that it needs."""
    return index.get(CHECKER) == _CHECKER_CLASS and is_component(index.get(EXTRACTOR))


def has_checker(folder: Path) -> bool:
    """Whether the model has a safety checker; some name one and come without."""
    return names_checker(read_json(folder / "model_index.json")) and (folder / CHECKER).is_dir()
