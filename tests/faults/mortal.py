"""A store whose user dies at one of its operations, or hears that one failed which was done."""

import threading
from collections.abc import Callable, Iterator
from contextlib import suppress
from datetime import datetime
from typing import BinaryIO, Literal, TypeVar

from pipeline.errors import StoreError, StoreUnavailableError
from pipeline.storage.base import ObjectInfo, ObjectStore, prove_writable
from pipeline.storage.traffic import Traffic

_T = TypeVar("_T")

How = Literal["before", "after", "unanswered"]
"""The process dies before the operation is done; after it; or the operation is done and said to have failed, while the
process lives on."""
HOWS: tuple[How, ...] = ("before", "after", "unanswered")
WRITES = ("put", "delete")
"""Of the others it is all the same whether they were done."""


class GoneError(BaseException):
    """The process is gone. What is still running of it in ours gets no further with the store."""


class MortalStore:
    """A real store, with one operation at which its user is struck."""

    def __init__(self, store: ObjectStore, at: int, how: How) -> None:
        """``at``: the number of that operation, from 1."""
        self._store, self._left, self._how = store, at, how
        self._counting = threading.Lock()
        self.struck: str | None = None
        """The operation, such as ``put metadata``, once it has happened."""

    def _do(self, what: str, key: str, work: Callable[[], _T]) -> _T:
        with self._counting:
            if self.struck is not None and self._how != "unanswered":
                raise GoneError
            self._left -= 1
            if self._left == 0:
                self.struck = f"{what} {kind(key)}"
                self._strike(work if what in WRITES else lambda: None)
        return work()

    def _strike(self, work: Callable[[], object]) -> None:
        if self._how != "before":
            with suppress(StoreError):
                work()
        raise StoreUnavailableError("no answer") if self._how == "unanswered" else GoneError

    @property
    def uri(self) -> str:
        return self._store.uri

    @property
    def traffic(self) -> Traffic:
        return self._store.traffic

    def put(self, key: str, body: bytes) -> None:
        self._do("put", key, lambda: self._store.put(key, body))

    def put_file(self, key: str, file: BinaryIO) -> None:
        self._do("put", key, lambda: self._store.put_file(key, file))

    def get(self, key: str) -> bytes:
        return self._do("get", key, lambda: self._store.get(key))

    def get_range(self, key: str, start: int, length: int) -> bytes:
        return self._do("get", key, lambda: self._store.get_range(key, start, length))

    def head(self, key: str) -> ObjectInfo | None:
        return self._do("head", key, lambda: self._store.head(key))

    def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
        return self._do("list", prefix, lambda: iter([*self._store.list(prefix)]))

    def delete(self, key: str) -> None:
        self._do("delete", key, lambda: self._store.delete(key))

    def sweep(self, prefix: str, before: datetime) -> int:
        return self._do("sweep", prefix, lambda: self._store.sweep(prefix, before))

    def open(self, key: str) -> BinaryIO:
        return self._do("open", key, lambda: self._store.open(key))

    def check_writable(self) -> None:
        prove_writable(self)


def kind(key: str) -> str:
    """``images``, ``index``, ``run.json``: what an object is, not which."""
    return key.removeprefix("_darkroom/").split("/")[0].split("-")[0]
