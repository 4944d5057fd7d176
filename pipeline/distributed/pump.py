"""An iterator read by a thread of its own, so that who waits for it can leave."""

import queue
import threading
from collections.abc import Callable, Generator, Iterator
from typing import Generic, TypeVar

_Item = TypeVar("_Item")
_POLL_S = 0.25
_AHEAD = 16
_ENDS_WITHIN_S = 30.0


def pumped(
    source: Generator[_Item, None, None],
    over: Callable[[], bool],
    meanwhile: Callable[[], None] = lambda: None,
    end: Callable[[], None] | None = None,
) -> Iterator[_Item]:
    """What the source yields, until it ends or ``over``, even where it would block for ever; raises what it raises.

    ``over`` is asked from two threads. ``meanwhile`` is called now and then while nothing comes, by who reads. ``end``
    is what makes the source end that blocks: with it, its thread is waited for.
    """
    pump = _Pump(source, over, meanwhile)
    thread = threading.Thread(target=pump.run, name="outcomes", daemon=True)
    thread.start()
    try:
        yield from pump.items()
    finally:
        pump.left.set()
        if end is not None:
            end()
            thread.join(_ENDS_WITHIN_S)


class _Pump(Generic[_Item]):
    def __init__(
        self, source: Generator[_Item, None, None], over: Callable[[], bool], meanwhile: Callable[[], None]
    ) -> None:
        self._source, self._over, self._meanwhile = source, over, meanwhile
        self._ready: queue.Queue[tuple[_Item] | BaseException | None] = queue.Queue(_AHEAD)
        """Items, what was raised, or None at the end."""
        self.left = threading.Event()

    def run(self) -> None:
        try:
            for item in self._source:
                if not self._put((item,)) or self._over():
                    break
            self._source.close()
            self._put(None)
        except BaseException as error:  # noqa: BLE001  # it belongs to who reads
            self._put(error)

    def items(self) -> Iterator[_Item]:
        while True:
            try:
                found = self._ready.get(timeout=_POLL_S)
            except queue.Empty:
                if self._over():
                    return
                self._meanwhile()
                continue
            if found is None:
                return
            if isinstance(found, BaseException):
                raise found
            yield found[0]

    def _put(self, item: "tuple[_Item] | BaseException | None") -> bool:
        """False when nobody reads any more."""
        while not self.left.is_set():
            try:
                self._ready.put(item, timeout=_POLL_S)
                return True
            except queue.Full:
                continue
        return False
