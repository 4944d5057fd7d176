"""The safety checker that comes with a model. It runs beside the engine and never changes an image.

Diffusers pipelines blacken an image that it flags. ``judge.py`` decides what happens to one here.
"""

import logging
import threading
from contextlib import nullcontext
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.errors import ModelError
from pipeline.model.files import CHECKER, EXTRACTOR, has_checker
from pipeline.rendering.loading import DTYPES, load_part


class SafetyChecker:
    """A checker of one image at a time, so that the answer does not depend on other images."""

    def __init__(self, network: Any, extractor: Any) -> None:
        """Own ``network``, which is on its device already."""
        self._network, self._extractor = network, extractor
        self._device, self._dtype = network.device, network.dtype
        for name in _THRESHOLDS:
            _to_host(network, name)
        # On the default stream each answer would wait for all work of the engine, so use another stream.
        on_gpu = self._device.type == "cuda"
        self._stream: Any = torch.cuda.Stream(device=self._device) if on_gpu else None  # type: ignore[no-untyped-call]
        self._lock = threading.Lock()

    def flagged(self, pixels: NDArray[np.uint8]) -> bool:
        """Return whether the checker flags an image, (height, width, 3) RGB 0..255. Any thread may call this."""
        seen = self._extractor(Image.fromarray(pixels), return_tensors="pt").pixel_values
        with self._lock, torch.no_grad(), torch.cuda.stream(self._stream) if self._stream else nullcontext():
            seen = seen.to(self._device, self._dtype)
            _, flags = self._network(clip_input=seen, images=[np.zeros(1)])  # a dummy, which it may blacken
        return bool(flags[0])


_THRESHOLDS = ("concept_embeds_weights", "special_care_embeds_weights")
"""Names of the checker's thresholds, one per concept. Its ``forward`` reads each with ``item()``."""


def _to_host(network: Any, name: str) -> None:
    """Replace a parameter by an array of the same values, because reading an element on a GPU waits for the device."""
    values = getattr(network, name).detach().float().cpu().numpy()  # exact: every half precision number is a float32
    delattr(network, name)
    setattr(network, name, values)


def load_checker(folder: Path, *, dtype: str, device: str) -> SafetyChecker | None:
    """Load the checker of a model in diffusers format, in the dtype of its other parts; None if it has no checker.

    Raise ``ModelError`` as ``load_model`` does.
    """
    if not has_checker(folder):
        return None
    # Imported here, because the import takes a second that models without a checker do not need.
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
    """A filter of the checker's message about a black image. Here the image is not blackened."""

    def filter(self, record: logging.LogRecord) -> bool:
        return "black image" not in record.getMessage()


_QUIET = _Quiet()
