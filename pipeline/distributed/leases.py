"""Leases: what one worker renders, and in which order what waits is given away.

A task that was in flight when a process died is tried again like any other; after two deaths it is rendered alone, in
a worker that has nothing else; a death there quarantines it. So no innocent task is condemned for its neighbours. A
node that goes blames nobody; but a task may be what takes nodes along, as when its memory has a container killed. So
the lease of a lost node is cut in two, and after four lost nodes its tasks are rendered alone too.
"""

from collections import Counter, deque
from collections.abc import Hashable, Iterable
from dataclasses import dataclass, field

import pyarrow as pa
import pyarrow.compute as pc

DEATHS_BEFORE_ALONE = 2
NODES_BEFORE_ALONE = 4


@dataclass(slots=True, eq=False)
class Lease:
    """Planned tasks that one worker renders."""

    number: int
    tasks: pa.Table
    alone: bool = False
    """It is one task that is a suspect."""
    lost_nodes: int = 0
    done: set[bytes] = field(default_factory=set)
    """Ids of tasks with an outcome."""

    @property
    def key(self) -> Hashable:
        """What the tasks of one batch have in common: the size of their images."""
        return self.tasks["width"][0].as_py(), self.tasks["height"][0].as_py()

    def remaining(self) -> pa.Table:
        """Return the tasks without an outcome."""
        if not self.done:
            return self.tasks
        left = [task_id not in self.done for task_id in self.tasks["task_id"].to_pylist()]
        return self.tasks.filter(pa.array(left, pa.bool_()))


class Leases:
    """Leases that wait for a worker."""

    def __init__(self) -> None:
        self._queues: dict[Hashable, deque[Lease]] = {}
        self._suspects: deque[Lease] = deque()
        self._numbers = 0
        self._deaths: Counter[bytes] = Counter()
        """By task: processes that died while it was in flight."""

    def __len__(self) -> int:
        return len(self._suspects) + sum(map(len, self._queues.values()))

    @property
    def has_suspects(self) -> bool:
        """Whether a task waits to be rendered alone."""
        return bool(self._suspects)

    def add(self, tasks: pa.Table) -> None:
        """Add planned tasks of one batch key, as one lease."""
        self._queue(self._made(tasks))

    def next_for(self, key: Hashable) -> Lease | None:
        """Take a lease of a worker's present key, else of the key with most of them."""
        queue = self._queues.get(key) or max(self._queues.values(), key=len, default=None)
        return queue.popleft() if queue else None

    def next_suspect(self) -> Lease:
        """Take a lease of one task that must be rendered alone."""
        return self._suspects.popleft()

    def blame(self, task_ids: Iterable[bytes]) -> None:
        """Note that a process died while it had these tasks in flight."""
        self._deaths.update(task_ids)

    def requeue(self, lease: Lease) -> None:
        """Let another worker render what has no outcome, suspects alone."""
        left = lease.remaining()
        if not left.num_rows:
            return
        if lease.alone:
            self._suspects.append(self._made(left, alone=True, lost_nodes=lease.lost_nodes))
            return
        deaths = [self._deaths[task_id] for task_id in left["task_id"].to_pylist()]
        suspected = pc.greater_equal(pa.array(deaths, pa.int64()), DEATHS_BEFORE_ALONE)
        self._suspect(left.filter(suspected))
        others = left.filter(pc.invert(suspected))
        if others.num_rows:
            self._queue(self._made(others, lost_nodes=lease.lost_nodes), first=True)

    def died(self, lease: Lease) -> pa.Table | None:
        """Requeue the lease of a worker that died, or return the task that is to be quarantined."""
        left = lease.remaining()
        if lease.alone and left.num_rows:
            return left
        self.requeue(lease)
        return None

    def node_lost(self, lease: Lease) -> pa.Table | None:
        """Requeue the lease of a worker that went with its node, or return the task that is to be quarantined."""
        left, lost = lease.remaining(), lease.lost_nodes + 1
        if not left.num_rows:
            return None
        if lease.alone:
            if lost >= NODES_BEFORE_ALONE:
                return left
            self._suspects.append(self._made(left, alone=True, lost_nodes=lost))
        elif lost >= NODES_BEFORE_ALONE:
            self._suspect(left)
        else:
            half = -(-left.num_rows // 2)
            for part in (left.slice(half), left.slice(0, half)):
                if part.num_rows:
                    self._queue(self._made(part, lost_nodes=lost), first=True)
        return None

    def _made(self, tasks: pa.Table, *, alone: bool = False, lost_nodes: int = 0) -> Lease:
        self._numbers += 1
        return Lease(self._numbers, tasks, alone, lost_nodes)

    def _queue(self, lease: Lease, *, first: bool = False) -> None:
        queue = self._queues.setdefault(lease.key, deque())
        if first:
            queue.appendleft(lease)
        else:
            queue.append(lease)

    def _suspect(self, tasks: pa.Table) -> None:
        self._suspects.extend(self._made(tasks.slice(at, 1), alone=True) for at in range(tasks.num_rows))
