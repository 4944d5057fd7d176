"""Stopping a launch so that what has begun is finished and committed: Ctrl-C, SIGTERM, ``render.stop_after``."""

import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any, Literal

import ray

from pipeline.distributed.report import Tell

Reason = Literal["interrupted", "time"]
GRACE_S = 120.0
"""So long workers may take to finish what they have begun."""
LATE_S = 15.0
"""So long what they told of it may take to arrive; it is committed in any case."""
_POLL_S = 0.2


class Stop:
    """The driver's side: who asked to stop, and whether all workers have."""

    def __init__(self, tell: Tell) -> None:
        self._tell = tell
        self._asked = threading.Event()
        self._idle = threading.Event()
        self._over = threading.Event()
        self._told: Mapping[str, int] = {}
        self._late_until = 0.0
        self.reason: Reason | None = None

    def complete(self, arrived: Mapping[str, int]) -> bool:
        """All workers have committed what they had begun, or had their time, and what they told of it has arrived.

        ``arrived``: of how many tasks, by worker.
        """
        if not self._idle.is_set():
            return False
        whole = all(arrived.get(worker, 0) >= outcomes for worker, outcomes in self._told.items())
        return whole or time.monotonic() > self._late_until

    def ask(self, reason: Reason) -> None:
        """Stop as soon as may be; asked again, nothing more happens."""
        self.reason = self.reason or reason
        self._asked.set()

    @contextmanager
    def listening(self, board: Any, stop_after_s: float | None) -> Iterator[None]:
        """While waves run: the first signal asks to stop, the second ends the process's main thread at once."""
        conductor = threading.Thread(target=self._conduct, args=(board,), name="stop", daemon=True)
        conductor.start()
        timer = threading.Timer(max(0.0, stop_after_s or 0.0), self.ask, ("time",))
        timer.daemon = True
        if stop_after_s is not None:
            timer.start()
        try:
            with _signals(self._on_signal):
                yield
        finally:
            timer.cancel()
            self._over.set()
            if self._asked.is_set():
                conductor.join(LATE_S)  # a thread that asks something of Ray when that has ended ends this process

    def _on_signal(self, *_: object) -> None:
        if self._asked.is_set():
            raise KeyboardInterrupt
        self.ask("interrupted")

    def _conduct(self, board: Any) -> None:
        """A thread of its own, since a signal may interrupt Ray anywhere."""
        self._asked.wait()
        why = "the time of render.stop_after is over" if self.reason == "time" else "stopping; again ends at once"
        self._tell(f"{why}: images that have begun are finished and committed")
        until = time.monotonic() + GRACE_S
        try:
            ray.get(board.stop.remote())
            while time.monotonic() < until and not self._over.is_set() and ray.get(board.working.remote()):
                self._over.wait(_POLL_S)
            self._told = ray.get(board.told.remote())
        except ray.exceptions.RayError:
            if not self._over.is_set():
                left_s = max(0.0, until - time.monotonic())
                self._tell(f"warning: workers cannot be told to stop; they get {left_s:.0f} s, what is not committed "
                           "then is rendered again by the next launch")  # fmt: skip
                self._over.wait(left_s)
        self._late_until = time.monotonic() + LATE_S
        self._idle.set()


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
