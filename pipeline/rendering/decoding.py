"""Decoding beside the denoiser: a latent becomes pixels on the host while the device goes on.

Images are decoded one at a time, as in the diffusers pipeline called with one prompt. One image keeps a device busy,
needs the least memory, waits for no other, and its bytes cannot depend on others.
"""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.rendering.adapter import Adapter
from pipeline.rendering.row_time import Mark, mark


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decoding:
    """An image that the device decodes and copies to the host."""

    _adapter: Adapter
    _latent: Tensor
    _pixels: Tensor
    _finite: Tensor
    _began: Mark
    _ended: Mark
    _copied: Mark

    @property
    def ready(self) -> bool:
        """Whether the pixels are on the host."""
        return self._copied.reached()

    @property
    def seconds(self) -> float:
        """The time of the decoder, once the pixels are there."""
        return self._ended.seconds_since(self._began)

    def result(self) -> tuple[NDArray[np.uint8], bool]:
        """Wait for the pixels; return RGB (height, width, 3) 0..255 and whether the image is finite.

        An image that is not finite in half precision is decoded once more in float32. One that stays so is black.
        Raises what the device raises where that does not fit; another call tries again.
        """
        self._copied.wait()
        pixels, finite = self._pixels, self._finite
        if not finite.item() and self._adapter.half_decoder:
            pixels, finite = (tensor.cpu() for tensor in self._adapter.decode_in_float32(self._latent))
        return pixels[0].numpy(), bool(finite.item())


class Decoder:
    """Start decodings. On a GPU pixels are copied to the host on a stream of their own."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter, self._device = adapter, adapter.device
        on_gpu = adapter.device.type == "cuda"
        self._stream: Any = torch.cuda.Stream() if on_gpu else None  # type: ignore[no-untyped-call]

    def start(self, latent: Tensor) -> Decoding:
        """Decode a latent, (channels, h, w). Raises what the device raises where that does not fit."""
        began, latent = mark(self._device), latent[None]
        pixels, finite = self._adapter.decode(latent)
        ended = copied = mark(self._device)
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                pixels, finite = self._to_host(pixels), self._to_host(finite)
                copied = mark(self._device)
        return Decoding(
            _adapter=self._adapter, _latent=latent, _pixels=pixels, _finite=finite,
            _began=began, _ended=ended, _copied=copied,
        )  # fmt: skip

    def _to_host(self, tensor: Tensor) -> Tensor:
        tensor.record_stream(self._stream)
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
