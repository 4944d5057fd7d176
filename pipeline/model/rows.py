"""How many rows the denoiser's batch has when the job does not say: a function, so that every launch agrees."""

from collections.abc import Iterable
from dataclasses import dataclass

CPU_ROWS = 16
MOST_ROWS = 64
_SATURATING_MEGAPIXELS = 8.4
"""Rows times picture size from which a data-centre GPU gains little: 32 rows of 512 px, 8 of 1024 px."""
_BYTES_PER_MEGAPIXEL = {"float32": 3.0e9, "float16": 1.5e9, "bfloat16": 1.5e9}
"""Of activations per row: an estimate on the safe side; a worker that runs out of memory lowers its own rows."""
_SHARE_OF_MEMORY = 0.5
"""The rest is for weights, the decoder and what the allocator wastes."""


@dataclass(frozen=True, slots=True, kw_only=True)
class BatchRows:
    """Rows by picture size: the same for one size whatever other sizes there are, now or in a later launch."""

    fixed: int | None = None
    """For all sizes, where the job says so."""
    dtype: str
    device_bytes: int | None
    """Memory of the GPU they are reckoned for; None on CPUs."""

    def __call__(self, width: int, height: int) -> int:
        """For pictures of so many px."""
        return self.fixed or auto_rows(width, height, self.dtype, self.device_bytes)

    def most(self, sizes: Iterable[tuple[int, int]]) -> int:
        """Of the largest batch, for pictures of these sizes."""
        return max(self(*size) for size in sizes)


def auto_rows(width: int, height: int, dtype: str, device_bytes: int | None) -> int:
    """Rows for pictures of so many px on a GPU with so much memory, None for CPUs: a power of two.

    ``darkroom calibrate`` measures what is best on one device.
    """
    if device_bytes is None:
        return CPU_ROWS
    megapixels = width * height / 1e6
    fitting = _SHARE_OF_MEMORY * device_bytes / (megapixels * _BYTES_PER_MEGAPIXEL[dtype])
    rows = min(_SATURATING_MEGAPIXELS / megapixels, fitting, MOST_ROWS)
    return max(2, 1 << (int(rows).bit_length() - 1)) if rows >= 1 else 2
