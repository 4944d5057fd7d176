"""The dispatcher: which worker renders what, and what becomes of it when a worker dies, leaves or stops.

A worker has at most two leases, one that it renders and the next. The dispatcher gave them, so it knows who has what:
deaths, drains and stops need no other channel. It knows no Ray: a ``Crew`` starts workers and carries calls and events.
"""

import time
from collections.abc import Callable, Hashable, Iterable, Sequence
from dataclasses import dataclass, field
from typing import Protocol

import pyarrow as pa

from pipeline.distributed.events import (
    Begun,
    Broken,
    Committed,
    Died,
    Ended,
    Event,
    GaveUp,
    Idle,
    Ready,
    Waiting,
    Working,
)
from pipeline.distributed.leases import Lease, Leases
from pipeline.distributed.limits import Limits
from pipeline.distributed.report import Drawn
from pipeline.errors import JobBrokenError

LEASES_AHEAD = 2
POLL_S = 0.25
GRACE_S = 120.0
"""So long workers may take to finish what they have begun when the launch stops."""


class Crew(Protocol):
    """The workers of a launch, by number."""

    def start(self) -> int:
        """Ask for another worker; return its number. It may wait for room."""

    def lease(self, worker: int, lease: int, tasks: pa.Table) -> None:
        """Give a worker a lease."""

    def take_back(self, worker: int, lease: int) -> None:
        """Ask for a lease that is not begun. ``Ended`` comes in any case, now or when it is rendered."""

    def stop(self, worker: int) -> None:
        """Let a worker finish what it has begun and no more. ``Ended`` comes of each lease, then ``Idle``."""

    def end(self, workers: Iterable[int]) -> None:
        """End workers that have nothing in hand, or wait for room."""

    def leaving(self) -> Iterable[int]:
        """Return the workers whose nodes are about to go."""

    def events(self, timeout_s: float) -> Sequence[tuple[int, Event]]:
        """Return what workers have told; wait for the first so long."""


class Listener(Protocol):
    """Who follows the dispatcher's work."""

    def committed(self, outcomes: pa.Table) -> None:
        """Tasks have an outcome in the store."""

    def found(self, parts: Sequence[str], tasks: Sequence[pa.Table]) -> pa.Table | None:
        """Return outcomes of these tasks in parts that are in the store though a worker died before it told of them."""

    def quarantined(self, task: pa.Table) -> None:
        """Commit a task as failed: it kills the processes that render it."""

    def working(self, process_id: str, drawn: Drawn, ready: int) -> None:
        """A worker has drawn so much; so many workers are ready."""

    def gone(self, process_id: str) -> None:
        """A worker is no more; what it has drawn and not committed is lost."""

    def says(self, sentence: str) -> None:
        """Something for people."""


class Plan(Protocol):
    """Where leases come from."""

    def next(self) -> "pa.Table | None":
        """Return the next planned tasks; None where none is planned yet, or at the end."""

    @property
    def over(self) -> bool:
        """Whether ``next`` will return no more."""


@dataclass(slots=True, eq=False)
class _Worker:
    """A worker as the dispatcher knows it."""

    number: int
    begun: Begun | None = None
    ready: bool = False
    stopping: bool = False
    key: Hashable = None
    """Of the last lease it was given."""
    leases: dict[int, Lease] = field(default_factory=dict)
    asked_back: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class CrewSize:
    """How many workers a launch may have."""

    most: int
    slots: int
    """Images that one worker renders at a time. A worker for fewer would only cost the loading of a model."""
    most_failed_starts: int
    window: int
    """Planned leases that wait, at most."""


