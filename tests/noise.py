"""Pictures of nothing."""

import numpy as np
from numpy.typing import NDArray


def noise(seed: int) -> NDArray[np.uint8]:
    """(128, 128, 3), uniform."""
    return np.random.default_rng(seed).integers(0, 256, (128, 128, 3), np.uint8)
