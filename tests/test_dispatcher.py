"""Which worker renders what, by the product's dispatcher; the workers are pretended, and so is the time."""

from collections import Counter, deque
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Any

import pyarrow as pa
import pytest

from pipeline.distributed.dispatcher import GRACE_S, CrewSize, Dispatcher
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
from pipeline.distributed.leases import NODES_BEFORE_ALONE
from pipeline.distributed.limits import MOST_DEATHS
from pipeline.distributed.report import Drawn
from pipeline.errors import JobBrokenError, ModelError
from pipeline.rendering.counters import EngineCounters


def tasks(*numbers: int, width: int = 64) -> pa.Table:
    ids = pa.array([number.to_bytes(16, "big") for number in numbers], pa.binary(16))
    return pa.table({"task_id": ids, "width": [width] * len(numbers), "height": [64] * len(numbers)})


def numbers_of(table: pa.Table) -> list[int]:
    return [int.from_bytes(task_id, "big") for task_id in table["task_id"].to_pylist()]


def outcomes_of(table: pa.Table) -> pa.Table:
    return pa.table({"task_id": [task_id.hex() for task_id in table["task_id"].to_pylist()]})


class Plan:
    def __init__(self, leases: Iterable[pa.Table]) -> None:
        self._leases = deque(leases)

    @property
    def over(self) -> bool:
        return not self._leases

    def next(self) -> pa.Table | None:
        return self._leases.popleft() if self._leases else None


@dataclass(eq=False)
class Pretended:
    """A worker that renders one task a second of its first lease, and commits at the end of a lease."""

    node: str
    leases: dict[int, pa.Table] = field(default_factory=dict)
    done: int = 0
    """Tasks of the first lease."""
    stopping: bool = False
    parts: tuple[str, ...] = ()


class Crew:
    """Workers that die of poisoned tasks; ``on`` are things that happen at a second."""

    def __init__(
        self, poison: Iterable[int] = (), slots: int = 2, on: dict[float, Callable[[], Any]] | None = None
    ) -> None:
        self.now_s, self.poison, self.slots, self.on = 0.0, set(poison), slots, dict(on or {})
        self.workers: dict[int, Pretended] = {}
        self.given: list[tuple[int, list[int]]] = []
        self.started = self.ended = 0
        self.told: deque[tuple[int, Event]] = deque()
        self.gone: set[str] = set()
        self.begins: Callable[[int], Iterator[Event]] = lambda _: iter([Ready()])

    def clock(self) -> float:
        return self.now_s

    def start(self) -> int:
        self.started += 1
        worker = self.workers[self.started] = Pretended(node=f"node{self.started}")
        self._tell(self.started, Begun(node_id=worker.node, process_id=f"{self.started:032x}", journal=""))
        for event in self.begins(self.started):
            self._tell(self.started, event)
        return self.started

    def lease(self, worker: int, lease: int, tasks: pa.Table) -> None:
        self.given.append((worker, numbers_of(tasks)))
        if worker in self.workers:
            self.workers[worker].leases[lease] = tasks

    def take_back(self, worker: int, lease: int) -> None:
        if worker in self.workers and lease != next(iter(self.workers[worker].leases), None):
            del self.workers[worker].leases[lease]
            self._tell(worker, Ended(lease))

    def stop(self, worker: int) -> None:
        if worker in self.workers:
            self.workers[worker].stopping = True

    def end(self, workers: Iterable[int]) -> None:
        for worker in tuple(workers):
            self.ended += self.workers.pop(worker, None) is not None

    def leaving(self) -> Iterable[int]:
        return [number for number, worker in self.workers.items() if worker.node in self.gone]

    def events(self, timeout_s: float) -> Sequence[tuple[int, Event]]:
        if not self.told:
            self.now_s += 1
            for at_s in sorted(at_s for at_s in self.on if at_s <= self.now_s):
                self.on.pop(at_s)()
            for number, worker in tuple(self.workers.items()):
                self._second(number, worker)
        told = [*self.told]
        self.told.clear()
        return told

    def kill(self, number: int, **how: Any) -> None:
        worker = self.workers.pop(number)
        first = next(iter(worker.leases.values()), None)
        ids = first["task_id"].to_pylist()[worker.done : worker.done + self.slots] if first is not None else []
        told = {"in_flight": frozenset(ids), **how} if "lost_node" not in how else how
        self._tell(number, Died(reason="killed", parts=worker.parts, **told))

    def _second(self, number: int, worker: Pretended) -> None:
        if not worker.leases:
            if worker.stopping:
                self._tell(number, Idle())
            return
        lease, table = next(iter(worker.leases.items()))
        in_flight = numbers_of(table)[worker.done : worker.done + self.slots]
        if self.poison & {*in_flight}:
            self.kill(number)
            return
        worker.done += 1
        if worker.done >= table.num_rows or worker.stopping:
            self._tell(number, Committed(lease, outcomes_of(table.slice(0, worker.done))))
            self._tell(number, Ended(lease))
            del worker.leases[lease]
            worker.done = 0

    def _tell(self, number: int, event: Event) -> None:
        self.told.append((number, event))


