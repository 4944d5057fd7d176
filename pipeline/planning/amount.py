"""An amount of work."""

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray


@dataclass(frozen=True, slots=True, kw_only=True)
class Amount:
    """An amount of work. Amounts add up."""

    images: int = 0
    evaluations: int = 0
    """Rows through the denoiser."""
    megapixels: float = 0.0
    megapixel_evaluations: float = 0.0
    megapixel_steps: float = 0.0
    """Steps times picture size, the unit that hosted services charge by."""

    def __add__(self, other: "Amount") -> "Amount":
        return Amount(**{f.name: getattr(self, f.name) + getattr(other, f.name) for f in fields(Amount)})

    def times(self, number: int) -> "Amount":
        return Amount(**{f.name: getattr(self, f.name) * number for f in fields(Amount)})


def amount_of(
    evaluations: NDArray[np.uint32], num_inference_steps: NDArray[np.uint32], pixels: NDArray[np.int64]
) -> Amount:
    """The work of images given in columns of one length."""
    megapixels = pixels / 1e6
    return Amount(
        images=len(pixels),
        evaluations=int(evaluations.sum(dtype=np.int64)),
        megapixels=float(megapixels.sum()),
        megapixel_evaluations=float((evaluations * megapixels).sum()),
        megapixel_steps=float((num_inference_steps * megapixels).sum()),
    )
