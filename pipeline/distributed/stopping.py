"""Stopping a launch so that what has begun is finished and committed: Ctrl-C, SIGTERM, ``render.stop_after``."""

import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

from pipeline.distributed.report import Tell

Reason = Literal["interrupted", "time"]


class Stop:
    """Who asked a launch to stop, if anybody."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._follow: Callable[[], None] = lambda: None
        self.reason: Reason | None = None

    def ask(self, reason: Reason) -> None:
        """Stop as soon as may be; asked again, nothing more happens."""
        if self.reason is None:
            self.reason = reason
            why = "the time of render.stop_after is over" if reason == "time" else "stopping; again ends at once"
            self._tell(f"{why}: images that have begun are finished and committed")
            self._follow()

    def follow(self, stop: Callable[[], None]) -> None:
        """Have somebody stopped from now on, at once where that was asked for before."""
        self._follow = stop
        if self.reason is not None:
            stop()

    @contextmanager
    def listening(self, stop_after_s: float | None) -> Iterator[None]:
        """While waves run: the first signal asks to stop, the second ends the process's main thread at once."""
        timer = threading.Timer(max(0.0, stop_after_s or 0.0), self.ask, ("time",))
        timer.daemon = True
        if stop_after_s is not None:
            timer.start()
        try:
            with _signals(self._on_signal):
                yield
        finally:
            timer.cancel()

    def _on_signal(self, *_: object) -> None:
        if self.reason is not None:
            raise KeyboardInterrupt
        self.ask("interrupted")


@contextmanager
def _signals(handler: Any) -> Iterator[None]:
    """Handle SIGINT and SIGTERM so, where we are the main thread: elsewhere signals are somebody else's."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {number: signal.signal(number, handler) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        for number, old in before.items():
            signal.signal(number, old)