class Listener:
    def __init__(self) -> None:
        self.rendered: Counter[int] = Counter()
        self.condemned: list[int] = []
        self.said: list[str] = []
        self.lost: list[str] = []
        self.drawn: dict[str, tuple[Drawn, int]] = {}
        self.parts: dict[str, list[int]] = {}

    def committed(self, outcomes: pa.Table) -> None:
        self.rendered.update(int(task_id, 16) for task_id in outcomes["task_id"].to_pylist())

    def found(self, parts: Sequence[str], tasks: Sequence[pa.Table]) -> pa.Table | None:
        there = {number for part in parts for number in self.parts.get(part, [])}
        kept = [number for table in tasks for number in numbers_of(table) if number in there]
        return outcomes_of(globals()["tasks"](*kept)) if kept else None

    def quarantined(self, task: pa.Table) -> None:
        self.condemned += numbers_of(task)

    def working(self, process_id: str, drawn: Drawn, ready: int) -> None:
        self.drawn[process_id] = drawn, ready

    def gone(self, process_id: str) -> None:
        self.lost.append(process_id)

    def says(self, sentence: str) -> None:
        self.said.append(sentence)


def dispatched(
    crew: Crew, leases: Sequence[pa.Table], most: int = 2, slots: int = 1, window: int = 64, failed_starts: int = 3
) -> tuple[Dispatcher, Listener]:
    size = CrewSize(most=most, slots=slots, most_failed_starts=failed_starts, window=window)
    listener, images = Listener(), sum(lease.num_rows for lease in leases)
    return Dispatcher(crew, Plan(leases), size, listener, images=images, clock=crew.clock), listener


TEN = [tasks(*range(10 * n, 10 * n + 10)) for n in range(10)]
HUNDRED = Counter(range(100))


def test_everything_is_rendered_once_and_workers_are_given_back() -> None:
    crew = Crew()
    dispatcher, listener = dispatched(crew, TEN)
    dispatcher.run()
    assert listener.rendered == HUNDRED
    assert crew.started == crew.ended == 2
    assert not crew.workers
    assert crew.now_s <= 60, "two workers at a task a second"


def test_there_are_no_more_workers_than_the_work_can_use() -> None:
    crew = Crew()
    dispatcher, listener = dispatched(crew, TEN[:2], most=50, slots=8)
    dispatcher.run()
    assert (crew.started, listener.rendered.total()) == (3, 20)


def test_a_worker_that_waits_for_room_is_withdrawn_when_the_work_can_use_fewer() -> None:
    crew = Crew()
    dispatcher, listener = dispatched(crew, [tasks(*range(at, at + 5)) for at in range(0, 20, 5)], most=3, slots=5)
    start, waiting = crew.start, list[int]()

    def third_waits() -> int:
        number = start()
        if number == 3:
            waiting.append(number)
            crew.told = deque(told for told in crew.told if told[0] != number)
        return number

    crew.start = third_waits  # type: ignore[method-assign]
    withdrawn: list[float] = []
    end = crew.end

    def noted(workers: Iterable[int]) -> None:
        listed = [*workers]
        withdrawn.extend(crew.now_s for number in listed if number in waiting and listener.rendered.total() < 20)
        end(listed)

    crew.end = noted  # type: ignore[method-assign]
    dispatcher.run()
    assert listener.rendered.total() == 20
    assert len(withdrawn) == 1, "before everything is rendered"


def test_workers_keep_to_one_size_while_there_is_work_of_it() -> None:
    crew = Crew()
    leases = [tasks(*range(10 * n, 10 * n + 10), width=64 * (1 + n % 3)) for n in range(30)]
    dispatcher, listener = dispatched(crew, leases, most=3)
    dispatcher.run()
    assert listener.rendered.total() == 300
    assert dispatcher.changes <= 3


def test_what_an_idle_worker_could_render_is_taken_back() -> None:
    """One worker is ready long before the other, and has both leases."""
    crew = Crew()
    crew.begins = lambda number: iter([Ready()] if number == 1 else [])
    crew.on = {5.0: lambda: crew._tell(2, Ready())}
    dispatcher, listener = dispatched(crew, TEN[:2])
    dispatcher.run()
    assert listener.rendered.total() == 20
    assert crew.now_s <= 17
    assert [worker for worker, _ in crew.given] == [1, 1, 2]


