"""Random lives of one output: launches that die anywhere, beside each other, wider, again; a dict knows the truth."""

import shutil
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from dataclasses import replace
from datetime import UTC, datetime
from functools import partial
from pathlib import Path
from typing import BinaryIO, Literal, get_args

import pyarrow as pa
import pytest
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, rule, run_state_machine_as_test

from pipeline.distributed.runner import LeaseRunner
from pipeline.errors import StoreUnavailableError
from pipeline.identity import Ids
from pipeline.output.finalize import finalize
from pipeline.output.index import load_index, part_keys
from pipeline.output.layout import FINALIZED_KEY, METADATA_KEY, Layout, Packing, object_of
from pipeline.output.mending import drop_damaged
from pipeline.output.orphans import delete_orphans
from pipeline.output.part import PartWriter, read_part
from pipeline.output.verify import verify
from pipeline.storage.base import ObjectStore
from pipeline.storage.local import LocalStore
from tests.faults.commit import false_alarms, image_is_sound, patch_segments, said
from tests.faults.mortal import HOWS, GoneError, How, MortalStore
from tests.faults.without_ray import Painter
from tests.test_output import commit, rendered
from tests.test_runner import FACTS, shard_of

Status = Literal["ok", "failed"]
SHARD = 2

Blow = tuple[int, How] | None
"""The operation at which a process is struck, and how; it may have fewer."""

tasks = st.sets(st.integers(0, 9), min_size=1, max_size=5)
deaths = st.tuples(st.integers(1, 12), st.sampled_from(HOWS))
blows = st.none() | deaths


class CommitMachine(RuleBasedStateMachine):
    """Tasks are numbers below a width that grows. Whatever was once committed has to stay."""

    def __init__(self) -> None:
        super().__init__()
        self.folder = tempfile.mkdtemp(prefix="darkroom-machine-")
        self.store = LocalStore(Path(self.folder))
        self.width, self.attempt = 3, 0
        self.committed: dict[int, Status] = {}
        """What the run is known to have."""
        self.tried: dict[int, set[Status]] = {}
        """What any writer may have committed, whether it heard so or not."""
        self.segments = patch_segments()
        self.segments.start()

    def teardown(self) -> None:
        self.launch(None, set())
        assert self.committed.keys() == set(range(self.width))
        self.segments.stop()
        shutil.rmtree(self.folder)

    @initialize(layout=st.sampled_from(get_args(Layout)))
    def begin(self, layout: Layout) -> None:
        self.facts = replace(FACTS, packing=Packing(layout=layout))

    @rule(numbers=tasks, failing=tasks, blow=blows)
    def submit(self, numbers: set[int], failing: set[int], blow: Blow) -> None:
        """A launch that does not know what others have committed."""
        self.write(numbers, failing, blow)

    @rule(blow=blows, failing=tasks)
    def launch(self, blow: Blow, failing: set[int]) -> None:
        """The same command again: what has no outcome is rendered, then the tables are written."""
        self.write(self.missing(), failing, blow)
        self.write_tables(None)

    @rule(blow=blows, failing=tasks)
    def retry_failed(self, blow: Blow, failing: set[int]) -> None:
        self.attempt += 1
        self.write(numbers_of(load_index(self.store).failed.ids()), failing, blow, attempt=self.attempt)

    @rule(more=st.integers(1, 3))
    def widen(self, more: int) -> None:
        self.width += more

    @rule(numbers=tasks, failing=tasks, blow=blows)
    def two_at_once(self, numbers: set[int], failing: set[int], blow: Blow) -> None:
        """One of them may be struck; they render other pixels, and one of them fails where the other does not."""
        with ThreadPoolExecutor(2) as pool:
            one = pool.submit(self.write, numbers, failing, blow)
            other = pool.submit(self.write, numbers, set(), None, shade=1)
            one.result()
            other.result()

    @rule(blow=blows)
    def write_tables(self, blow: Blow) -> None:
        if not self.struck(blow, lambda store: finalize(store)):
            self.check_tables()

    @rule(left=deaths, blow=blows)
    def clean(self, left: Blow, blow: Blow) -> None:
        """A wider launch dies, then ``verify --clean --older-than 0``, between whose two steps another one ends."""
        self.widen(2)
        self.write(self.missing(), set(), left)
        before = datetime.now(UTC)
        found = verify(self.store)
        assert found.certain
        self.write(self.missing(), set(), None)
        self.struck(blow, lambda store: delete_orphans(store, found.orphans, before))

    @rule(which=st.integers(0, 20), blow=blows)
    def lose_an_object(self, which: int, blow: Blow) -> None:
        """Then ``verify --drop-damaged``, and once more if it was struck: what only that object held is gone."""
        images = images_of(self.store)
        keys = sorted({key for held in images.values() for key in held})
        if not keys:
            return
        gone = keys[which % len(keys)]
        self.store.delete(gone)
        self.struck(blow, lambda store: drop_damaged(store, verify(store).damage))
        drop_damaged(self.store, verify(self.store).damage)
        finalize(self.store)
        for number in [number for number, held in images.items() if held == {gone}]:
            del self.committed[number]
            assert number in self.missing()

    @invariant()
    def nothing_is_lost(self) -> None:
        index = load_index(self.store)
        ok, failed = numbers_of(index.ok.ids()), numbers_of(index.failed.ids())
        for number, status in self.committed.items():
            assert number in ok if status == "ok" else number in ok | failed
        for status, numbers in (("ok", ok), ("failed", failed)):
            assert all(status in self.tried[number] for number in numbers)
        self.committed = {**dict.fromkeys(failed, "failed"), **dict.fromkeys(ok, "ok")}

    @invariant()
    def what_is_committed_is_there(self) -> None:
        assert not false_alarms(self.store)

    def missing(self) -> set[int]:
        return set(range(self.width)) - numbers_of(load_index(self.store).all().ids())

    def write(self, numbers: set[int], failing: set[int], blow: Blow, *, attempt: int = 0, shade: int = 0) -> None:
        """Render and commit; what is acknowledged is committed."""
        wanted = sorted(number for number in numbers if number < self.width)
        failing = failing & set(wanted)
        for number in wanted:
            self.tried.setdefault(number, set()).add("failed" if number in failing else "ok")
        painter = Painter({f"p{number}" for number in failing}, shade)
        self.struck(blow, lambda store: self.render(store, wanted, painter, attempt))

    def render(self, store: ObjectStore, wanted: list[int], painter: Painter, attempt: int) -> None:
        facts = replace(self.facts, attempt=attempt)
        runner = LeaseRunner(painter, partial(PartWriter, store, facts=facts))
        shards = [shard_of(*wanted[start : start + SHARD]) for start in range(0, len(wanted), SHARD)]
        futures = [runner.submit(shard) for shard in shards]
        runner.close()
        for future in futures:
            if future.exception() is None:
                self.acknowledge(future.result())
        for future in futures:
            future.result()

    def acknowledge(self, rows: pa.Table) -> None:
        for task, status in zip(rows["task_id"].to_pylist(), rows["status"].to_pylist(), strict=True):
            number = int(task[:2], 16)
            if self.committed.get(number) != "ok":
                self.committed[number] = status

    def struck(self, blow: Blow, work: Callable[[ObjectStore], object]) -> bool:
        """Whether the process was struck at its work, which then may or may not be done."""
        mortal = MortalStore(self.store, *(blow or (0, "before")))
        with suppress(GoneError, StoreUnavailableError):
            work(mortal)
        return mortal.struck is not None

    def check_tables(self) -> None:
        self.nothing_is_lost()
        found = said(self.store)
        ok, failed = ([int(row["task_id"][:2], 16) for row in rows] for rows in (found.images, found.failures))
        assert sorted(ok) == sorted(number for number, status in self.committed.items() if status == "ok")
        assert sorted(failed) == sorted(number for number, status in self.committed.items() if status == "failed")
        assert all(image_is_sound(self.store, row) for row in found.images)
        assert not verify(self.store).faults


