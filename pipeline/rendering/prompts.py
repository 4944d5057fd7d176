"""Prompts, encoded once per distinct text."""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.rendering.stable_diffusion import StableDiffusion

CACHED_TEXTS = 256
"""At 77 tokens: 60 MB for Stable Diffusion 1.x in float32."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditioning:
    """What the denoiser is told of one task."""

    rows: Tensor
    """(1 or 2, tokens, width): unconditional, conditional; or only the latter"""
    prompt_truncated: bool


class Prompts:
    """A bounded cache of encoded texts; the least recently used leaves first."""

    def __init__(self, adapter: StableDiffusion, capacity: int = CACHED_TEXTS) -> None:
        assert capacity >= adapter.encode_rows, "one call of the text encoder must fit"
        self._adapter, self._capacity = adapter, capacity
        self._texts: OrderedDict[str, tuple[Tensor, bool]] = OrderedDict()

    def conditioning(self, texts: tuple[str, ...], upcoming: Iterable[str]) -> Conditioning:
        """The rows of one task; ``upcoming`` texts are encoded along where the call has room."""
        self._ensure(texts, upcoming)
        for text in texts:
            self._texts.move_to_end(text)
        encoded = [self._texts[text] for text in texts]
        while len(self._texts) > self._capacity:
            self._texts.popitem(last=False)
        return Conditioning(rows=torch.stack([row for row, _ in encoded]), prompt_truncated=encoded[-1][1])

    def _ensure(self, texts: tuple[str, ...], upcoming: Iterable[str]) -> None:
        missing = [text for text in dict.fromkeys(texts) if text not in self._texts]
        if not missing:
            return
        chunk = dict.fromkeys(missing)
        for text in upcoming:
            if len(chunk) == self._adapter.encode_rows:
                break
            if text not in self._texts:
                chunk[text] = None
        try:
            self._encode(tuple(chunk))
        except (TypeError, ValueError):
            # A text that is none, of this task or of one to come: this task's own texts decide.
            self._encode(tuple(missing))

    def _encode(self, texts: tuple[str, ...]) -> None:
        encoded = self._adapter.encode(texts)
        for text, row, truncated in zip(texts, encoded.rows, encoded.truncated, strict=True):
            self._texts[text] = (row.clone(), truncated)
