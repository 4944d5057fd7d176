"""Tables from random parts against a plain oracle, in one file and in several, and a finalize that dies anywhere."""

import io
import os
import shutil
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import replace
from datetime import timedelta
from itertools import count
from pathlib import Path
from types import ModuleType
from typing import Any, BinaryIO, get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import StoreUnavailableError
from pipeline.output import tables
from pipeline.output.checks import check_object
from pipeline.output.finalize import Finalized, finalize
from pipeline.output.finalized import Left, Table, read_finalized
from pipeline.output.index import part_keys
from pipeline.output.layout import CARD_KEY, FAILURES_KEY, METADATA_KEY, Layout, part_of_key
from pipeline.output.part import put_part, read_part
from pipeline.output.renewal import taken_in
from pipeline.output.requests import ORDER
from pipeline.output.run import write_run
from pipeline.output.schema import METADATA_SCHEMA
from pipeline.output.tables import is_table_key, table_keys
from pipeline.output.verify import verify
from pipeline.storage.base import ObjectStore
from pipeline.storage.local import LocalStore
from tests.faults.mortal import GoneError, How, MortalStore
from tests.test_output import RUN, START, commit, failed, rendered
from tests.test_readers import PACKING, check_samples, check_table, datasets, write_output, write_part

__all__ = ["datasets"]  # a fixture

Row = tuple[int, bool, int]
"""Number of the task, whether it has an image, time of its attempt in seconds."""
EXTRAS: list[Any] = [None, 1, 2.5, "x", 2**60, [1]]


@pytest.fixture(autouse=True)
def small(monkeypatch: pytest.MonkeyPatch) -> None:
    """Three rows a file, groups of two, two rows read at a time."""
    limits = {"tables.TABLE_ROWS": 3, "tables._GROUP_ROWS": 2, "sorting.BATCH_ROWS": 2, "sorting.CHUNK_ROWS": 4}
    for name, rows in limits.items():
        monkeypatch.setattr(f"pipeline.output.{name}", rows)