def images_of(store: ObjectStore) -> dict[int, set[str]]:
    """Of each task the objects that hold its images: several where it was committed more than once."""
    images: dict[int, set[str]] = {}
    for key in part_keys(store):
        for row in read_part(store, key).to_pylist():
            if row["status"] == "ok":
                images.setdefault(int(row["task_id"][:2], 16), set()).add(object_of(row["file_name"])[0])
    return images


def numbers_of(ids: Ids) -> set[int]:
    return {int(high) >> 56 for high, _ in ids}


class Overtaken(LocalStore):
    """Before an object is written for the first time, another launch commits and finalizes."""

    key = ""

    def put(self, key: str, body: bytes) -> None:
        self._overtake(key)
        super().put(key, body)

    def put_file(self, key: str, file: BinaryIO) -> None:
        self._overtake(key)
        super().put_file(key, file)

    def _overtake(self, key: str) -> None:
        if key == self.key:
            self.key = ""
            other = LocalStore(Path(self.uri))
            commit(other, rendered(2), rendered(3))
            assert finalize(other).ok == 3


@pytest.mark.parametrize("key", [METADATA_KEY, FINALIZED_KEY])
def test_of_two_launches_that_end_at_once_nothing_is_left_out(tmp_path: Path, key: str) -> None:
    store = Overtaken(tmp_path)
    commit(store, rendered(1))
    store.key = key
    assert finalize(store).ok == 3
    assert len(said(store).images) == 3
    assert not verify(store).faults


@pytest.mark.hypothesis
def test_random_lives() -> None:
    run_state_machine_as_test(CommitMachine, settings=settings(max_examples=25, stateful_step_count=12))
