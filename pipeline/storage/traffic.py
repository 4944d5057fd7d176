"""What has gone to a store and come back, counted where it happens."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class Traffic:
    """The work a store was asked for. Sums add up, so that the stores of many processes become one figure."""

    requests: int = 0
    """Sent to a server, each attempt of its own; on a file system, operations."""
    retries: int = 0
    """Requests sent again, and operations begun again as a whole, because an earlier attempt had failed."""
    bytes_put: int = 0
    """Of objects, once each, when they had been stored."""
    bytes_got: int = 0
    """Of objects, as they were handed out; attempts that broke off are not in it."""
    put_s: float = field(default=0.0, compare=False)
    """That callers waited for puts, retries included; of all threads, so it may grow faster than time passes."""

    def __add__(self, other: "Traffic") -> "Traffic":
        return Traffic(
            requests=self.requests + other.requests,
            retries=self.retries + other.retries,
            bytes_put=self.bytes_put + other.bytes_put,
            bytes_got=self.bytes_got + other.bytes_got,
            put_s=self.put_s + other.put_s,
        )


class Meter:
    """Counts the traffic of one store in one process, for several threads. A copy in another process begins at 0."""

    def __init__(self) -> None:
        self._adding = threading.Lock()
        self._total = Traffic()

    def __reduce__(self) -> tuple[type["Meter"], tuple[()]]:
        return Meter, ()

    @property
    def total(self) -> Traffic:
        """So far."""
        return self._total

    def add(self, more: Traffic) -> None:
        """Count what has happened since."""
        with self._adding:
            self._total += more

    @contextmanager
    def putting(self) -> Iterator[None]:
        """Around a put, well or not: counts its time."""
        began = time.monotonic()
        try:
            yield
        finally:
            self.add(Traffic(put_s=time.monotonic() - began))
