"""What is said of a finished picture that is kept: that it is flagged, or by its numbers that nothing is in it."""

from typing import Literal

import numpy as np
from numpy.typing import NDArray

from pipeline.rendering.results import Rendered

BLACK_LEVEL = 5
"""No value is above it in a black picture: what is decoded of latents gone wrong, not only zeros."""
FLAT_SPREAD = 2
"""A flat picture's values differ by no more, in each channel."""

Seen = Literal["ok", "black", "flat"]
Kept = Seen | Literal["flagged"]


def verdict_of(pixels: NDArray[np.uint8]) -> Seen:
    """Of (height, width, 3) RGB 0..255. Such pictures are kept, with a verdict to find them by."""
    highest = pixels.max(axis=(0, 1))
    if highest.max() <= BLACK_LEVEL:
        return "black"
    return "flat" if (highest - pixels.min(axis=(0, 1))).max() <= FLAT_SPREAD else "ok"


def kept_verdict(outcome: Rendered) -> Kept:
    """As it stands in the metadata: what the safety checker says counts before the numbers."""
    return "flagged" if outcome.flagged else verdict_of(outcome.pixels)
