"""What the engine makes of a task: a picture, or the reason why there is none."""

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
    """One finished picture."""

    task: RenderTask
    pixels: NDArray[np.uint8]
    """(height, width, 3), RGB 0..255"""
    prompt_truncated: bool | None
    """The prompt has more tokens than the text encoder's window; the rest was not seen. None where nobody knows."""
    rows: int
    """Rows of the denoiser's batch: part of the numerics profile."""
    render_s: float
    """This image's share of the engine's time."""
    device: str
    """``cpu`` or a GPU's name."""
    flagged: bool = False
    """The model's own safety checker says that it is not safe."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Failed:
    """A task that cannot be rendered; another try would end the same way."""

    task: RenderTask
    stage: Stage
    verdict: Verdict
    error: str
    """``ClassName: message``"""


Outcome = Rendered | Failed


def failure(task: RenderTask, stage: Stage, error: Exception) -> Failed:
    """What an exception makes of a task."""
    return Failed(task=task, stage=stage, verdict="error", error=f"{type(error).__name__}: {error}")


def not_finite(task: RenderTask) -> Failed:
    """What not a number makes of it: cast to whole numbers it would be a black picture."""
    error = RenderError("the picture is not finite, in float32 neither")
    return Failed(task=task, stage="decode", verdict="nan_latents", error=f"{type(error).__name__}: {error}")