def test_a_death_costs_what_was_not_committed() -> None:
    crew = Crew()
    crew.on = {15.0: lambda: crew.kill(1)}
    dispatcher, listener = dispatched(crew, TEN)
    dispatcher.run()
    assert listener.rendered == HUNDRED
    assert (dispatcher.deaths, crew.started, listener.condemned) == (1, 3, [])
    assert listener.lost == [f"{1:032x}"]


def test_what_a_dead_worker_committed_and_did_not_tell_is_not_rendered_again() -> None:
    crew = Crew()
    dispatcher, listener = dispatched(crew, TEN[:2], most=1)

    def dies() -> None:
        crew.workers[1].parts = ("a part", "another")
        listener.parts = {"a part": [0, 1, 2]}
        crew.kill(1)

    crew.on = {5.0: dies}
    dispatcher.run()
    assert listener.rendered == Counter(range(20))
    assert sorted(given for worker, given in crew.given if worker == 2) == [[*range(3, 10)], [*range(10, 20)]]


def test_a_poisoned_task_costs_three_processes_and_no_innocent_task() -> None:
    crew = Crew(poison=[33], slots=4)
    dispatcher, listener = dispatched(crew, TEN, slots=4)
    dispatcher.run()
    assert listener.condemned == [33]
    assert listener.rendered == HUNDRED - Counter([33])
    assert dispatcher.deaths == 3
    alone = [given for _, given in crew.given if len(given) == 1]
    assert 1 <= len(alone) <= 4, "suspects are only those that were in flight at both deaths"


def test_several_poisoned_tasks_are_found_beside_work_that_goes_on() -> None:
    crew = Crew(poison=[5, 44, 77], slots=3)
    dispatcher, listener = dispatched(crew, TEN, most=3, slots=3)
    dispatcher.run()
    assert sorted(listener.condemned) == [5, 44, 77]
    assert listener.rendered == HUNDRED - Counter([5, 44, 77])
    assert dispatcher.deaths == 9


def test_a_worker_with_a_suspect_has_nothing_else() -> None:
    crew = Crew(poison=[3], slots=4)
    held: list[int] = []
    give = crew.lease

    def watched(worker: int, number: int, tasks: pa.Table) -> None:
        give(worker, number, tasks)
        if tasks.num_rows == 1:
            held.append(len(crew.workers[worker].leases))

    crew.lease = watched  # type: ignore[assignment,method-assign]
    dispatched(crew, TEN, most=2, slots=4)[0].run()
    assert set(held) == {1}


def test_too_many_deaths_end_the_launch() -> None:
    crew = Crew(poison=range(0, 1000, 5))
    dispatcher, _ = dispatched(crew, [tasks(*range(10 * n, 10 * n + 10)) for n in range(100)], most=4)
    with pytest.raises(JobBrokenError, match=rf"{MOST_DEATHS + 1} worker processes died within 10 minutes"):
        dispatcher.run()
    assert not crew.workers


def test_nodes_that_go_blame_nobody() -> None:
    crew = Crew()
    crew.on = {at: (lambda: crew.kill(min(crew.workers), lost_node=True)) for at in (4.0, 8.0, 12.0)}
    dispatcher, listener = dispatched(crew, TEN)
    dispatcher.run()
    assert listener.rendered == HUNDRED
    assert (dispatcher.deaths, listener.condemned) == (0, [])


def test_a_task_that_takes_node_after_node_along_is_found() -> None:
    """Its memory has the container killed, and the worker's journal is lost with it."""
    crew = Crew(poison=[17])
    kill = crew.kill
    crew.kill = lambda number, **_: kill(number, lost_node=True)  # type: ignore[method-assign]
    dispatcher, listener = dispatched(crew, TEN)
    dispatcher.run()
    assert listener.condemned == [17]
    assert listener.rendered == HUNDRED - Counter([17])
    assert crew.started <= 2 + 2 * NODES_BEFORE_ALONE


def test_a_worker_on_a_node_that_leaves_commits_what_it_has_begun_and_others_the_rest() -> None:
    crew = Crew()
    crew.on = {3.0: lambda: crew.gone.add("node1")}
    dispatcher, listener = dispatched(crew, TEN)
    dispatcher.run()
    assert listener.rendered == HUNDRED
    assert len([1 for worker, _ in crew.given if worker == 1]) == 2, "nothing more for one that leaves"


def test_a_launch_that_stops_commits_what_has_begun() -> None:
    crew = Crew()
    dispatcher, listener = dispatched(crew, TEN)
    crew.on = {5.0: dispatcher.stop}
    dispatcher.run()
    assert 2 <= listener.rendered.total() <= 20
    assert crew.now_s <= 10
    assert not crew.workers


