"""The safety checker that came with a model, beside the engine: it tells, and never touches a picture.

Stock pipelines blacken what it flags; here a flagged picture is kept with a verdict, or becomes a failure.
"""

import logging
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import ModelError
from pipeline.model.files import CHECKER, EXTRACTOR, has_checker
from pipeline.rendering.loading import DTYPES, load_part
from pipeline.rendering.results import Failed, Outcome, Rendered


class SafetyChecker:
    """Looks at one picture at a time, so that what it says of one does not depend on others."""

    def __init__(self, network: Any, extractor: Any) -> None:
        self._network, self._extractor = network, extractor
        self._lock = threading.Lock()

    def flagged(self, pixels: NDArray[np.uint8]) -> bool:
        """Whether it takes a picture, (height, width, 3) RGB 0..255, for not safe. From any thread."""
        seen = self._extractor(Image.fromarray(pixels), return_tensors="pt").pixel_values
        seen = seen.to(self._network.device, self._network.dtype)
        with self._lock, torch.no_grad():
            _, flags = self._network(clip_input=seen, images=[np.zeros(1)])  # it would blacken what it is given here
        return bool(flags[0])


class Judge:
    """What becomes of a flagged picture."""

    def __init__(self, checker: SafetyChecker | None, *, drop: bool) -> None:
        self._checker, self._drop = checker, drop

    def __call__(self, outcome: Outcome) -> Outcome:
        """The outcome as it is, flagged, or a failure in place of a picture that may not be kept."""
        if self._checker is None or not isinstance(outcome, Rendered) or not self._checker.flagged(outcome.pixels):
            return outcome
        if not self._drop:
            return replace(outcome, flagged=True)
        return Failed(
            task=outcome.task, stage="check", verdict="flagged", error="Flagged: the model's safety checker flagged it"
        )


def load_checker(folder: Path, *, dtype: str, device: str) -> SafetyChecker | None:
    """The checker of a model in diffusers format, in the dtype of its other parts; None for a model that has none.

    Raises ``ModelError`` as ``load_model`` does.
    """
    if not has_checker(folder):
        return None
    # Imported here: it takes a second that models without a checker need not pay.
    from diffusers.pipelines.stable_diffusion.safety_checker import StableDiffusionSafetyChecker
    from transformers.models.clip.image_processing_pil_clip import CLIPImageProcessorPil

    network = load_part(folder / CHECKER, StableDiffusionSafetyChecker, DTYPES[dtype]).requires_grad_(False).eval()
    logging.getLogger(StableDiffusionSafetyChecker.__module__).addFilter(_QUIET)
    try:
        extractor = CLIPImageProcessorPil.from_pretrained(folder / EXTRACTOR, local_files_only=True)
    except (OSError, ValueError) as error:
        raise ModelError(
            f"the safety checker's {EXTRACTOR} cannot be loaded: {error}", where=str(folder / EXTRACTOR)
        ) from error
    return SafetyChecker(network.to(device), extractor)


class _Quiet(logging.Filter):
    """Drops the announcement of a black image, which there is none of."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "black image" not in record.getMessage()


_QUIET = _Quiet()
