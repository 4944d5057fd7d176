"""Stopping a launch so that what has begun is finished and committed: Ctrl-C, SIGTERM, ``render.stop_after``."""

import asyncio
import signal
import threading
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager, suppress
from typing import Any, Literal

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.distributed.report import Tell

Reason = Literal["interrupted", "time"]
Why = Literal["stop", "leave"]
GRACE_S = 120.0
"""So long workers may take to finish what they have begun."""
LATE_S = 15.0
"""So long what they told of it may take to arrive; it is committed in any case."""
_POLL_S = 0.2


class _Board:
    """Where workers learn that the launch stops, or their node, and tell what keeps them from working.

    An actor; its methods run in one event loop.
    """

    def __init__(self, most_failed_starts: int) -> None:
        self._most_failed_starts, self._failed_starts = most_failed_starts, 0
        self._complaints: dict[str, str] = {}
        self._changed = asyncio.Condition()
        self._stopped = False
        self._leaving: set[str] = set()
        self._working: set[str] = set()
        self._told: dict[str, int] = {}

    async def wait(self, worker: str, node_id: str) -> Why:
        """Returns when the launch stops or the node is about to leave; the worker then has to say when it is idle."""
        self._working.add(worker)
        self._failed_starts = 0
        async with self._changed:
            await self._changed.wait_for(lambda: self._stopped or node_id in self._leaving)
        return "stop" if self._stopped else "leave"

    async def idle(self, worker: str, outcomes: int) -> None:
        """It has nothing in hand any more, and has told of so many tasks since it began."""
        self._told[worker] = outcomes
        self._working.discard(worker)

    async def complain(self, node_id: str, reason: str) -> None:
        """A worker there cannot begin."""
        self._complaints[node_id] = reason

    async def complaints(self) -> dict[str, str]:
        """The last one of each node."""
        return self._complaints

    async def gave_up(self) -> bool:
        """A worker's process ends as it cannot begin; returns whether too many have, with none at work meanwhile."""
        self._failed_starts += 1
        return self._failed_starts > self._most_failed_starts

    async def works(self) -> None:
        """A worker has rendered a shard: where others fail, it is not the launch's fault."""
        self._failed_starts = 0

    async def told(self) -> dict[str, int]:
        return self._told

    async def stop(self) -> None:
        async with self._changed:
            self._stopped = True
            self._changed.notify_all()

    async def leave(self, node_id: str) -> None:
        async with self._changed:
            self._leaving.add(node_id)
            self._changed.notify_all()

    async def working(self) -> int:
        return len(self._working)


def make_board(most_failed_starts: int) -> Any:
    """A handle of a new board, for the workers of one launch. It lives where the driver does, and no shorter."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ray.remote(num_cpus=0, max_concurrency=100_000, scheduling_strategy=here)(_Board)
    return board.remote(most_failed_starts)


class Ready:
    """How many workers have loaded the model: each then waits at the board. Asking never waits."""

    def __init__(self, board: Any) -> None:
        self._board, self._asked, self._number = board, None, 0

    def number(self) -> int:
        """As the board said when it was asked last, and ask again."""
        if self._board is None:
            return 0
        if self._asked is not None and ray.wait([self._asked], timeout=0)[0]:
            with suppress(ray.exceptions.RayError):
                self._number = ray.get(self._asked)
            self._asked = None
        self._asked = self._asked or self._board.working.remote()
        return self._number


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
        threading.Thread(target=self._conduct, args=(board,), name="stop", daemon=True).start()
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
            while time.monotonic() < until and ray.get(board.working.remote()):
                time.sleep(_POLL_S)
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