def test_workers_that_do_not_stop_are_not_waited_for_for_ever() -> None:
    crew = Crew()
    crew.stop = lambda worker: None  # type: ignore[method-assign]
    dispatcher, _ = dispatched(crew, [tasks(*range(100000))], most=1)
    crew.on = {5.0: dispatcher.stop}
    dispatcher.run()
    assert crew.now_s == pytest.approx(5 + GRACE_S, abs=3)


@pytest.mark.parametrize("ready", [True, False])
def test_a_launch_that_is_stopped_at_once_begins_nothing(ready: bool) -> None:
    crew = Crew()
    crew.begins = lambda _: iter([Ready()] if ready else [])
    dispatcher, listener = dispatched(crew, TEN)
    dispatcher.stop()
    dispatcher.run()
    assert not crew.given
    assert not listener.rendered


def failing(times: int, why: Any = "start") -> Callable[[int], Iterator[Event]]:
    error = ModelError("does not fit") if why == "room" else JobBrokenError("no memory")

    def begins(number: int) -> Iterator[Event]:
        return iter([Waiting("busy"), GaveUp(why, error)] if number <= times else [Ready()])

    return begins


def test_workers_that_cannot_begin_are_replaced_after_pauses() -> None:
    crew = Crew()
    crew.begins = failing(3)
    dispatcher, listener = dispatched(crew, TEN[:1], most=1)
    dispatcher.run()
    assert listener.rendered.total() == 10
    assert crew.now_s >= 5 + 10 + 20
    assert listener.said == [f"warning: a worker on node node{n} cannot work and tries again: busy" for n in (1, 2, 3)]


def test_people_are_told_once_for_each_node_why_its_workers_wait() -> None:
    crew = Crew()
    crew.begins = lambda _: iter([Waiting("busy"), Waiting("still busy"), Ready()])
    dispatcher, listener = dispatched(crew, TEN)
    dispatcher.run()
    assert len(listener.said) == 2


def test_one_node_of_several_without_room_ends_nothing() -> None:
    crew = Crew()
    crew.begins = failing(3, "room")
    start = crew.start

    def on_one_node() -> int:
        number = start()
        if number <= 3:
            crew.workers[number].node = "small"
            crew.told[0] = number, Begun(node_id="small", process_id=f"{number:032x}", journal="")
        return number

    crew.start = on_one_node  # type: ignore[method-assign]
    dispatcher, listener = dispatched(crew, TEN[:1], most=1)
    dispatcher.run()
    assert listener.rendered.total() == 10


@pytest.mark.parametrize("why", ["start", "held"])
def test_too_many_workers_in_a_row_that_cannot_begin_end_the_launch(why: str) -> None:
    crew = Crew()
    crew.begins = failing(10**9, why)
    dispatcher, _ = dispatched(crew, TEN[:1], most=1)
    with pytest.raises(JobBrokenError, match="too many workers in a row could not begin, the last of them: no memory"):
        dispatcher.run()
    assert crew.now_s > 600


def test_devices_that_others_hold_for_good_end_the_launch_though_the_model_loads() -> None:
    crew = Crew()
    crew.begins = lambda _: iter([Ready(), GaveUp("held", JobBrokenError("no memory"))])
    dispatcher, listener = dispatched(crew, TEN[:1], most=1)
    with pytest.raises(JobBrokenError, match="could not begin, the last of them: no memory"):
        dispatcher.run()
    assert not listener.rendered


def test_a_model_without_room_on_two_devices_ends_the_launch() -> None:
    crew = Crew()
    crew.begins = failing(10**9, "room")
    with pytest.raises(ModelError, match="does not fit"):
        dispatched(crew, TEN[:1], most=1)[0].run()
    assert crew.started == 2


def test_what_no_other_worker_would_do_better_ends_the_launch() -> None:
    crew = Crew()
    crew.begins = lambda _: iter([Broken(ModelError("other files"))])
    with pytest.raises(ModelError, match="other files"):
        dispatched(crew, TEN)[0].run()
    assert not crew.workers


def test_processes_that_die_while_they_begin_are_failed_starts_and_blame_no_task() -> None:
    crew = Crew()
    crew.begins = lambda number: iter([Died(reason="killed")] if number < 3 else [Ready()])
    dispatcher, listener = dispatched(crew, TEN[:1], most=1)
    dispatcher.run()
    assert (dispatcher.deaths, listener.rendered.total()) == (0, 10)
    assert crew.now_s >= 5 + 10


def test_what_workers_draw_is_told() -> None:
    crew = Crew()
    crew.begins = lambda _: iter([Ready(), Working(Drawn(images=3, engine=EngineCounters()))])
    dispatcher, listener = dispatched(crew, TEN)
    dispatcher.run()
    assert {(drawn.images, ready) for drawn, ready in listener.drawn.values()} <= {(3, 1), (3, 2)}
    assert len(listener.drawn) == 2