class Dispatcher:
    """Have everything planned rendered. ``run`` belongs to one thread; ``stop`` may come from any."""

    def __init__(
        self,
        crew: Crew,
        plan: Plan,
        size: CrewSize,
        listener: Listener,
        *,
        images: int,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        """``images``: how many are planned, about."""
        self._crew, self._plan, self._size, self._listener, self._clock = crew, plan, size, listener, clock
        self._unfinished = images
        self._leases = Leases()
        self._limits = Limits(size.most_failed_starts, size.most, clock)
        self._workers: dict[int, _Worker] = {}
        self._isolated: _Worker | None = None
        """It renders suspects alone, or is about to."""
        self._warned: set[str] = set()
        """The nodes of which people know that workers wait there."""
        self._stop_asked = False
        self._stopped_at: float | None = None
        self.deaths = 0
        """Processes that died of their work."""
        self.changes = 0
        """Leases of another batch key than the worker's last one."""

    def stop(self) -> None:
        """Begin nothing more; ``run`` returns when what has begun is committed."""
        self._stop_asked = True

    def run(self) -> None:
        """Return when everything planned has an outcome, or after ``stop``.

        Raises what a worker met that no other one would do better, and ``JobBrokenError`` for too many deaths or
        failed starts.
        """
        try:
            while not self._over():
                self._fill()
                self._grow()
                self._follow_nodes()
                self._give()
                for number, event in self._crew.events(POLL_S):
                    if number in self._workers:
                        self._take(self._workers[number], event)
        finally:
            self._crew.end(self._workers)

    def _over(self) -> bool:
        if self._stop_asked:
            if self._stopped_at is None:
                self._begin_to_stop()
            late = self._clock() - (self._stopped_at or 0.0) > GRACE_S
            return late or not self._workers
        return self._plan.over and not self._leases and not any(worker.leases for worker in self._workers.values())

    def _begin_to_stop(self) -> None:
        self._stopped_at = self._clock()
        for worker in tuple(self._workers.values()):
            self._let_go(worker)

    def _fill(self) -> None:
        """Take planned tasks, as many leases as the window holds."""
        while not self._stop_asked and len(self._leases) < self._size.window:
            tasks = self._plan.next()
            if tasks is None:
                return
            self._leases.add(tasks)

    def _give(self) -> None:
        if self._stop_asked:
            return
        able = [worker for worker in self._workers.values() if worker.ready and not worker.stopping]
        self._give_suspects(able)
        others = [worker for worker in able if worker is not self._isolated]
        for ahead in range(LEASES_AHEAD):
            for worker in others:
                if len(worker.leases) == ahead and (lease := self._leases.next_for(worker.key)) is not None:
                    self._give_one(worker, lease)
        self._take_back_for_idle(others)

    def _give_suspects(self, able: Sequence[_Worker]) -> None:
        """Let one worker render suspects, one at a time, with nothing beside them."""
        if not self._leases.has_suspects:
            if self._isolated is not None and not self._isolated.leases:
                self._isolated = None
            return
        if self._isolated is None and able:
            self._isolated = min(able, key=lambda worker: len(worker.leases))
        if self._isolated is not None and not self._isolated.leases:
            self._give_one(self._isolated, self._leases.next_suspect())

    def _give_one(self, worker: _Worker, lease: Lease) -> None:
        self.changes += worker.key not in (None, lease.key)
        worker.key = lease.key
        worker.leases[lease.number] = lease
        self._crew.lease(worker.number, lease.number, lease.tasks)

    def _take_back_for_idle(self, able: Sequence[_Worker]) -> None:
        """Ask busy workers for leases that they have not begun, one for each idle worker."""
        idle = sum(not worker.leases for worker in able) - sum(worker.asked_back for worker in able)
        busy = [worker for worker in able if len(worker.leases) == LEASES_AHEAD and not worker.asked_back]
        for worker in busy[: max(0, idle)]:
            worker.asked_back = True
            self._crew.take_back(worker.number, max(worker.leases))

    def _grow(self) -> None:
        """Start workers that the work can use, and withdraw those that it no longer can and that have not begun."""
        if self._stop_asked:
            return
        useful = min(self._size.most, -(-self._unfinished // self._size.slots))
        waiting = [worker for worker in self._workers.values() if worker.begun is None]
        for worker in waiting[: max(0, len(self._workers) - useful)]:
            self._end(worker)
        while len(self._workers) < useful and self._limits.may_start:
            number = self._crew.start()
            self._workers[number] = _Worker(number)

    def _follow_nodes(self) -> None:
        for number in self._crew.leaving():
            worker = self._workers.get(number)
            if worker is not None and not worker.stopping:
                self._let_go(worker)

    def _let_go(self, worker: _Worker) -> None:
        """Have a worker finish what it has begun, and then end."""
        if self._isolated is worker:
            self._isolated = None
        if worker.ready:
            worker.stopping = True
            self._crew.stop(worker.number)
        else:
            self._end(worker)

    def _end(self, worker: _Worker) -> None:
        self._forget(worker)
        self._crew.end([worker.number])

    def _forget(self, worker: _Worker) -> None:
        del self._workers[worker.number]
        if self._isolated is worker:
            self._isolated = None
        if worker.begun is not None:
            self._listener.gone(worker.begun.process_id)

    def _take(self, worker: _Worker, event: Event) -> None:
        match event:
            case Begun():
                worker.begun = event
            case Ready():
                worker.ready = True
                self._limits.ready()
            case Working():
                self._tell_of(worker, event.drawn)
            case Committed():
                self._limits.rendered()
                if event.lease in worker.leases:
                    worker.leases[event.lease].done.update(_ids(event.outcomes))
                self._note(event.outcomes)
            case Ended():
                worker.asked_back = False
                if event.lease in worker.leases:
                    self._requeue(worker.leases.pop(event.lease))
            case Idle():
                self._give_back(worker)
                self._end(worker)
            case Waiting():
                self._warn(worker, event.reason)
            case GaveUp():
                self._give_back(worker)
                self._end(worker)
                self._limits.gave_up(event, worker.begun.node_id if worker.begun else "")
            case Broken():
                raise event.error
            case Died():
                self._died(worker, event)

    def _warn(self, worker: _Worker, reason: str) -> None:
        """Tell people once for each node why its workers wait."""
        node_id = worker.begun.node_id if worker.begun else ""
        if node_id not in self._warned:
            self._warned.add(node_id)
            self._listener.says(f"warning: a worker on node {node_id[:8]} cannot work and tries again: {reason}")

    def _tell_of(self, worker: _Worker, drawn: Drawn) -> None:
        assert worker.begun is not None
        ready = sum(one.ready for one in self._workers.values())
        self._listener.working(worker.begun.process_id, drawn, ready)

    def _note(self, outcomes: pa.Table) -> None:
        self._unfinished -= outcomes.num_rows
        self._listener.committed(outcomes)

    def _give_back(self, worker: _Worker) -> None:
        while worker.leases:
            self._requeue(worker.leases.popitem()[1])

    def _requeue(self, lease: Lease) -> None:
        if not self._stop_asked:
            self._leases.requeue(lease)

    def _died(self, worker: _Worker, event: Died) -> None:
        self._forget(worker)
        leases = tuple(worker.leases.values())
        if event.parts and leases:
            found = self._listener.found(event.parts, [lease.remaining() for lease in leases])
            if found is not None:
                self._found(leases, found)
        if not (worker.ready or event.lost_node or self._stop_asked):
            self._limits.failed_start(JobBrokenError(event.reason))
        if worker.leases and not event.lost_node:
            self.deaths += 1
            self._limits.died(event.reason)
            self._leases.blame(event.in_flight)
        condemned = self._leases.node_lost if event.lost_node else self._leases.died
        while worker.leases and not self._stop_asked:
            task = condemned(worker.leases.popitem()[1])
            if task is not None:
                self._unfinished -= 1
                self._listener.quarantined(task)

    def _found(self, leases: Sequence[Lease], outcomes: pa.Table) -> None:
        """Take in what a dead worker has committed and could not tell."""
        for lease in leases:
            lease.done.update(_ids(outcomes))
        self._note(outcomes)


def _ids(outcomes: pa.Table) -> list[bytes]:
    return [bytes.fromhex(task_id) for task_id in outcomes["task_id"].to_pylist()]
