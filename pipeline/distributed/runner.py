"""Renders leases with an engine and commits them; knows nothing of Ray.

The engine has one thread. Encoding, hashing, uploading and committing happen in a pool beside it, so that the device
never waits for them, and the next lease's tasks fill the batch while the last images of one are still under way.
"""

import threading
import time
from collections import Counter, deque
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import dataclass, fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.distributed.journal import Journal
from pipeline.output.part import PartWriter
from pipeline.output.schema import METADATA_SCHEMA
from pipeline.recipe import Recipe, RenderTask
from pipeline.rendering.results import Outcome

if TYPE_CHECKING:
    from pipeline.rendering.renderer import Renderer

_STORE_THREADS = 8
MAX_UNSTORED = 64
"""Pictures that may wait to be encoded and stored; then the engine waits, so that memory has a bound."""
MOST_WAITING = 64
"""While so many tasks wait in the engine, the next lease stays out of it, and can be taken back."""
COMMIT_S = 60.0
"""What is stored of a lease is committed so often, so that a killed worker loses a minute."""
PACKED_IMAGES, PACKED_BYTES, PACKED_S = 64, 64 * 2**20, 600.0
"""A part whose images are in one object is committed after ``COMMIT_S`` only with so many images or bytes, or after so
long: objects of few images would be slow to read."""


class LeaseRunner:
    """Owns an engine and its thread. ``submit`` leases from any thread; each future gives a lease's metadata."""

    def __init__(
        self,
        engine: "Renderer",
        open_part: Callable[[pa.Table], PartWriter],
        judge: Callable[[Outcome], Outcome] = lambda outcome: outcome,
        journal: Journal | None = None,
    ) -> None:
        """``judge`` looks at every outcome before it is stored, in the threads beside the engine."""
        self._engine, self._open_part, self._judge, self._journal = engine, open_part, judge, journal
        self._pool = ThreadPoolExecutor(_STORE_THREADS, "store")
        self._changed = threading.Condition()
        self._held: deque[_Lease] = deque()
        """They are not in the engine yet."""
        self._rendering: dict[str, list[_Lease]] = {}
        """Who waits for a task, by its id: two leases may hold the same one."""
        self._open: set[_Lease] = set()
        self._admissions: set[Future[None]] = set()
        self._stopping = self._closing = False
        self._broken: BaseException | None = None
        self._drawn = 0
        self._stepped_at: float | None = None
        self._unstored = threading.BoundedSemaphore(MAX_UNSTORED)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, tasks: pa.Table, on_commit: Callable[[pa.Table], None] = lambda _: None) -> "Future[pa.Table]":
        """Render and commit planned tasks; ``on_commit`` gets the metadata of each part when it is committed.

        The future gives the metadata of all parts, no row for a lease that was taken back, and raises what the store
        or the device raised.
        """
        lease = _Lease(tasks, on_commit, self)
        admission = self._pool.submit(self._admit, lease)
        self._admissions.add(admission)
        admission.add_done_callback(self._admissions.discard)
        return lease.done

    def take_back(self, done: "Future[pa.Table]") -> bool:
        """Give up the lease of a future if the engine has nothing of it yet; return whether that is so."""
        with self._changed:
            lease = next((lease for lease in self._held if lease.done is done), None)
            if lease is not None:
                self._held.remove(lease)
        if lease is None:
            return False
        done.set_result(METADATA_SCHEMA.empty_table())
        return True

    def stop(self) -> None:
        """Begin no further task: open leases are committed as far as they are begun, those to come not at all."""
        with self._changed:
            self._stopping = True
            self._changed.notify()

    @property
    def drawn(self) -> int:
        """Outcomes that the engine has given so far, for each lease that waits for one; not all are committed."""
        return self._drawn

    @property
    def step_s(self) -> float:
        """How long the engine has been in its present step; 0 between steps."""
        began = self._stepped_at
        return 0.0 if began is None else time.monotonic() - began

    def close(self) -> None:
        """Finish what was submitted and stop."""
        wait(tuple(self._admissions))
        with self._changed:
            self._closing = True
            self._changed.notify()
        self._thread.join()
        self._pool.shutdown()

    def open_part(self, tasks: pa.Table) -> PartWriter:
        """Open a part for outcomes of some of these tasks."""
        return self._open_part(tasks)

    def committing(self, part_id: str) -> None:
        """Note in the journal that a part is about to be committed."""
        if self._journal is not None:
            self._journal.part(part_id)

    def _admit(self, lease: "_Lease") -> None:
        try:
            committed = lease.begin()
        except BaseException as error:  # noqa: BLE001  # whatever it is belongs to who waits for the lease
            lease.fail(error)
            return
        if committed is not None:
            lease.done.set_result(committed)
            return
        with self._changed:
            if self._broken is None:
                self._held.append(lease)
                self._changed.notify()
                return
        lease.fail(self._broken)

    def _run(self) -> None:
        try:
            while self._take_leases():
                for outcome in self._step():
                    ready_at = datetime.now(UTC)
                    for lease in self._rendering.pop(outcome.task.task_id):
                        self._drawn += 1
                        self._unstored.acquire()
                        self._pool.submit(self._store, lease, outcome, ready_at)
        except BaseException as error:  # noqa: BLE001  # the engine is broken: everyone who waits must learn it
            self._fail_all(error)

    def _step(self) -> list[Outcome]:
        self._stepped_at = time.monotonic()
        try:
            return self._engine.step()
        finally:
            self._stepped_at = None

    def _store(self, lease: "_Lease", outcome: Outcome, ready_at: datetime) -> None:
        try:
            if lease.store(self._judge, outcome, ready_at):
                self._open.discard(lease)
        finally:
            if self._journal is not None:
                self._journal.done(bytes.fromhex(outcome.task.task_id))
            self._unstored.release()

    def _take_leases(self) -> bool:
        """Give the engine what is held; block while there is nothing to do. Return False when closed and done."""
        while True:
            if self._stopping:
                self._drop(self._engine.drop_waiting())
            with self._changed:
                while not (self._held or self._engine.busy or self._closing):
                    self._changed.wait()
                if not self._held:
                    return self._engine.busy
                if self._engine.waiting >= MOST_WAITING and not self._stopping:
                    return True
                lease = self._held.popleft()
                self._open.add(lease)
            if self._stopping:
                self._pool.submit(self._dropped, lease, len(lease.tasks))
                continue
            fresh = [task for task in lease.tasks if task.task_id not in self._rendering]
            for task in lease.tasks:
                self._rendering.setdefault(task.task_id, []).append(lease)
            self._engine.add(fresh, grouped=True)

    def _drop(self, tasks: list[RenderTask]) -> None:
        waiting = Counter(lease for task in tasks for lease in self._rendering.pop(task.task_id))
        for lease, number in waiting.items():
            self._pool.submit(self._dropped, lease, number)

    def _dropped(self, lease: "_Lease", number: int) -> None:
        if lease.drop(number):
            self._open.discard(lease)

    def _fail_all(self, error: BaseException) -> None:
        with self._changed:
            self._broken = error
            waiting = [*self._open, *self._held]
            self._held.clear()
        for lease in waiting:
            lease.fail(error)


