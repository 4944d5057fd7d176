"""A cache of prompts: each distinct text is encoded once."""

from collections import OrderedDict
from collections.abc import Iterable
from dataclasses import dataclass

import torch

from pipeline.rendering.adapter import Adapter, Rows, Text

CACHED_BYTES = 256 * 2**20
"""The size of the cache on the device: 1,000 texts of Stable Diffusion 1.x in float32, 60 of Flux in half precision."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Conditioning:
    """The inputs of the denoiser that come from the texts of one task."""

    rows: Rows
    """Inputs by name, each (2, ...) for unconditional and conditional, or (1, ...) for conditional only."""
    prompt_truncated: bool


class Prompts:
    """A bounded cache of encoded texts. The least recently used one is evicted first."""

    def __init__(self, adapter: Adapter, cached_bytes: int = CACHED_BYTES) -> None:
        self._adapter, self._cached_bytes = adapter, cached_bytes
        self._texts: OrderedDict[Text, tuple[Rows, bool]] = OrderedDict()

    def conditioning(self, texts: tuple[Text, ...], upcoming: Iterable[Text]) -> Conditioning:
        """Return the rows of one task. ``upcoming`` texts fill the call of the text encoders if it has room."""
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
        """Return how many texts the cache holds. All have one size, and one call of the text encoders always fits."""
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
            # The invalid text may belong to a later task, so try again with the texts of this task alone.
            self._encode(tuple(missing))

    def _encode(self, texts: tuple[Text, ...]) -> None:
        encoded = self._adapter.encode(texts)
        for index, (text, truncated) in enumerate(zip(texts, encoded.truncated, strict=True)):
            row = {name: tensor[index].clone() for name, tensor in encoded.rows.items()}
            self._texts[text] = (row, truncated)