def put(store: ObjectStore, rows: Sequence[Row], name: int = 0, extra: Any = None) -> None:
    """A part. Tasks lie in the manifest in another order than their ids, and without guidance now and then."""
    part, lines = f"{name:016x}" * 2, []
    for number, ok, second in rows:
        texts: dict[str, Any] = {field.name: "" for field in METADATA_SCHEMA if pa.types.is_string(field.type)}
        numbers = {field.name: number % 2 for field in METADATA_SCHEMA if pa.types.is_integer(field.type)}
        task = f"{number * 7919 % 251:02x}" * 16
        line = texts | numbers | {"task_id": task, "part_id": part, "manifest_row": number // 3, "seed": number}
        line |= {"status": "ok" if ok else "failed", "created_at": START + timedelta(seconds=second)}
        line |= {"guidance_scale": None if number % 5 else 2.0, "file_name": "images/x" if ok else None}
        lines.append(line)
    table = pa.Table.from_pylist(lines, schema=METADATA_SCHEMA)
    if extra is not None:
        table = table.append_column("extra", pa.array([extra] * len(rows)))
    put_part(store, part, table)


def place(row: dict[str, Any]) -> tuple[Any, ...]:
    return tuple((row[name] is None, row[name]) for name in (*ORDER, "task_id"))


def expected(store: ObjectStore) -> list[dict[str, Any]]:
    """What the tables have to say, as far as the columns go that never change their type."""
    best: dict[str, tuple[Any, dict[str, Any]]] = {}
    for key in part_keys(store):
        for row in read_part(store, key).select(METADATA_SCHEMA.names).to_pylist():
            rank = (row["status"] != "ok", -row["created_at"].timestamp(), row["part_id"], key)
            if row["task_id"] not in best or rank < best[row["task_id"]][0]:
                best[row["task_id"]] = rank, row
    return sorted((row for _, row in best.values()), key=place)


def read(store: ObjectStore, key: str) -> pa.Table:
    return pq.read_table(io.BytesIO(store.get(key)))


def check(store: ObjectStore, made: Finalized, *, killed: bool = False) -> None:
    """The tables are what the parts say, each in order and bounded, and exactly those of the note.

    Where a finalize was ``killed`` there may be numbered files of it that nothing names.
    """
    left = read_finalized(store)
    images = {key: read(store, key) for key in table_keys(store) if not killed or key in left.tables}
    assert METADATA_KEY in images or not store.head(METADATA_KEY)
    rows = {key: table.select(METADATA_SCHEMA.names).to_pylist() for key, table in images.items()}
    wanted = expected(store)
    ok = [row for row in wanted if row["status"] == "ok"]
    assert sorted((row for held in rows.values() for row in held), key=place) == ok
    assert all(held == sorted(held, key=place) for held in rows.values())
    assert len({str(table.schema) for table in images.values()}) == 1
    assert (len(images) == 1 and METADATA_KEY in images) if len(ok) <= tables.TABLE_ROWS else METADATA_KEY not in images
    assert all(len(held) <= tables.TABLE_ROWS for held in rows.values())
    bad = [row for row in wanted if row["status"] != "ok"]
    assert (read(store, FAILURES_KEY).select(METADATA_SCHEMA.names).to_pylist() if bad else bad) == bad
    assert (made.ok, made.failed) == (len(ok), len(bad))
    assert {key for key in left.tables if is_table_key(key)} == images.keys()
    assert not any(check_object(store, *item) for item in left.tables.items())
    assert left.parts == set(map(part_of_key, part_keys(store)))


parts = st.lists(
    st.tuples(st.integers(0, 12), st.booleans(), st.integers(0, 2)),
    min_size=1,
    max_size=5,
    unique_by=lambda row: row[0],
)
launches = st.lists(st.lists(st.tuples(parts, st.sampled_from(EXTRAS)), max_size=3), min_size=1, max_size=4)


@settings(max_examples=20)
@given(launches, st.integers(1, 8), st.data())
def test_tables_are_what_the_parts_say(lives: Any, limit: int, data: st.DataObject) -> None:
    with tempfile.TemporaryDirectory() as folder, pytest.MonkeyPatch.context() as patch:
        patch.setattr(tables, "TABLE_ROWS", limit)
        store, names = LocalStore(Path(folder)), count()
        for launch in lives:
            for rows, extra in launch:
                put(store, rows, next(names), extra)
            full = {key: store.get(key) for key, table in read_finalized(store).tables.items() if table.rows == limit}
            made = finalize(store)
            check(store, made)
            for key, body in full.items():
                there = is_table_key(key) and key != METADATA_KEY and store.head(key)
                assert not there or store.get(key) == body, "a numbered file was changed"
            if data.draw(st.booleans()):
                check_nothing_is_written(store)


@pytest.mark.parametrize("before", [None, 1])
def test_files_of_an_attempt_that_had_to_start_again_go(
    tmp_path: Path, before: int | None, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Only the failures show that the column has to be text: the images' files are there by then."""
    monkeypatch.setattr(tables, "TABLE_ROWS", 1)
    store = LocalStore(tmp_path)
    if before:
        put(store, [(9, True, 0), (10, True, 0)], 0, before)
        check(store, finalize(store))
    put(store, [(0, True, 0), (1, True, 0)], 1, 2.5)
    put(store, [(2, False, 0)], 2, 2**60 + 1)
    check(store, finalize(store))


class Sealed(LocalStore):
    """Cannot be changed."""

    def put_file(self, key: str, file: BinaryIO) -> None:
        raise AssertionError(f"put {key}")

    def delete(self, key: str) -> None:
        raise AssertionError(f"delete {key}")


def check_nothing_is_written(store: LocalStore) -> None:
    for reread in (False, True):
        finalize(Sealed(Path(store.uri)), reread=reread)


@pytest.mark.parametrize(
    "extras", [[1, 2.5], [1, "x"], [2**60 + 1, 2.5], [None, 3], [[1], "x"], [1, 2.5, "x"], ["x", 1]]
)
def test_one_launch_or_many_give_one_file_of_the_same_bytes(
    tmp_path: Path, extras: list[Any], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tables, "TABLE_ROWS", 100)
    at_once, in_turn = LocalStore(tmp_path / "once"), LocalStore(tmp_path / "turn")
    for number, extra in enumerate(extras):
        for store in (at_once, in_turn):
            put(store, [(number, True, 0), (number + 20, False, 0), (number + 10, True, 0)], number, extra)
        finalize(in_turn)
    finalize(at_once)
    for key in (METADATA_KEY, FAILURES_KEY):
        assert in_turn.get(key) == at_once.get(key)


@pytest.mark.parametrize("extras", [[1, 2.5], [1, "x"], [2**60 + 1, 2.5], [1, None], [None, 1]])
def test_files_are_of_one_schema(tmp_path: Path, extras: list[Any]) -> None:
    store = LocalStore(tmp_path)
    for number, extra in enumerate(extras):
        put(store, [(number * 5 + n, True, 0) for n in range(5)], number, extra)
        check(store, finalize(store))
    texts = [str(extra) for extra in extras]
    held = pa.concat_tables([read(store, key) for key in table_keys(store)])["extra"].to_pylist()
    values = extras if extras == [1, 2.5] or None in extras else texts
    assert sorted(set(held), key=str) == sorted(values, key=str)


class Watched(LocalStore):
    """Knows what was read."""

    got: set[str]

    def get(self, key: str) -> bytes:
        self.got.add(key)
        return super().get(key)

    def put(self, key: str, body: bytes) -> None:
        super().put(key, body)
        self.got.add(key)


def test_only_new_parts_are_read(tmp_path: Path) -> None:
    store = Watched(tmp_path)
    store.got = set()
    for number in range(4):
        put(store, [(3 * number + n, n < 2, 0) for n in range(3)], number)
    finalize(store)
    assert table_keys(store) == ["metadata-00000.parquet", "metadata-00001.parquet", "metadata-00002.parquet"]
    old, store.got = set(part_keys(store)), set()
    put(store, [(20, True, 0), (2, False, 9), (21, False, 0)], 9)
    made = finalize(store)
    new, store.got = store.got, set()
    assert not new & old
    assert new & set(part_keys(store))
    assert finalize(store) == made
    assert not store.got & set(part_keys(store))
    check(store, made)


def test_many_small_launches_leave_few_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "TABLE_ROWS", 16)
    images: dict[str, Table] = {}
    for number in range(1000):
        taken = taken_in(images, 1)
        rows = 1 + sum(images.pop(key).rows for key in taken)
        name = METADATA_KEY if not images and rows <= 16 else f"metadata-{number:05}.parquet"
        images[name] = Table(sha256="", bytes=0, rows=rows)
        assert len(images) <= number / 16 + 5
    assert sum(table.rows for table in images.values()) == 1000


def scenes(folder: Path) -> Iterator[LocalStore]:
    """Runs on which a finalize has something to do."""
    for scene in ("first", "grown", "over the limit", "appended", "merged", "better", "retried", "shrunk"):
        store = LocalStore(folder / scene)
        write_run(store, RUN)
        put(store, [(number, True, 0) for number in range(2)] + [(9, False, 0)], 1)
        if scene == "first":
            yield store
            continue
        if scene in ("appended", "merged", "better", "retried", "shrunk"):
            put(store, [(number, True, 0) for number in range(2, 7)], 2)
        finalize(store)
        new: dict[str, list[Row]] = {
            "grown": [(7, True, 0)],
            "over the limit": [(number, True, 0) for number in range(2, 7)],
            "appended": [(7, True, 0), (8, True, 0), (10, True, 0)],
            "merged": [(7, True, 0)],
            "better": [(1, True, 5)],
            "retried": [(9, False, 5), (11, False, 5)],
            "shrunk": [(9, True, 5)],
        }
        put(store, new[scene], 3)
        if scene == "shrunk":
            store.delete(part_keys(store)[1])
            for info in list(store.list("_darkroom/index/")):
                store.delete(info.key)
        yield store


def test_death_at_every_operation_is_harmless(tmp_path: Path) -> None:
    for before in scenes(tmp_path / "scenes"):
        for at in count(1):
            operation = struck(before, at, "before", tmp_path / "trial")
            if operation is None:
                break
            if operation.startswith(("put", "delete")):
                struck(before, at, "after", tmp_path / "trial")
                struck(before, at, "unanswered", tmp_path / "trial")
        assert at > 10


def struck(before: LocalStore, at: int, how: How, folder: Path) -> str | None:
    """The operation that was struck, None if finalize has no such one. It leaves no damage; the next mends all."""
    shutil.copytree(before.uri, folder)
    store = LocalStore(folder)
    mortal = MortalStore(store, at, how)
    with suppress(GoneError, StoreUnavailableError):
        finalize(mortal)
    left = read_finalized(store)
    assert not any(check_object(store, *item) for item in left.tables.items()), (mortal.struck, how)
    if mortal.struck is None or mortal.struck.startswith(("put", "delete")):
        check(store, finalize(store), killed=True)
        assert store.head(CARD_KEY)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("pipeline.output.finalize._ABANDONED_AFTER", timedelta(0))
            check(store, finalize(store))
    shutil.rmtree(folder)
    return mortal.struck


@pytest.mark.parametrize("harm", ["flip", "delete", "cut"])
def test_a_table_that_was_harmed_is_made_anew(tmp_path: Path, harm: str) -> None:
    store = LocalStore(tmp_path)
    commit(store, *map(rendered, range(1, 9)), failed(9))
    finalize(store)
    for number in range(4):
        key = [*table_keys(store), FAILURES_KEY][number]
        body = store.get(key)
        if harm == "delete":
            store.delete(key)
        else:
            store.put(key, body[:50] + b"?" + body[51:] if harm == "flip" else body[:-9])
        assert {fault.key for fault in verify(store).faults} >= {key}
        finalize(store, reread=harm == "flip")
        assert not verify(store).faults


def test_verify_says_what_is_outdated_and_what_is_left_over(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    commit(store, *map(rendered, range(1, 9)))
    finalize(store)
    last = table_keys(store)[-1]
    commit(store, rendered(9))
    assert [(fault.key, fault.what) for fault in verify(store).faults] == [(last, "outdated")]
    finalize(store)
    left_over = "metadata-00077.parquet"
    store.put(left_over, store.get(table_keys(store)[0]))
    store.put("metadata-1.parquet", b"somebody's own")
    for hours, stays in ((23, True), (25, False)):
        written = time.time() - 3600 * hours
        os.utime(tmp_path / left_over, (written, written))
        found = verify(store)
        assert (found.faults, [info.key for info in found.orphans]) == ((), [left_over])
        finalize(store)
        assert (left_over in table_keys(store)) is stays
    assert not verify(store).orphans
    assert store.head("metadata-1.parquet")
    assert read_finalized(store) != Left()


Between = Callable[[ObjectStore], object]


class Overtaken(LocalStore):
    """Once, just before or after an object whose key begins so is put, something else is done."""

    moment: tuple[str, str, Between] | None = None

    def put(self, key: str, body: bytes) -> None:
        self._meet("before", key)
        super().put(key, body)
        self._meet("after", key)

    def put_file(self, key: str, file: BinaryIO) -> None:
        self._meet("before", key)
        super().put_file(key, file)
        self._meet("after", key)

    def delete(self, key: str) -> None:
        self._meet("deleting", key)
        super().delete(key)

    def _meet(self, when: str, key: str) -> None:
        if self.moment is not None and when == self.moment[0] and key.startswith(self.moment[1]):
            (_, _, between), self.moment = self.moment, None
            between(LocalStore(Path(self.uri)))


@pytest.mark.parametrize("key", ["metadata-", "_darkroom/finalized"])
@pytest.mark.parametrize("when", ["before", "after", "deleting"])
@pytest.mark.parametrize("more", [0, 1, 4])
@pytest.mark.parametrize("grown", [False, True])
def test_two_finalizers_of_numbered_files(tmp_path: Path, key: str, when: str, more: int, grown: bool) -> None:
    """The other one has all of its work to do, or a note to begin with; it knows the same parts, or more."""
    store = Overtaken(tmp_path)
    put(store, [(number, True, 0) for number in range(5)], 1)
    if grown:
        finalize(store)
        put(store, [(number, True, 0) for number in range(5, 7)], 2)

    def other(theirs: ObjectStore) -> None:
        if more:
            put(theirs, [(number, True, 0) for number in range(7, 7 + more)], 3)
        finalize(theirs)

    store.moment = (when, key, other)
    made = finalize(store)
    assert store.moment is None or when == "deleting"
    unseen = (when, key) == ("before", "_darkroom/finalized")
    """The note that is overwritten has been there for a moment: what it named is left over."""
    check(store, made, killed=unseen)
    found = verify(store)
    assert {fault.key for fault in found.faults} == {"images/x"}, "which is not there, and all else is"
    assert unseen or not found.orphans


@pytest.mark.parametrize("layout", get_args(Layout))
def test_several_files_are_loaded(datasets: ModuleType, tmp_path: Path, layout: Layout) -> None:
    output = write_output(tmp_path / "output", layout)
    assert len(table_keys(LocalStore(output))) == 5
    loaded = datasets.load_dataset(str(output), split="train", cache_dir=tmp_path / "cache")
    check_samples(loaded, whole=True) if layout == "webdataset" else check_table(loaded)
    if layout == "files":
        names = [path.name for path in output.glob("metadata-*.parquet")]
        where = {"data_dir": str(output), "metadata_filenames": names, "cache_dir": tmp_path / "other"}
        check_table(datasets.load_dataset("imagefolder", split="train", **where))


def test_a_picture_rendered_better_in_a_packed_layout(tmp_path: Path) -> None:
    """The objects of all files together decide whether the card lists them."""
    store = LocalStore(tmp_path)
    write_run(store, replace(RUN, packing=PACKING["parquet"]))
    for start in (1, 4, 7):
        write_part(store, PACKING["parquet"], range(start, start + 3))
        finalize(store)
    assert len(table_keys(store)) > 1
    assert b"data/*.parquet" in store.get(CARD_KEY)
    store.put("data/left.parquet", b"x")
    finalize(store)
    assert b"data/*.parquet" not in store.get(CARD_KEY)


@pytest.mark.parametrize("layout", ["files", "webdataset", "parquet"])
def test_the_list_of_shards_has_what_is_committed(tmp_path: Path, layout: Layout) -> None:
    store = LocalStore(tmp_path)
    write_run(store, replace(RUN, packing=PACKING[layout]))
    for start in (1, 4):
        write_part(store, PACKING[layout], range(start, start + 3))
        finalize(store)
    store.put("shards/left.tar", b"x")
    finalize(store)
    if layout == "files":
        assert not store.head("shards.txt")
        return
    listed = store.get("shards.txt").decode().splitlines()
    names = [name for key in table_keys(store) for name in pq.read_table(tmp_path / key)["file_name"].to_pylist()]
    assert listed == sorted({name.rpartition("/")[0] for name in names})
    assert len(listed) == 2
    found = verify(store)
    assert (found.faults, found.orphans) == ((), ())
