"""Rows of the denoiser's batch where the job does not say: a function, so that launches agree.

A GPU is busy once a call has about ``SATURATING_TOKENS`` tokens; more rows gain little and cost memory and latency.
``darkroom calibrate`` measures what is best on one device.
"""

from collections.abc import Iterable
from dataclasses import dataclass
from math import log2

from pipeline.model.family import Family

CPU_ROWS = 16
LEAST_ROWS, MOST_ROWS = 2, 64
"""A guided task takes two rows. Every row costs time of the host, so small images do not get more than 64."""
SATURATING_TOKENS = 32_768
KEPT_FREE_BYTES = 2_000_000_000
_SHARE_OF_MEMORY = 0.25
"""The rest is for weights, text encoders, the batch's state and what the allocator wastes."""
_BYTES_OF_DTYPE = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRows:
    """Rows by image size: the same for one size whatever other sizes there are, now or in a later launch."""

    fixed: int | None = None
    """The rows of all sizes, where the job says so."""
    family: Family
    dtype: str
    device_bytes: int | None
    """Memory of the GPU they are computed for; None on CPUs."""

    def __call__(self, width: int, height: int) -> int:
        """Return the rows for images of this size (px)."""
        return self.fixed or auto_rows(self.family, width, height, self.dtype, self.device_bytes)

    def most(self, sizes: Iterable[tuple[int, int]]) -> int:
        """Return the rows of the largest batch for images of these sizes (px)."""
        return max(self(*size) for size in sizes)


def auto_rows(family: Family, width: int, height: int, dtype: str, device_bytes: int | None) -> int:
    """Return the power of two nearest to ``SATURATING_TOKENS`` by the tokens of one row, or as many rows as fit.

    ``width`` and ``height`` are in px, ``device_bytes`` is the memory of a GPU or None for CPUs.
    """
    if device_bytes is None:
        return CPU_ROWS
    pixels = width * height
    saturating = round(log2(SATURATING_TOKENS * family.px_per_token / pixels))
    fitting = _most_fitting(pixels * family.row_values_per_px, dtype, device_bytes)
    return 1 << max(LEAST_ROWS.bit_length() - 1, min(saturating, fitting, MOST_ROWS.bit_length() - 1))


def _most_fitting(values: float, dtype: str, device_bytes: int) -> int:
    """Return the exponent of the largest power of two of rows that fit, each with so many values; below 0 for none."""
    available = _SHARE_OF_MEMORY * (device_bytes - KEPT_FREE_BYTES)
    return int(available // (values * _BYTES_OF_DTYPE[dtype])).bit_length() - 1 if available > 0 else -1
