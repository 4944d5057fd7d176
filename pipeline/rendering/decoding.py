"""Decoding beside the denoiser: latents become pixels on the host while the device goes on."""

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from pipeline.rendering.adapter import Adapter
from pipeline.rendering.row_time import Mark, mark


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Decoding:
    """A chunk of latents that the device decodes and copies to the host."""

    _adapter: Adapter
    _latents: Tensor
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

    def result(self) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Return RGB (n, height, width, 3) 0..255 and which of them are finite, (n,); waits until they are there.

        An image that is not finite in half precision is decoded once more in float32. One that stays so is black.
        """
        self._copied.wait()
        count = len(self._latents)
        pixels, finite = self._pixels[:count].numpy(), self._finite[:count].numpy()
        if finite.all() or not self._adapter.half_decoder:
            return pixels, finite
        again, now_finite = (tensor.cpu().numpy() for tensor in self._adapter.decode_in_float32(self._latents))
        return np.where(finite[:, None, None, None], pixels, again), finite | now_finite


class Decoder:
    """Starts decodings. On a GPU pixels are copied to the host on a stream of their own."""

    def __init__(self, adapter: Adapter) -> None:
        self._adapter, self._device = adapter, adapter.device
        on_gpu = adapter.device.type == "cuda"
        self._stream: Any = torch.cuda.Stream() if on_gpu else None  # type: ignore[no-untyped-call]

    def start(self, latents: Tensor, rows: int) -> Decoding:
        """Decode (n, channels, h, w), at most ``rows`` of them, in one call of ``rows``; the rest is padding.

        Raises what the device raises when they do not fit.
        """
        began = mark(self._device)
        pixels, finite = self._adapter.decode(pad(latents, (0, 0, 0, 0, 0, 0, 0, rows - len(latents))))
        ended = copied = mark(self._device)
        if self._stream is not None:
            self._stream.wait_stream(torch.cuda.current_stream())
            with torch.cuda.stream(self._stream):
                pixels, finite = self._to_host(pixels), self._to_host(finite)
                copied = mark(self._device)
        return Decoding(
            _adapter=self._adapter, _latents=latents, _pixels=pixels, _finite=finite,
            _began=began, _ended=ended, _copied=copied,
        )  # fmt: skip

    def _to_host(self, tensor: Tensor) -> Tensor:
        tensor.record_stream(self._stream)
        return torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True).copy_(tensor, non_blocking=True)
