"""The files of a tokenizer, in each form in which models are published."""

from importlib import import_module
from pathlib import Path

from pipeline.errors import ModelError
from pipeline.model.files import read_json
from pipeline.model.weights import check_no_pointer

_FORMS = ("tokenizer.json", "vocab.json", "vocab.txt", "spiece.model", "tokenizer.model", "sentencepiece.bpe.model")
"""Names of vocabularies, in the order in which transformers looks."""
_MERGES = "merges.txt"


def require_vocabulary(tokenizer: Path) -> None:
    """Raise ``ModelError`` for a tokenizer without words, or with words that cannot be read.

    transformers makes a tokenizer of an empty folder, and of half a vocabulary, and says nothing.
    """
    found = next((tokenizer / name for name in _FORMS if (tokenizer / name).is_file()), None)
    if found is None:
        raise ModelError("the tokenizer has no vocabulary", where=str(tokenizer), allowed=" or ".join(_FORMS))
    check_no_pointer(found)
    if found.suffix == ".json":
        read_json(found)
    if found.name == "vocab.json" and not (tokenizer / _MERGES).is_file():
        raise ModelError(
            f"the tokenizer has no {_MERGES}, and would cut words otherwise than it was made to",
            where=str(tokenizer),
            allowed=f"vocab.json and {_MERGES}, or tokenizer.json",
        )
    if found.suffix == ".model":
        _require_sentencepiece(found)


def _require_sentencepiece(path: Path) -> None:
    for package in ("sentencepiece", "google.protobuf"):
        _require_package(package.rpartition(".")[2], package, path)
    from sentencepiece import SentencePieceProcessor

    try:
        SentencePieceProcessor(model_file=str(path))
    except (OSError, RuntimeError):
        if not _is_tiktoken(path):
            raise ModelError(
                "this is not a sentencepiece model", where=str(path), allowed="a sentencepiece model, or tokenizer.json"
            ) from None
        _require_package("tiktoken", "tiktoken", path)


def _require_package(name: str, module: str, path: Path) -> None:
    try:
        import_module(module)
    except ImportError:
        raise ModelError(
            f"the tokenizer needs the package {name}, which is not installed",
            where=str(path),
            value=name,
            allowed=f"`pip install {name}`, or a model with a tokenizer.json",
        ) from None


def _is_tiktoken(path: Path) -> bool:
    """Return whether a file has tiktoken's form: a token in Base64 and its rank in each line."""
    with path.open("rb") as file:
        words = file.readline(10_000).split()
    return len(words) == 2 and words[1].isdigit()
