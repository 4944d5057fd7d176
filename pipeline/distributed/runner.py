"""Runs shards through an engine and commits them; knows nothing of Ray.

The engine has one thread. Encoding, hashing, uploading and committing happen in a pool beside it, so that the device
never waits for them, and the next shard's tasks fill the batch while the last images of one are still under way.
"""

import queue
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor, wait
from dataclasses import fields
from datetime import UTC, datetime
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.output.part import PartWriter
from pipeline.output.schema import METADATA_SCHEMA
from pipeline.recipe import Recipe, RenderTask
from pipeline.rendering.results import Outcome

if TYPE_CHECKING:
    from pipeline.rendering.renderer import Renderer

_STORE_THREADS = 8
MAX_UNSTORED = 64
"""Pictures that may wait to be encoded and stored; then the engine waits, so that memory has a bound."""


class ShardRunner:
    """Owns an engine and its thread. ``submit`` shards from any thread; each future gives the shard's metadata."""

    def __init__(
        self,
        engine: "Renderer",
        open_part: Callable[[pa.Table], PartWriter],
        judge: Callable[[Outcome], Outcome] = lambda outcome: outcome,
    ) -> None:
        """``judge`` looks at every outcome before it is stored, in the threads beside the engine."""
        self._engine, self._open_part, self._judge = engine, open_part, judge
        self._pool = ThreadPoolExecutor(_STORE_THREADS, "store")
        self._waiting: queue.SimpleQueue[_Shard | None] = queue.SimpleQueue()
        self._rendering: dict[str, list[_Shard]] = {}
        """Who waits for a task, by its id: two shards may hold the same one."""
        self._open: set[_Shard] = set()
        self._admissions: set[Future[None]] = set()
        self._stopping = False
        self._drawn = 0
        self._stepped_at: float | None = None
        self._unstored = threading.BoundedSemaphore(MAX_UNSTORED)
        self._thread = threading.Thread(target=self._run, name="engine", daemon=True)
        self._thread.start()

    def submit(self, shard: pa.Table) -> "Future[pa.Table]":
        """Render and commit a shard. The future raises what the store or the device raised."""
        done: Future[pa.Table] = Future()
        admission = self._pool.submit(self._admit, shard, done)
        self._admissions.add(admission)
        admission.add_done_callback(self._admissions.discard)
        return done

    def stop(self) -> None:
        """Begin no further task: open shards are committed as far as they are begun, those to come not at all."""
        self._stopping = True

    @property
    def drawn(self) -> int:
        """Outcomes that the engine has given so far, for each shard that waits for one; not all are committed."""
        return self._drawn

    @property
    def step_s(self) -> float:
        """How long the engine has been in its present step; 0 between steps."""
        began = self._stepped_at
        return 0.0 if began is None else time.monotonic() - began

    def close(self) -> None:
        """Finish what was submitted and stop."""
        wait(tuple(self._admissions))
        self._waiting.put(None)
        self._thread.join()
        self._pool.shutdown()

    def _admit(self, shard: pa.Table, done: "Future[pa.Table]") -> None:
        try:
            part = self._open_part(shard)
            committed = part.committed()  # Ray runs a finished task again when its answer was lost
            tasks = list(tasks_of(shard))
        except BaseException as error:  # noqa: BLE001  # whatever it is belongs to who waits for the shard
            done.set_exception(error)
            return
        if committed is not None:
            done.set_result(committed)
        else:
            self._waiting.put(_Shard(tasks, part, done, self._judge))

    def _run(self) -> None:
        try:
            while self._take_waiting():
                outcomes = self._step()
                for outcome in outcomes:
                    ready_at = datetime.now(UTC)
                    for shard in self._rendering.pop(outcome.task.task_id):
                        self._drawn += 1
                        self._unstored.acquire()
                        self._pool.submit(self._store, shard, outcome, ready_at)
        except BaseException as error:  # noqa: BLE001  # the engine is broken: everyone who waits must learn it
            self._fail_all(error)

    def _step(self) -> list[Outcome]:
        self._stepped_at = time.monotonic()
        try:
            return self._engine.step()
        finally:
            self._stepped_at = None

    def _store(self, shard: "_Shard", outcome: Outcome, ready_at: datetime) -> None:
        try:
            if shard.store(outcome, ready_at):
                self._open.discard(shard)
        finally:
            self._unstored.release()

    def _take_waiting(self) -> bool:
        """Give the engine what is waiting; blocks while there is nothing to do. False when closed and done."""
        while True:
            if self._stopping:
                self._drop(self._engine.drop_waiting())
            try:
                shard = self._waiting.get(block=not self._engine.busy)
            except queue.Empty:
                return True
            if shard is None:
                self._waiting.put(None)
                return self._engine.busy
            self._open.add(shard)
            if self._stopping:
                self._pool.submit(self._dropped, shard, len(shard.tasks))
                continue
            fresh = [task for task in shard.tasks if task.task_id not in self._rendering]
            for task in shard.tasks:
                self._rendering.setdefault(task.task_id, []).append(shard)
            self._engine.add(fresh, grouped=True)

    def _drop(self, tasks: list[RenderTask]) -> None:
        waiting = Counter(shard for task in tasks for shard in self._rendering.pop(task.task_id))
        for shard, number in waiting.items():
            self._pool.submit(self._dropped, shard, number)

    def _dropped(self, shard: "_Shard", number: int) -> None:
        if shard.drop(number):
            self._open.discard(shard)

    def _fail_all(self, error: BaseException) -> None:
        for shard in tuple(self._open):
            shard.fail(error)
        while True:
            shard_or_end = self._waiting.get()
            if shard_or_end is None:
                return
            shard_or_end.fail(error)


class _Shard:
    """A shard being rendered: counts its outcomes down and commits after the last."""

    def __init__(
        self,
        tasks: list[RenderTask],
        part: PartWriter,
        done: "Future[pa.Table]",
        judge: Callable[[Outcome], Outcome],
    ) -> None:
        self.tasks = tasks
        self._part, self._done, self._judge = part, done, judge
        self._missing = len(tasks)
        self._stored = 0
        self._lock = threading.Lock()

    def fail(self, error: BaseException) -> None:
        with self._lock:
            if not self._done.done():
                self._done.set_exception(error)

    def store(self, outcome: Outcome, ready_at: datetime) -> bool:
        """Store one outcome; returns whether that ended the shard, well or not."""
        try:
            self._part.put(self._judge(outcome), ready_at)
            return self.drop(1, stored=1)
        except BaseException as error:  # noqa: BLE001  # whatever it is belongs to who waits for the shard
            self.fail(error)
            return True

    def drop(self, number: int, *, stored: int = 0) -> bool:
        """Wait for so many outcomes less, and commit when none is missing; returns whether that ended the shard."""
        with self._lock:
            self._missing -= number
            self._stored += stored
            last = self._missing == 0
        if last:
            try:
                done = self._part.commit() if self._stored else METADATA_SCHEMA.empty_table()
                self._done.set_result(done)
            except BaseException as error:  # noqa: BLE001  # whatever it is belongs to who waits for the shard
                self.fail(error)
        return last


def tasks_of(shard: pa.Table) -> Iterator[RenderTask]:
    """The tasks of a planned shard, in order."""
    for row in shard.select(["task_id", *(field.name for field in fields(Recipe))]).to_pylist():
        yield RenderTask(task_id=row.pop("task_id").hex(), recipe=Recipe(**row))
