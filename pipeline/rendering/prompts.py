"""Prompts, encoded once per distinct text."""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from pipeline.rendering.adapter import Adapter, Rows, Text

CACHED_BYTES = 256 * 2**20
"""On the device: a thousand texts of Stable Diffusion 1.x in float32, 60 of Flux in half precision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditioning:
    """What the denoiser is told of one task."""

    rows: Rows
    """Each (1 or 2, ...): unconditional, conditional; or only the latter"""
    prompt_truncated: bool


class Prompts:
    """A bounded cache of encoded texts; the least recently used leaves first."""

    def __init__(self, adapter: Adapter, cached_bytes: int = CACHED_BYTES) -> None:
        self._adapter, self._cached_bytes = adapter, cached_bytes
        self._texts: OrderedDict[Text, tuple[Rows, bool]] = OrderedDict()

    def conditioning(self, texts: tuple[Text, ...], upcoming: Iterable[Text]) -> Conditioning:
        """The rows of one task; ``upcoming`` texts are encoded along where the call has room."""
        self._ensure(texts, upcoming)
        for text in texts:
            self._texts.move_to_end(text)
        encoded = [self._texts[text] for text in texts]
        while len(self._texts) > self._most_texts():
            self._texts.popitem(last=False)
        names = encoded[0][0]
        rows = {name: torch.stack([row[name] for row, _ in encoded]) for name in names}
        return Conditioning(rows=rows, prompt_truncated=encoded[-1][1])

    def _most_texts(self) -> int:
        """As many as the bytes hold, all being of one length; but one call of the text encoders always fits."""
        rows, _ = next(iter(self._texts.values()))
        return max(self._adapter.encode_rows, self._cached_bytes // sum(row.nbytes for row in rows.values()))

    def _ensure(self, texts: tuple[Text, ...], upcoming: Iterable[Text]) -> None:
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

    def _encode(self, texts: tuple[Text, ...]) -> None:
        encoded = self._adapter.encode(texts)
        for index, (text, truncated) in enumerate(zip(texts, encoded.truncated, strict=True)):
            row = {name: tensor[index].clone() for name, tensor in encoded.rows.items()}
            self._texts[text] = (row, truncated)
