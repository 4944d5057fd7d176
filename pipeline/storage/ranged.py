"""A remote object as a file: seeking is free, reading fetches exactly the bytes asked for."""

import io
import os
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from _typeshed import WriteableBuffer


class RangeReader(io.RawIOBase):
    """Read-only file over `fetch(start, length)`, without read-ahead: pyarrow plans its own ranges.

    `fetch` returns `length` bytes from byte `start` on; `size_bytes` is the size of the object when it was opened.
    """

    def __init__(self, fetch: Callable[[int, int], bytes], size_bytes: int) -> None:
        super().__init__()
        self._fetch = fetch
        self._size_bytes = size_bytes
        self._position = 0

    def readable(self) -> bool:
        """Return True."""
        return True

    def seekable(self) -> bool:
        """Return True."""
        return True

    def tell(self) -> int:
        """Return the position of the next read, in bytes from the start."""
        return self._position

    def seek(self, offset: int, whence: int = os.SEEK_SET) -> int:
        """Move the position, also past the end, and return it. Raises ValueError if it would be negative."""
        self._require_open()
        origin = {os.SEEK_SET: 0, os.SEEK_CUR: self._position, os.SEEK_END: self._size_bytes}[whence]
        if origin + offset < 0:
            raise ValueError(f"seek to {origin + offset}, before the start")
        self._position = origin + offset
        return self._position

    def read(self, size: int | None = -1) -> bytes:
        """Return `size` bytes with one request, fewer at the end; all that are left if `size` is negative or None."""
        self._require_open()
        left = max(0, self._size_bytes - self._position)
        length = left if size is None or size < 0 else min(size, left)
        body = self._fetch(self._position, length) if length else b""
        self._position += len(body)
        return body

    def readall(self) -> bytes:
        """Return all bytes that are left, with one request."""
        return self.read(-1)

    def readinto(self, buffer: "WriteableBuffer") -> int:
        """Fill `buffer`, or what is left into it, and return the number of bytes."""
        view = memoryview(buffer).cast("B")
        body = self.read(len(view))
        view[: len(body)] = body
        return len(body)

    def _require_open(self) -> None:
        if self.closed:
            raise ValueError("the file is closed")
