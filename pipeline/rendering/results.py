"""The outcome of a task: an image, or the reason why there is none."""

from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import RenderError
from pipeline.recipe import RenderTask

Stage = Literal["encode", "denoise", "decode", "check", "process"]
Verdict = Literal["error", "nan_latents", "flagged", "quarantined"]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Rendered:
    """A finished image."""

    task: RenderTask
    pixels: NDArray[np.uint8]
    """The image, (height, width, 3), RGB 0..255."""
    prompt_truncated: bool | None
    """Whether the prompt was cut to the text encoder's window; None if that is unknown."""
    rows: int
    """The number of rows of the denoiser's batch, which is part of the numerics profile."""
    render_s: float
    """Seconds of the engine's time that this image took."""
    device: str
    """``cpu`` or the GPU's name."""
    flagged: bool = False
    """Whether the model's own safety checker flagged the image."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A task that cannot be rendered. A retry would fail in the same way."""

    task: RenderTask
    stage: Stage
    verdict: Verdict
    error: str
    """The error as ``ClassName: message``."""


Outcome = Rendered | Failed


def failure(task: RenderTask, stage: Stage, error: Exception) -> Failed:
    """Return the outcome of a task that raised an exception."""
    return Failed(task=task, stage=stage, verdict="error", error=f"{type(error).__name__}: {error}")


def not_finite(task: RenderTask) -> Failed:
    """Return the outcome of a task whose image has values that are not finite.

    Converted to integers they would give a black image.
    """
    error = RenderError("the image is not finite, not even in float32")
    return Failed(task=task, stage="decode", verdict="nan_latents", error=f"{type(error).__name__}: {error}")
