"""Where driver and workers of a launch tell each other what Ray does not: an actor on the driver's node."""

import asyncio
import time
from collections import Counter
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, Literal

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.distributed.report import Drawn

Why = Literal["stop", "leave"]
QUIET_S = 600.0
"""As long as any worker loads the model or renders a shard within this time, those that cannot begin end nothing."""
TELL_S = 2.0
"""Pause of a worker between two tellings of what it has drawn."""
TELL_S_PER_WORKER = 0.02
"""The pause where there are many workers, by their number, so that the board is told 50 times a second at most."""
ASK_S = 1.0
"""Pause of the driver between two questions."""
_GONE_AFTER_PAUSES = 10
"""A worker that has told nothing for so many pauses is gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """The workers' state, as far as they have reported it."""

    ready: int = 0
    """Workers that have loaded the model."""
    drawn: Mapping[str, Drawn] = field(default_factory=dict)
    """Drawn images by process, for processes that still report."""


class _Board:
    """Where workers learn that the launch stops, or their node, and tell what keeps them from working.

    An actor; its methods run in one event loop.
    """

    def __init__(self, most_failed_starts: int, quiet_s: float) -> None:
        self._most_failed_starts, self._failed_starts = most_failed_starts, 0
        self._quiet_s, self._good_at = quiet_s, time.monotonic()
        self._held, self._rendered_at = 0, time.monotonic()
        self._complaints: dict[str, str] = {}
        self._without_room: Counter[str] = Counter()
        self._changed = asyncio.Condition()
        self._stopped = False
        self._leaving: set[str] = set()
        self._working: set[str] = set()
        self._told: dict[str, int] = {}
        self._drawn: dict[str, tuple[float, Drawn]] = {}

    async def wait(self, worker: str, node_id: str) -> Why:
        """Returns when the launch stops or the node is about to leave; the worker then has to say when it is idle."""
        self._working.add(worker)
        await self.works()
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
        """A worker's process ends as it cannot begin; returns whether too many have, while no other got on for long."""
        self._failed_starts += 1
        return self._failed_starts > self._most_failed_starts and time.monotonic() - self._good_at > self._quiet_s

    async def held(self) -> bool:
        """Note that a worker ends since other processes hold its device.

        Return whether too many have, while nobody rendered a shard for long.
        """
        self._held += 1
        return self._held > self._most_failed_starts and time.monotonic() - self._rendered_at > self._quiet_s

    async def does_not_fit(self, node_id: str, only_node: bool) -> bool:
        """Note that a process found no room for the model on an idle device; return whether that ends the launch.

        Two nodes must say so, or two processes of the only one that has devices.
        """
        self._without_room[node_id] += 1
        return len(self._without_room) > 1 or (only_node and self._without_room[node_id] > 1)

    async def drew(self, worker: str, drawn: Drawn) -> float:
        """Returns the seconds to wait until it tells again."""
        self._drawn[worker] = time.monotonic(), drawn
        return self._pause_s()

    def _pause_s(self) -> float:
        return max(TELL_S, len(self._working) * TELL_S_PER_WORKER)

    async def seen(self) -> Seen:
        since = time.monotonic() - _GONE_AFTER_PAUSES * self._pause_s()
        fresh = {worker: drawn for worker, (at_s, drawn) in self._drawn.items() if at_s > since}
        return Seen(ready=len(self._working), drawn=fresh)

    async def works(self) -> None:
        """Note that a worker has loaded the model: where others cannot, it is not the launch's fault."""
        self._failed_starts, self._good_at = 0, time.monotonic()

    async def rendered(self) -> None:
        """Note that a worker has rendered a shard."""
        await self.works()
        self._held, self._rendered_at = 0, self._good_at

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


def make_board(most_failed_starts: int, quiet_s: float = QUIET_S) -> Any:
    """A handle of a new board, for the workers of one launch. It lives where the driver does, and no shorter."""
    here = NodeAffinitySchedulingStrategy(ray.get_runtime_context().get_node_id(), soft=False)
    board = ray.remote(num_cpus=0, max_concurrency=100_000, scheduling_strategy=here)(_Board)
    return board.remote(most_failed_starts, quiet_s)


class Watcher:
    """Asks the board what it has seen of the workers. Asking never waits."""

    def __init__(self, board: Any) -> None:
        self._board, self._asked, self._seen = board, None, Seen()
        self._next_at_s = 0.0

    def seen(self) -> Seen:
        """Return what the board said when it was asked last, and ask again."""
        if self._board is None:
            return self._seen
        if self._asked is not None and ray.wait([self._asked], timeout=0)[0]:
            with suppress(ray.exceptions.RayError):
                self._seen = ray.get(self._asked)
            self._asked = None
        if self._asked is None and time.monotonic() >= self._next_at_s:
            self._asked, self._next_at_s = self._board.seen.remote(), time.monotonic() + ASK_S
        return self._seen