@dataclass(slots=True, eq=False)
class _OpenPart:
    """Outcomes that are committed together."""

    writer: PartWriter
    began_s: float
    under_way: int = 0
    """Outcomes that some thread is storing."""
    stored: int = 0
    closed: bool = False
    """It takes no more outcomes."""

    @property
    def due(self) -> bool:
        """Whether what is stored shall be committed now."""
        age_s = time.monotonic() - self.began_s
        if age_s < COMMIT_S or not self.writer.packed:
            return age_s >= COMMIT_S
        return self.stored >= PACKED_IMAGES or self.writer.bytes >= PACKED_BYTES or age_s >= PACKED_S


class _Lease:
    """A lease being rendered: counts its outcomes down, and commits what is stored every minute and after the last."""

    def __init__(self, table: pa.Table, on_commit: Callable[[pa.Table], None], runner: LeaseRunner) -> None:
        self._table, self._on_commit, self._runner = table, on_commit, runner
        self.done: Future[pa.Table] = Future()
        self.tasks: list[RenderTask] = []
        self._missing = self._uncommitted = 0
        self._part: _OpenPart | None = None
        """The one that takes outcomes."""
        self._first_writer: PartWriter | None = None
        self._committed: list[pa.Table] = []
        self._lock = threading.Lock()

    def begin(self) -> pa.Table | None:
        """Read the tasks; return their metadata where exactly they were committed together before."""
        self._first_writer = self._runner.open_part(self._table)
        committed = self._first_writer.committed()  # whoever had this lease before may have died before it could tell
        self.tasks = list(tasks_of(self._table))
        self._missing = len(self.tasks)
        if committed is not None:
            self._on_commit(committed)
        return committed

    def fail(self, error: BaseException) -> None:
        """Let who waits know."""
        with self._lock:
            if not self.done.done():
                self.done.set_exception(error)

    def store(self, judge: Callable[[Outcome], Outcome], outcome: Outcome, ready_at: datetime) -> bool:
        """Store one outcome; return whether that ended the lease, well or not."""
        try:
            with self._lock:
                part = self._open()
                part.under_way += 1
            part.writer.put(judge(outcome), ready_at)
            return self._count(1, part)
        except BaseException as error:  # noqa: BLE001  # whatever it is belongs to who waits for the lease
            self.fail(error)
            return True

    def drop(self, number: int) -> bool:
        """Wait for so many outcomes less; return whether that ended the lease."""
        try:
            return self._count(number)
        except BaseException as error:  # noqa: BLE001  # whatever it is belongs to who waits for the lease
            self.fail(error)
            return True

    def _open(self) -> _OpenPart:
        """Return the part that takes outcomes; the lock is held."""
        if self._part is None:
            writer, self._first_writer = self._first_writer or self._runner.open_part(self._table), None
            self._part = _OpenPart(writer, time.monotonic())
            self._uncommitted += 1
        return self._part

    def _count(self, number: int, stored_in: _OpenPart | None = None) -> bool:
        """Count tasks as done; commit the parts that are complete; return whether the lease is."""
        with self._lock:
            self._missing -= number
            parts = dict.fromkeys([] if stored_in is None else [stored_in])
            if stored_in is not None:
                stored_in.under_way -= 1
                stored_in.stored += 1
            if self._part is not None and (self._missing == 0 or self._part.due):
                self._part.closed = True
                parts[self._part] = None
                self._part = None
            complete = [part for part in parts if part.closed and not part.under_way]
        for part in complete:
            rows = part.writer.commit(self._runner.committing)
            self._on_commit(rows)
            with self._lock:
                self._committed.append(rows)
                self._uncommitted -= 1
        with self._lock:
            over = self._missing == 0 and self._uncommitted == 0
            if over and not self.done.done():
                self.done.set_result(pa.concat_tables(self._committed or [METADATA_SCHEMA.empty_table()]))
        return over


def tasks_of(planned: pa.Table) -> Iterator[RenderTask]:
    """Yield planned tasks, in order."""
    for row in planned.select(["task_id", *(field.name for field in fields(Recipe))]).to_pylist():
        yield RenderTask(task_id=row.pop("task_id").hex(), recipe=Recipe(**row))
