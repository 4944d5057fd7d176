"""Where driver and workers of a launch tell each other what Ray does not: an actor on the driver's node."""

import asyncio
import time
from contextlib import suppress
from typing import Any, Literal

import ray
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

Why = Literal["stop", "leave"]
QUIET_S = 600.0
"""As long as any worker loads the model or renders a shard within this time, those that cannot begin end nothing."""


class _Board:
    """Where workers learn that the launch stops, or their node, and tell what keeps them from working.

    An actor; its methods run in one event loop.
    """

    def __init__(self, most_failed_starts: int, quiet_s: float) -> None:
        self._most_failed_starts, self._failed_starts = most_failed_starts, 0
        self._quiet_s, self._good_at = quiet_s, time.monotonic()
        self._complaints: dict[str, str] = {}
        self._changed = asyncio.Condition()
        self._stopped = False
        self._leaving: set[str] = set()
        self._working: set[str] = set()
        self._told: dict[str, int] = {}

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

    async def works(self) -> None:
        """A worker has loaded the model or rendered a shard: where others fail, it is not the launch's fault."""
        self._failed_starts, self._good_at = 0, time.monotonic()

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
