"""Small copies of committed images."""

import io
from collections.abc import Sequence
from dataclasses import dataclass

from PIL import Image

UNREADABLE_IMAGE = (OSError, SyntaxError, ValueError, Image.DecompressionBombError)
"""What Pillow raises for bytes that are no image, or half of one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Copy:
    """How a copy is made."""

    side_px: int
    """The longer side is at most this; smaller images keep their size."""
    quality: int
    """Of lossy WebP, 0 to 100."""


THUMBNAIL = Copy(side_px=192, quality=75)
PREVIEW = Copy(side_px=768, quality=85)


def small_copies(body: bytes, copies: Sequence[Copy]) -> list[bytes]:
    """WebP files of an image. Raises one of ``UNREADABLE_IMAGE`` for bytes that are none."""
    with Image.open(io.BytesIO(body)) as image:
        image.draft("RGB", (2 * max(copy.side_px for copy in copies),) * 2)  # JPEG can be read at half its size or less
        pixels = image.convert("RGB")
    return [_encoded(pixels, copy) for copy in copies]


def _encoded(pixels: Image.Image, copy: Copy) -> bytes:
    shrunk, buffer = pixels.copy(), io.BytesIO()
    shrunk.thumbnail((copy.side_px, copy.side_px), Image.Resampling.LANCZOS, reducing_gap=3.0)
    shrunk.save(buffer, "webp", quality=copy.quality, method=4)
    return buffer.getvalue()
