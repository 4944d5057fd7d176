"""Find prompts longer than the windows of a model's text encoders, by its own tokenizers and without torch.

The renderer's adapters (``pipeline/rendering/families.py``) cut at the same windows and record it for each image.
"""

from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import ModelError
from pipeline.model.facts import ModelFacts
from pipeline.model.files import is_component, read_json
from pipeline.model.vocabulary import require_vocabulary

MOST_WORDS = 3_000_000
"""Distinct words are tokenized up to here, which takes about a minute; later texts are not looked at."""
_LONGEST_WORD = 200_000
"""Characters of a word that are tokenized: more than any window takes, and the rest would cost seconds a megabyte."""
_MOST_SPECIAL = 2
"""Tokens that a tokenizer puts around a text."""
_TOKENIZERS = ("CLIPTokenizer", "CLIPTokenizerFast", "T5Tokenizer", "T5TokenizerFast")
"""Classes whose words are tokenized independently of each other."""
_DECLARED = 0
"""In place of a number of tokens: the tokenizer's own ``model_max_length``."""
_WINDOWS: Mapping[str, Mapping[str, int]] = {
    "StableDiffusionPipeline": {"tokenizer": _DECLARED},
    "StableDiffusionXLPipeline": {"tokenizer": _DECLARED, "tokenizer_2": _DECLARED},
    "StableDiffusion3Pipeline": {"tokenizer": _DECLARED, "tokenizer_2": _DECLARED, "tokenizer_3": 256},
    "FluxPipeline": {"tokenizer_2": 512},
    "PixArtAlphaPipeline": {"tokenizer": 120},
    "PixArtSigmaPipeline": {"tokenizer": 300},
}
"""Tokenizers by the class of the model, each with the tokens that fit, special ones included."""
_OPTIONAL = {"tokenizer_3": "text_encoder_3"}
"""Tokenizers that count only with their text encoder."""
_IN_SMALL_LETTERS = ("PixArtAlphaPipeline", "PixArtSigmaPipeline")
"""Classes that turn a prompt into small letters first."""

Cut = NDArray[np.bool_]


class _NotCountedError(Exception):
    """The reason why nobody knows which prompts are cut, without rendering them."""


class Windows:
    """The windows of one model. Tokenizers are loaded when the first text comes that may be too long."""

    def __init__(self, folder: Path, model: ModelFacts) -> None:
        self.not_counted: str | None = None
        """The reason why texts are not looked at, or those from some text on."""
        self._windows: dict[str, _Window] = {}
        try:
            self._windows = _windows(folder, model)
        except _NotCountedError as error:
            self.not_counted = str(error)

    @property
    def tokens(self) -> Mapping[str, int]:
        """Tokens that fit, by tokenizer."""
        return {name: window.tokens for name, window in self._windows.items()}

    def cut(self, texts: pa.ChunkedArray) -> Mapping[str, Cut] | None:
        """Return which texts are too long, by tokenizer; null is an empty text. None for ``not_counted``."""
        if self.not_counted is None:
            plain = pc.fill_null(texts.combine_chunks(), "")
            try:
                return {name: window.cut(plain) for name, window in self._windows.items()}
            except _NotCountedError as error:
                self.not_counted = str(error)
        return None


def _windows(folder: Path, model: ModelFacts) -> "dict[str, _Window]":
    if model.family.single or model.class_name not in _WINDOWS:
        raise _NotCountedError(
            f"a {model.class_name} is rendered by one call per image, which does not tell what it cuts"
        )
    index = read_json(folder / "model_index.json")
    lower = model.class_name in _IN_SMALL_LETTERS
    return {
        name: _Window(folder / name, index.get(name), tokens, lower=lower)
        for name, tokens in _WINDOWS[model.class_name].items()
        if is_component(index.get(name)) and (name not in _OPTIONAL or is_component(index.get(_OPTIONAL[name])))
    }


