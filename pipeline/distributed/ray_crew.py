"""Workers as plain Ray actors: calls to them, and their answers to ``events``, are the only roads.

No actor is restarted by Ray, and no call tried again: the dispatcher decides what becomes of what a dead one had.
"""

import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pyarrow as pa
import ray
from ray._private.state import state
from ray.util.scheduling_strategies import NodeAffinitySchedulingStrategy

from pipeline.distributed.events import Begun, Died, Ended, Event
from pipeline.distributed.journal import InHand, read_journal
from pipeline.distributed.ray_errors import our_error
from pipeline.distributed.spec import Pool, WorkerSpec
from pipeline.distributed.worker import RenderWorker

TELL_S, TELL_S_PER_WORKER = 2.0, 0.02
"""A worker with nothing to tell answers after so long; with many workers, so that 50 a second do at most."""
CALLS_AT_ONCE = 4
UNREACHABLE_S = 60.0
"""A worker that cannot be reached for so long is ended. Its process may live on, so nobody is to blame."""
JOURNAL_S = 30.0
"""A journal that cannot be read within this time is lost."""
NODES_S = 2.0
"""Pause between two questions for nodes that are about to leave."""
CLOSE_S = 2.0


@dataclass(slots=True, eq=False)
class _Actor:
    handle: Any
    begun: Begun | None = None
    received: int = 0
    """Events of it that have arrived."""
    unreachable_since_s: float | None = None


