"""Terms that no prompt may hold: a file of the user's, one term a line."""

import re
import unicodedata
from collections.abc import Iterable
from dataclasses import dataclass

from pipeline.errors import JobFileError, StoreError
from pipeline.storage.location import open_parent
from pipeline.storage.s3_settings import S3Settings

_WORD = re.compile(r"[^\W_]+")
_WHERE = "prompts.blocklist"


@dataclass(frozen=True, slots=True, kw_only=True)
class Blocklist:
    """Words, and phrases of several; compared without case, accents as they are, punctuation left out."""

    words: frozenset[str]
    phrases: tuple[str, ...] = ()
    """Each with a space at both ends."""

    def found_in(self, prompt: str) -> str | None:
        """The first term that the prompt holds as whole words, None where it holds none."""
        words = _words(prompt)
        for word in words:
            if word in self.words:
                return word
        line = f" {' '.join(words)} "
        return next((phrase.strip() for phrase in self.phrases if phrase in line), None)


def blocklist_of(lines: Iterable[str]) -> Blocklist:
    """Of a file's lines; what follows ``#`` is a comment, blank lines count for nothing."""
    terms = [words for line in lines if (words := _words(line.partition("#")[0]))]
    return Blocklist(
        words=frozenset(words[0] for words in terms if len(words) == 1),
        phrases=tuple(dict.fromkeys(f" {' '.join(words)} " for words in terms if len(words) > 1)),
    )


def read_blocklist(uri: str, s3: S3Settings) -> Blocklist:
    """The list at a local path or s3://. ``JobFileError`` where it cannot be read."""
    allowed = "a text file in UTF-8, one term a line; local or s3://"
    store, key = open_parent(uri, s3.impatient(), where=_WHERE)
    try:
        return blocklist_of(store.get(key).decode("utf-8-sig").splitlines())
    except StoreError as error:
        raise JobFileError(
            f"the block list cannot be read: {error}", where=_WHERE, value=uri, allowed=allowed
        ) from None
    except UnicodeDecodeError:
        raise JobFileError("the block list is not UTF-8 text", where=_WHERE, value=uri, allowed=allowed) from None


def _words(text: str) -> list[str]:
    return _WORD.findall(unicodedata.normalize("NFKC", text).casefold())