class _Window:
    """The window of one text encoder."""

    def __init__(self, folder: Path, entry: Any, tokens: int, *, lower: bool) -> None:
        """``entry`` is the tokenizer's in ``model_index.json``."""
        self._folder, self._entry, self._lower = folder, entry, lower
        self._counter: _Counter | None = None
        self.tokens = tokens or _declared(folder)

    def cut(self, texts: pa.Array) -> Cut:
        """Return which texts are too long; ASCII has at most a token for each byte, and one more."""
        short = pc.and_(
            pc.string_is_ascii(texts), pc.less(pc.binary_length(texts), self.tokens - _MOST_SPECIAL)
        ).to_numpy(zero_copy_only=False)
        found = np.zeros(len(texts), np.bool_)
        if not short.all():
            self._counter = self._counter or _Counter(self._folder, self._entry)
            candidates = texts.filter(pa.array(~short))
            candidates = pc.utf8_lower(candidates) if self._lower else candidates
            found[~short] = self._counter.tokens(candidates) > self.tokens
        return found


def _declared(folder: Path) -> int:
    """The tokenizer's ``model_max_length``, as transformers takes it."""
    try:
        declared = read_json(folder / "tokenizer_config.json").get("model_max_length")
    except ModelError as error:
        raise _NotCountedError(f"the tokenizer cannot be read: {error}") from None
    if not isinstance(declared, int):
        raise _NotCountedError(f"{folder.name}/tokenizer_config.json has no model_max_length")
    return declared


class _Counter:
    """Counts tokens. These tokenizers split at spaces first, so each distinct word is tokenized once."""

    def __init__(self, folder: Path, entry: Any) -> None:
        tokenizer = _loaded(folder, entry)
        self._special: int = tokenizer.num_special_tokens_to_add()
        self._backend = tokenizer.backend_tokenizer
        self._backend.no_truncation()
        self._backend.no_padding()
        self._known: dict[str, int] = {}

    def tokens(self, texts: pa.Array) -> NDArray[np.int64]:
        """Tokens of each text, special ones included."""
        words = pc.split_pattern(texts, " ")
        ends = np.cumsum(pc.list_value_length(words).to_numpy(), dtype=np.int64)
        encoded = words.flatten().dictionary_encode()
        of_word = self._of_words(encoded.dictionary.to_pylist())
        running = np.concatenate([[0], np.cumsum(of_word[encoded.indices.to_numpy()])])
        counts: NDArray[np.int64] = self._special + np.diff(running[ends], prepend=0)
        return counts

    def _of_words(self, words: Iterable[str]) -> NDArray[np.int64]:
        known, encode = self._known, self._backend.encode
        counts = []
        for word in words:
            count = known.get(word)
            if count is None:
                # One by one, since a batch would start threads that make later forks warn.
                count = known[word] = len(encode(word[:_LONGEST_WORD], add_special_tokens=False))
            counts.append(count)
        if len(known) > MOST_WORDS:
            raise _NotCountedError(f"the prompts have more than {MOST_WORDS:,} distinct words")
        return np.array(counts, np.int64)


def _loaded(folder: Path, entry: Any) -> Any:
    """The tokenizer as diffusers loads it."""
    name = entry[1] if is_component(entry) else None
    if name not in _TOKENIZERS:
        raise _NotCountedError(f"{folder.name} is a {name}, and only {', '.join(_TOKENIZERS)} are counted")
    # Imported here: it takes a second that jobs without long prompts need not pay. It does not load torch.
    import transformers

    try:
        require_vocabulary(folder)
        tokenizer = getattr(transformers, name).from_pretrained(folder, local_files_only=True)
    except Exception as error:  # noqa: BLE001  # whatever its files make it raise: rendering says what is wrong
        raise _NotCountedError(f"{folder.name} cannot be loaded: {' '.join(str(error).split())}") from None
    added = {str(token) for token in tokenizer.added_tokens_encoder}
    if any(f"{token}_1" in added or " " in token for token in added):
        raise _NotCountedError(f"{folder.name} has textual inversions, whose names stand for several tokens")
    return tokenizer