class RayCrew:
    """The workers of one launch. For one thread."""

    def __init__(
        self, spec: WorkerSpec, pool: Pool, tell: Callable[[str], None], worker: type[RenderWorker] = RenderWorker
    ) -> None:
        self._spec, self._pool, self._tell, self._worker = spec, pool, tell, worker
        self._actors: dict[int, _Actor] = {}
        self._asked: dict[Any, int] = {}
        """The answers that are on their way, and from whom."""
        self._given: dict[Any, tuple[int, int]] = {}
        """The leases that are on their way, and to whom."""
        self._ask_at: dict[int, float] = {}
        """When to ask workers again that could not be reached."""
        self._journals: dict[Any, tuple[int, str, float]] = {}
        """Journals that are being read: whose, how it died, and until when."""
        self._numbers = 0
        self._leaving: set[str] = set()
        self._nodes_at_s = 0.0

    def start(self) -> int:
        """Ask Ray for another actor. It waits where there is no room."""
        self._numbers += 1
        reserved: Mapping[str, float] = (
            {"num_gpus": self._pool.gpus, "num_cpus": 0} if self._pool.gpus else {"num_cpus": self._pool.cpus}
        )
        options = {"max_restarts": 0, "max_task_retries": 0, "max_concurrency": CALLS_AT_ONCE, **reserved}
        self._actors[self._numbers] = _Actor(ray.remote(self._worker).options(**options).remote(self._spec))
        self._ask(self._numbers)
        return self._numbers

    def lease(self, worker: int, lease: int, tasks: pa.Table) -> None:
        """Give a worker a lease. Of one that is dead, ``Died`` comes."""
        if worker in self._actors:
            self._given[self._actors[worker].handle.lease.remote(lease, tasks)] = worker, lease

    def take_back(self, worker: int, lease: int) -> None:
        """Ask for a lease that is not begun."""
        if worker in self._actors:
            self._actors[worker].handle.take_back.remote(lease)

    def stop(self, worker: int) -> None:
        """Let a worker finish what it has begun."""
        if worker in self._actors:
            self._actors[worker].handle.stop.remote()

    def end(self, workers: Iterable[int]) -> None:
        """End workers, and give what they hold back to Ray."""
        actors = [self._actors.pop(worker) for worker in workers if worker in self._actors]
        self._asked = {ref: number for ref, number in self._asked.items() if number in self._actors}
        closing = [actor.handle.close.remote() for actor in actors if actor.begun is not None]
        if closing:
            ray.wait(closing, num_returns=len(closing), timeout=CLOSE_S)
        for actor in actors:
            ray.kill(actor.handle, no_restart=True)

    def leaving(self) -> Iterable[int]:
        """Return the workers whose nodes are about to go, as Ray knows it. Ray has no public call that tells."""
        now = time.monotonic()
        if now >= self._nodes_at_s:
            self._nodes_at_s = now + NODES_S
            draining = set(state.get_draining_nodes())
            for node in sorted(draining - self._leaving):
                self._tell(f"node {node[:8]} is about to leave: its workers commit what they have begun")
            self._leaving |= draining
        return [
            number for number, actor in self._actors.items() if actor.begun and actor.begun.node_id in self._leaving
        ]

    def events(self, timeout_s: float) -> Sequence[tuple[int, Event]]:
        """Return what workers have told; wait for the first so long."""
        for number, at_s in tuple(self._ask_at.items()):
            if at_s <= time.monotonic():
                del self._ask_at[number]
                if number in self._actors:
                    self._ask(number)
        waited = [*self._asked, *self._given, *self._journals]
        if not waited:
            time.sleep(timeout_s)
            return []
        ray.wait(waited, timeout=timeout_s)
        ready, _ = ray.wait(waited, num_returns=len(waited), timeout=0)
        told: list[tuple[int, Event]] = []
        for ref in ready:
            if ref in self._asked:
                told += self._answer(ref)
            else:
                told += self._arrived(ref) if ref in self._given else self._read(ref)
        return [*told, *self._overdue()]

    def _ask(self, number: int) -> None:
        wait_s = max(TELL_S, len(self._actors) * TELL_S_PER_WORKER)
        actor = self._actors[number]
        self._asked[actor.handle.events.remote(wait_s, actor.received)] = number

    def _arrived(self, ref: Any) -> list[tuple[int, Event]]:
        """Let others have a lease that did not reach a worker. One that is dead tells so itself."""
        number, lease = self._given.pop(ref)
        try:
            ray.get(ref)
        except ray.exceptions.ActorUnavailableError:
            return [(number, Ended(lease))]
        except ray.exceptions.RayActorError:
            pass
        except ray.exceptions.RayError as error:
            raise our_error(error) from error
        return []

    def _answer(self, ref: Any) -> list[tuple[int, Event]]:
        number = self._asked.pop(ref)
        actor = self._actors[number]
        try:
            events = ray.get(ref)
        except ray.exceptions.ActorUnavailableError as error:
            return self._unreachable(number, str(error))
        except ray.exceptions.RayActorError as error:
            return self._dead(number, _reason(error))
        except ray.exceptions.RayError as error:
            raise our_error(error) from error
        actor.unreachable_since_s = None
        actor.received += len(events)
        for event in events:
            actor.begun = event if isinstance(event, Begun) else actor.begun
        self._ask(number)
        return [(number, event) for event in events]

    def _unreachable(self, number: int, reason: str) -> list[tuple[int, Event]]:
        """Ask again later; after a while end a worker that may still live."""
        actor, now = self._actors[number], time.monotonic()
        since_s = actor.unreachable_since_s = actor.unreachable_since_s or now
        if now - since_s < UNREACHABLE_S:
            self._ask_at[number] = now + 1.0
            return []
        ray.kill(actor.handle, no_restart=True)
        del self._actors[number]
        return [(number, Died(reason=reason, lost_node=True))]

    def _dead(self, number: int, reason: str) -> list[tuple[int, Event]]:
        """Read the journal of a dead worker where it lies."""
        begun = self._actors.pop(number).begun
        if begun is None or node_gone(begun.node_id):
            return [(number, Died(reason=reason, lost_node=begun is not None))]
        there = NodeAffinitySchedulingStrategy(begun.node_id, soft=False)
        reading = ray.remote(num_cpus=0, max_retries=0, scheduling_strategy=there)(_take_journal).remote(begun.journal)
        self._journals[reading] = number, reason, time.monotonic() + JOURNAL_S
        return []

    def _read(self, ref: Any) -> list[tuple[int, Event]]:
        number, reason, _ = self._journals.pop(ref)
        try:
            found: InHand | None = ray.get(ref)
        except ray.exceptions.RayError:  # the node has gone meanwhile
            return [(number, Died(reason=reason, lost_node=True))]
        if found is None:
            return [(number, Died(reason=reason))]
        return [(number, Died(reason=reason, in_flight=found.in_flight, parts=found.parts))]

    def _overdue(self) -> list[tuple[int, Event]]:
        late = [ref for ref, (_, _, until_s) in self._journals.items() if until_s < time.monotonic()]
        return [(number, Died(reason=reason)) for number, reason, _ in map(self._journals.pop, late)]


def node_gone(node_id: str) -> bool:
    """Return whether a node is no longer part of the cluster, or about to leave it."""
    if node_id in set(state.get_draining_nodes()):
        return True
    return not any(node["Alive"] and node["NodeID"] == node_id for node in ray.nodes())


def _take_journal(path: str) -> InHand | None:
    """Read a journal and delete it, in a process on its machine; None where there is none."""
    try:
        found = read_journal(Path(path))
    except OSError:
        return None
    Path(path).unlink(missing_ok=True)
    Path(path).parent.rmdir()
    return found


def _reason(error: BaseException) -> str:
    return next((line.strip() for line in str(error).splitlines() if line.strip()), type(error).__name__)[:300]
