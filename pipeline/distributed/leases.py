"""What a worker does with a shard that others died of.

After one death it is tried again as any other: the machine may be to blame. After two it is rendered alone in its
process, task by task; a death there is that task's doing. So no innocent task is condemned for its neighbours.

A node that goes takes its workers with it, and nobody is to blame; but a task may be what takes nodes along, as when
its memory has a container killed. After four of them what they all had in hand is a suspect like any other.
"""

import asyncio
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from datetime import timedelta

from pipeline.errors import JobBrokenError
from pipeline.output.attempts import Attempts

DEATHS_BEFORE_ALONE = 2
NODES_BEFORE_ALONE = 4
MOST_DEATHS = 20
SPAN = timedelta(minutes=10)


class Suspicions:
    """Which shards are suspects, from the notes of attempts."""

    def __init__(self, attempts: Attempts, node_gone: Callable[[str], bool]) -> None:
        """``node_gone``: whether a node has left the cluster; who died with it is nobody's victim, unless many did."""
        self._attempts, self._node_gone = attempts, node_gone

    def deaths(self, part_id: str) -> int:
        """How many processes died of their work while they had this shard; many lost nodes count as enough of them.

        Raises ``JobBrokenError`` when the launch has had too many deaths lately.
        """
        earlier = self._attempts.earlier(part_id)
        lost = {dead.node_id for dead in earlier if self._node_gone(dead.node_id)}
        charged = [dead for dead in earlier if dead.node_id not in lost]
        for dead in charged:
            self._attempts.charge(dead)
        if charged and (lately := self._attempts.deaths_within(SPAN)) > MOST_DEATHS:
            raise JobBrokenError(
                f"{lately} worker processes died within {SPAN.seconds // 60} minutes, the last of them with shard "
                f"{part_id} in hand; their logs may tell why: out of memory, a broken driver, a library that crashes"
            )
        return len(charged) + (DEATHS_BEFORE_ALONE if len(lost) >= NODES_BEFORE_ALONE else 0)


class Floor:
    """Lets shards work at once, or one of them alone. For the coroutines of one event loop."""

    def __init__(self) -> None:
        self._changed = asyncio.Condition()
        self._working, self._alone = 0, False

    @asynccontextmanager
    async def shared(self) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._alone)
            self._working += 1
        try:
            yield
        finally:
            async with self._changed:
                self._working -= 1
                self._changed.notify_all()

    @asynccontextmanager
    async def alone(self) -> AsyncIterator[None]:
        async with self._changed:
            await self._changed.wait_for(lambda: not self._alone)
            self._alone = True
            await self._changed.wait_for(lambda: not self._working)
        try:
            yield
        finally:
            async with self._changed:
                self._alone = False
                self._changed.notify_all()
