"""Pixels to file bytes, with digests."""

import io
import time
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.output.layout import Packing
from pipeline.output.provenance import Provenance, save_options


@dataclass(frozen=True, slots=True, kw_only=True)
class EncodedImage:
    body: bytes
    pixel_sha256: str
    """Over the RGB bytes, row by row, as they were before encoding."""
    file_sha256: str
    encode_s: float


def encode(pixels: NDArray[np.uint8], packing: Packing, text: Provenance | None = None) -> EncodedImage:
    """Encode (height, width, 3) RGB 0..255. Equal pixels and text give equal bytes: nothing else goes into the file."""
    began = time.perf_counter()
    buffer = io.BytesIO()
    told = save_options(text, packing.format) if text else {}
    Image.fromarray(pixels).save(buffer, packing.format, **_options(packing), **told)
    body = buffer.getvalue()
    return EncodedImage(
        body=body,
        pixel_sha256=pixel_sha256(pixels),
        file_sha256=sha256(body).hexdigest(),
        encode_s=time.perf_counter() - began,
    )


def _options(packing: Packing) -> dict[str, Any]:
    """Speeds and sizes are in docs/decisions/0003-choices-of-the-output.md."""
    if packing.format == "jpeg":
        return {"quality": packing.jpeg_quality, "subsampling": "4:4:4"}
    if packing.format == "webp":
        return {"lossless": True, "method": 0, "quality": 20}
    return {"compress_level": 1}


def pixel_sha256(pixels: NDArray[np.uint8]) -> str:
    """SHA-256 over (height, width, 3) RGB bytes, hex."""
    return sha256(np.ascontiguousarray(pixels).tobytes()).hexdigest()
