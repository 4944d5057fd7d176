"""A pretended cluster in pretended time: what ``benchmarks.simulation`` has in place of Ray and workers."""

import heapq
import random
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from itertools import count

import pyarrow as pa

from pipeline.distributed.events import Begun, Committed, Died, Ended, Event, GaveUp, Ready, Working
from pipeline.distributed.outcomes import Teller, Worked
from pipeline.distributed.ray_crew import TELL_S, TELL_S_PER_WORKER
from pipeline.distributed.report import Drawn
from pipeline.distributed.runner import COMMIT_S
from pipeline.errors import JobBrokenError
from pipeline.output.schema import METADATA_SCHEMA
from pipeline.rendering.counters import EngineCounters

SLOTS = 4
MEGAPIXEL_EVALUATIONS_PER_S = 500.0
"""Of a worker of middling speed."""
SPEEDS = 0.5, 1.5
"""Slowest and fastest, to that."""
START_S, SLOW_START_S = (20.0, 60.0), (120.0, 300.0)
SLOW_STARTS, FAILED_STARTS = 0.05, 0.02
"""Shares of all starts."""
WORKERS_PER_NODE = 8
ROAD_S = 0.002
"""A call, or an answer, is on its way for so long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Cluster:
    """What befalls the workers."""

    workers: int
    deaths: int = 0
    """Processes that die, each at a moment of its own."""
    lost_nodes: int = 0
    within_s: float = 3600.0
    """Of the deaths and losses."""
    calm: bool = False
    """All workers are alike, start at once and never fail."""


@dataclass(slots=True, eq=False)
class Simulated:
    """A worker that renders the first of its leases, image after image."""

    number: int
    node: str
    work_per_s: float
    leases: dict[int, pa.Table] = field(default_factory=dict)
    began_s: float = 0.0
    """The first lease."""
    committed: int = 0
    """Images of it."""
    drawn: int = 0
    work: float = 0.0
    ready_at_s: float | None = None
    stopping: bool = False

    @property
    def lease(self) -> int | None:
        return next(iter(self.leases), None)

    def image_s(self) -> float:
        """How long an image of the first lease takes."""
        assert self.lease is not None
        return image_work(self.leases[self.lease]) / self.work_per_s


def image_work(lease: pa.Table) -> float:
    """Megapixel-evaluations of each image of a lease: all have the same steps here."""
    pixels = lease["width"][0].as_py() * lease["height"][0].as_py()
    return float(lease["evaluations"][0].as_py() * pixels / 1e6)


class SimulatedCrew:
    """A ``Crew`` whose time goes on as soon as the driver waits."""

    def __init__(self, cluster: Cluster, drawn: random.Random) -> None:
        self._cluster, self._drawn = cluster, drawn
        self.now_s = 0.0
        self.driver_s = 0.0
        """CPU of the thread outside this class."""
        self._left_at_s = time.thread_time()
        self._agenda: list[tuple[float, int, Callable[[], None]]] = []
        self._order = count()
        self._told: list[tuple[int, Event]] = []
        self._workers: dict[int, Simulated] = {}
        self._numbers = count(1)
        self.able_work = 0.0
        """What workers that are gone could have done."""
        self.told = self.died = self.failed_starts = self.rendered = 0
        self.keys: dict[int, list[tuple[int, int]]] = {}
        """Image sizes of the leases of each worker, in order."""
        self._tell_s = max(TELL_S, TELL_S_PER_WORKER * cluster.workers)
        for _ in range(cluster.deaths):
            self._at(drawn.uniform(60.0, cluster.within_s), self._kill_one)
        for _ in range(cluster.lost_nodes):
            self._at(drawn.uniform(60.0, cluster.within_s), self._lose_node)

    def clock(self) -> float:
        """Return pretended seconds, with what the driver has computed since the last call of ``events``."""
        return self.now_s + time.thread_time() - self._left_at_s

    def start(self) -> int:
        number, alike = next(self._numbers), self._cluster.calm
        speed = MEGAPIXEL_EVALUATIONS_PER_S * (1.0 if alike else self._drawn.uniform(*SPEEDS))
        worker = Simulated(number=number, node=f"{number // WORKERS_PER_NODE:032x}", work_per_s=speed)
        self._workers[number] = worker
        begun = Begun(node_id=worker.node, process_id=f"{number:032x}", journal="")
        self._after(1.0, worker, lambda: self._tell(worker, begun))
        slow = not alike and self._drawn.random() < SLOW_STARTS
        loaded_s = 1.0 if alike else self._drawn.uniform(*(SLOW_START_S if slow else START_S))
        fails = not alike and self._drawn.random() < FAILED_STARTS
        self._after(1.0 + loaded_s, worker, lambda: self._fail(worker) if fails else self._get_ready(worker))
        return number

    def lease(self, worker: int, lease: int, tasks: pa.Table) -> None:
        if one := self._workers.get(worker):
            self.keys.setdefault(worker, []).append((tasks["width"][0].as_py(), tasks["height"][0].as_py()))
            self._after(ROAD_S, one, lambda: self._receive(one, lease, tasks))

    def take_back(self, worker: int, lease: int) -> None:
        if one := self._workers.get(worker):
            self._after(ROAD_S, one, lambda: self._give_back(one, lease))

    def stop(self, worker: int) -> None:
        raise AssertionError("nobody stops this launch, and no node drains")

    def end(self, workers: Iterable[int]) -> None:
        for number in tuple(workers):
            if number in self._workers:
                self._remove(self._workers[number])

    def leaving(self) -> Iterable[int]:
        return ()

    def events(self, timeout_s: float) -> Sequence[tuple[int, Event]]:
        computed_s = time.thread_time() - self._left_at_s
        self.driver_s += computed_s
        self.now_s += computed_s
        until_s = self.now_s + timeout_s
        while not self._told and self._agenda and self._agenda[0][0] <= until_s:
            self.now_s = max(self.now_s, self._agenda[0][0])
            while self._agenda and self._agenda[0][0] <= self.now_s:
                heapq.heappop(self._agenda)[2]()
        if not self._told:
            self.now_s = until_s
        told, self._told = self._told, []
        self.told += len(told)
        self._left_at_s = time.thread_time()
        return told

    def _at(self, at_s: float, happens: Callable[[], None]) -> None:
        heapq.heappush(self._agenda, (at_s, next(self._order), happens))

    def _after(self, pause_s: float, worker: Simulated, happens: Callable[[], None]) -> None:
        """Have something happen unless the worker is gone by then."""
        self._at(self.now_s + pause_s, lambda: happens() if worker.number in self._workers else None)

    def _tell(self, worker: Simulated, event: Event) -> None:
        self._at(self.now_s + ROAD_S, lambda: self._told.append((worker.number, event)))

    def _get_ready(self, worker: Simulated) -> None:
        worker.ready_at_s = self.now_s
        self._tell(worker, Ready())
        self._after(self._tell_s, worker, lambda: self._tell_of_work(worker))

    def _fail(self, worker: Simulated) -> None:
        self.failed_starts += 1
        self._tell(worker, GaveUp("start", JobBrokenError("no")))

    def _tell_of_work(self, worker: Simulated) -> None:
        self._tell(worker, Working(Drawn(images=worker.drawn, engine=_counters(worker))))
        self._after(self._tell_s, worker, lambda: self._tell_of_work(worker))

    def _receive(self, worker: Simulated, lease: int, tasks: pa.Table) -> None:
        worker.leases[lease] = tasks
        if len(worker.leases) == 1:
            self._begin(worker)

    def _begin(self, worker: Simulated) -> None:
        lease = worker.lease
        if lease is None:
            return
        worker.began_s, worker.committed = self.now_s, 0
        whole_s, commit_s = worker.leases[lease].num_rows * worker.image_s(), COMMIT_S
        while commit_s < whole_s:
            self._after(commit_s, worker, lambda: self._commit(worker, lease))
            commit_s += COMMIT_S
        self._after(whole_s, worker, lambda: self._finish(worker, lease))

    def _commit(self, worker: Simulated, lease: int) -> None:
        done = self._done(worker)
        tasks = worker.leases[lease].slice(worker.committed, done - worker.committed)
        if tasks.num_rows:
            worker.drawn += tasks.num_rows
            worker.work += tasks.num_rows * image_work(tasks)
            worker.committed = done
            self.rendered += tasks.num_rows
            self._tell(worker, Committed(lease, outcomes(tasks, worker)))

    def _finish(self, worker: Simulated, lease: int) -> None:
        self._commit(worker, lease)
        del worker.leases[lease]
        self._tell(worker, Ended(lease))
        self._begin(worker)

    def _done(self, worker: Simulated) -> int:
        assert worker.lease is not None
        images: int = worker.leases[worker.lease].num_rows
        return min(images, int((self.now_s - worker.began_s) / worker.image_s() + 1e-6))

    def _give_back(self, worker: Simulated, lease: int) -> None:
        if lease in worker.leases and worker.lease != lease:
            del worker.leases[lease]
            self._tell(worker, Ended(lease))

    def _kill_one(self) -> None:
        able = [worker for worker in self._workers.values() if worker.ready_at_s is not None]
        if able:
            self._die(self._drawn.choice(able), lost_node=False)

    def _lose_node(self) -> None:
        nodes = sorted({worker.node for worker in self._workers.values()})
        gone = self._drawn.choice(nodes) if nodes else ""
        for worker in [worker for worker in self._workers.values() if worker.node == gone]:
            self._die(worker, lost_node=True)

    def _die(self, worker: Simulated, *, lost_node: bool) -> None:
        self.died += 1
        ids = worker.leases[worker.lease]["task_id"].to_pylist() if worker.lease is not None else []
        done = self._done(worker) if ids else 0
        self.rendered += done - worker.committed if ids else 0
        in_flight = frozenset() if lost_node else frozenset(ids[done : done + SLOTS])
        self._tell(worker, Died(reason="killed", lost_node=lost_node, in_flight=in_flight))
        self._remove(worker)

    def _remove(self, worker: Simulated) -> None:
        del self._workers[worker.number]
        if worker.ready_at_s is not None:
            self.able_work += worker.work_per_s * (self.now_s - worker.ready_at_s)


def _counters(worker: Simulated) -> EngineCounters:
    return EngineCounters(megapixel_evaluations=worker.work, denoise_s=worker.work / worker.work_per_s)


def outcomes(tasks: pa.Table, worker: Simulated) -> pa.Table:
    """Return what a worker tells of images that it has committed."""
    ids = [task_id.hex() for task_id in tasks["task_id"].to_pylist()]
    none = {name: pa.nulls(len(ids), METADATA_SCHEMA.field(name).type) for name in METADATA_SCHEMA.names}
    known = {"task_id": pa.array(ids), "status": pa.repeat("ok", len(ids)), "verdict": pa.repeat("ok", len(ids))}
    teller = Teller(worker=f"worker {worker.number}", model_load=f"{worker.number:032x}")
    return teller.told(pa.table(none | known), tasks, Worked(engine=_counters(worker)))
