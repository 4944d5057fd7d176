"""The number of rows of the denoiser's batch for a job that does not set it. All launches compute the same.

A call of about ``SATURATING_TOKENS`` tokens keeps a GPU busy; more rows gain little and cost memory and latency.
``darkroom calibrate`` measures the best number on one device.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import log2

from pipeline.model.family import Family

CPU_ROWS = 16
LEAST_ROWS, MOST_ROWS = 2, 64
"""The bounds of the number of rows. A guided task takes two. Every row costs host time, also for small images."""
SATURATING_TOKENS = 32_768
KEPT_FREE_BYTES = 2_000_000_000
_SHARE_OF_MEMORY = 0.25
"""The fraction of memory for the denoiser's activations. Weights, text encoders and the batch's state need the rest."""
_BYTES_OF_DTYPE = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRows:
    """The number of rows by image size. It does not depend on other sizes of this launch or a later one."""

    fixed: int | None = None
    """The number of rows for all sizes, if the job sets it."""
    family: Family
    dtype: str
    device_bytes: int | None
    """Bytes of memory of the GPU; None on CPUs."""

    def __call__(self, width: int, height: int) -> int:
        """Return the rows for images of this size (px)."""
        return self.fixed or auto_rows(self.family, width, height, self.dtype, self.device_bytes)

    def most(self, sizes: Iterable[tuple[int, int]]) -> int:
        """Return the rows of the largest batch for images of these sizes (px)."""
        return max(self(*size) for size in sizes)


def auto_rows(family: Family, width: int, height: int, dtype: str, device_bytes: int | None) -> int:
    """Return the number of rows that has about ``SATURATING_TOKENS`` tokens and fits in memory, a power of two.

    ``width`` and ``height`` are in px. ``device_bytes`` is the memory of a GPU, None for CPUs.
    """
    if device_bytes is None:
        return CPU_ROWS
    pixels = width * height
    saturating = round(log2(SATURATING_TOKENS * family.px_per_token / pixels))
    fitting = _most_fitting(pixels * family.row_values_per_px, dtype, device_bytes)
    return 1 << max(LEAST_ROWS.bit_length() - 1, min(saturating, fitting, MOST_ROWS.bit_length() - 1))


def _most_fitting(values: float, dtype: str, device_bytes: int) -> int:
    """Return the exponent of the largest power of two of rows of ``values`` each that fits; -1 or less if none does."""
    available = _SHARE_OF_MEMORY * (device_bytes - KEPT_FREE_BYTES)
    return int(available // (values * _BYTES_OF_DTYPE[dtype])).bit_length() - 1 if available > 0 else -1
