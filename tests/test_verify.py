"""``verify`` finds and names whatever was done to a run; what it drops is rendered again, and nothing else is lost."""

import json
import os
import shutil
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

import pytest

from jobs import cli
from pipeline.errors import ObjectReplacedError, StoreDeniedError
from pipeline.identity import IdSet, RunConstants
from pipeline.output import verify as verify_module
from pipeline.output.finalize import finalize
from pipeline.output.index import load_index, part_keys
from pipeline.output.layout import FAILURES_KEY, METADATA_KEY, Layout, Packing, object_of
from pipeline.output.mending import drop_damaged
from pipeline.output.orphans import delete_orphans
from pipeline.output.part import PartWriter, read_part
from pipeline.output.run import NumericsProfile, Run, write_run
from pipeline.output.segments import segment_keys
from pipeline.output.verify import Reading, verify
from pipeline.rendering.results import Outcome
from pipeline.storage.base import ObjectInfo, ObjectStore
from pipeline.storage.local import LocalStore
from pipeline.storage.location import open_store
from tests.test_index import Dying, StopError
from tests.test_output import FACTS, START, failed, rendered, shard_of

LAYOUTS: tuple[Layout, ...] = ("files", "webdataset", "parquet")
LATER = START + timedelta(hours=1)


def put(store: ObjectStore, layout: Layout, *outcomes: Outcome, at: datetime = START) -> None:
    """Commit a part."""
    shard = shard_of(*(outcome.task.recipe.seed for outcome in outcomes))
    writer = PartWriter(store, shard, replace(FACTS, packing=Packing(layout=layout)))
    for outcome in outcomes:
        writer.put(outcome, at)
    writer.commit()


def run_of(store: ObjectStore, layout: Layout) -> None:
    """Two parts, gathered in a segment, and a third in another; task 3 failed first and was rendered later."""
    put(store, layout, rendered(1), rendered(2), failed(3))
    put(store, layout, rendered(4), failed(5))
    finalize(store)
    put(store, layout, rendered(3), rendered(6), at=LATER)
    finalize(store)


@pytest.fixture(params=LAYOUTS)
def layout(request: pytest.FixtureRequest) -> Layout:
    found: Layout = request.param
    return found


@pytest.fixture
def store(layout: Layout, tmp_path: Path) -> LocalStore:
    store = LocalStore(tmp_path / "run")
    run_of(store, layout)
    return store


def flip(body: bytes) -> bytes:
    at = len(body) * 2 // 3
    return body[:at] + bytes([body[at] ^ 1]) + body[at + 1 :]


TAMPERING: dict[str, Callable[[LocalStore, str], None]] = {
    "flip the first byte": lambda store, key: store.put(key, bytes([store.get(key)[0] ^ 128]) + store.get(key)[1:]),
    "flip a byte": lambda store, key: store.put(key, flip(store.get(key))),
    "flip the last byte": lambda store, key: store.put(key, store.get(key)[:-1] + bytes([store.get(key)[-1] ^ 1])),
    "cut the end": lambda store, key: store.put(key, store.get(key)[:-1]),
    "cut it all": lambda store, key: store.put(key, b""),
    "append": lambda store, key: store.put(key, store.get(key) + b"\0"),
    "delete": lambda store, key: store.delete(key),
}


def kinds(store: LocalStore) -> list[str]:
    """One key of each kind of object that is checked, the first part and segment and the last."""
    payloads = [info.key for prefix in ("images/", "shards/", "data/") for info in store.list(prefix)]
    found = [payloads, part_keys(store), segment_keys(store)]
    return [*sorted({key for keys in found for key in (keys[0], keys[-1])}), METADATA_KEY, FAILURES_KEY]


def test_a_sound_run(store: LocalStore) -> None:
    seen: list[Reading] = []
    found = verify(store, seen.append)
    assert (found.ok, found.failed, found.faults, found.orphans) == (5, 1, (), ())
    assert not found.damage
    assert found.certain
    assert found.read.parts == 3
    assert [reading.objects for reading in seen] == list(range(1, found.read.objects + 1))


@pytest.mark.parametrize("how", TAMPERING)
def test_tampering_is_found_and_named(store: LocalStore, how: str) -> None:
    for key in kinds(store):
        body = store.get(key)
        TAMPERING[how](store, key)
        faults = {fault.key: fault.what for fault in verify(store).faults}
        assert faults.get(key) == ("missing" if how == "delete" else "corrupt"), (key, faults)
        store.put(key, body)
    assert not verify(store).faults


def test_a_byte_anywhere_in_a_part_a_segment_or_a_table(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    put(store, "files", rendered(1))
    finalize(store)
    for key in (*part_keys(store), *segment_keys(store), METADATA_KEY):
        body = store.get(key)
        for at in range(0, len(body), 397):
            store.put(key, body[:at] + bytes([body[at] ^ 16]) + body[at + 1 :])
            assert key in {fault.key for fault in verify(store).faults}, (key, at)
        store.put(key, body)


def test_a_launch_beside_it_only_makes_the_table_outdated(store: LocalStore, layout: Layout) -> None:
    put(store, layout, rendered(7))
    store.put("images/08/" + "08" * 16 + "-00000000.png", b"not committed yet")
    found = verify(store)
    assert [(fault.key, fault.what) for fault in found.faults] == [(METADATA_KEY, "outdated")]
    assert "1 committed images are not in it" in found.faults[0].detail
    assert len(found.orphans) == 1
    assert not found.damage
    finalize(store)
    assert not verify(store).faults


def test_before_the_first_finalize_only_the_table_is_missing(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    put(store, "files", rendered(1))
    assert [(fault.key, fault.what) for fault in verify(store).faults] == [(METADATA_KEY, "missing")]


def test_a_table_of_other_rows(store: LocalStore) -> None:
    """As a finalize would leave it that knew less: every digest is as noted."""
    part = part_keys(store)[0]
    body = store.get(part)
    store.delete(part)
    finalize(store)
    store.put(part, body)
    assert {fault.what for fault in verify(store).faults} == {"outdated"}


def losses(store: LocalStore, key: str) -> set[int]:
    """The tasks that have no picture without this object."""
    parts = {part: read_part(store, part).to_pylist() for part in part_keys(store)}
    rows = [(row, part) for part, held in parts.items() for row in held]
    needs = {row["task_id"]: {part, object_of(row["file_name"])[0]} for row, part in rows if row["status"] == "ok"}
    failures = {row["task_id"] for row, part in rows if part == key} - needs.keys()
    return {int(task[:2], 16) for task in failures | {task for task, needed in needs.items() if key in needed}}


def numbers(ids: IdSet) -> set[int]:
    return {int(high) >> 56 for high, _ in ids.ids()}


@pytest.mark.parametrize(("layout", "how"), [("files", "delete"), ("files", "flip a byte"), ("parquet", "flip a byte")])
def test_dropping_may_stop_anywhere_and_loses_nothing_sound(store: LocalStore, layout: Layout, how: str) -> None:
    for number, key in enumerate(kinds(store)[:-2]):
        lost, steps = losses(store, key), 0
        while True:
            copy = Path(f"{store.uri}-{number}-{steps}")
            shutil.copytree(store.uri, copy)
            TAMPERING[how](LocalStore(copy), key)
            ended = dropped(copy, steps)
            check_mended(LocalStore(copy), lost, layout)
            if ended:
                break
            steps += 1
        assert steps >= bool(lost), (key, steps)


def dropped(run: Path, steps: int) -> bool:
    """Drop what is damaged and stop after so many writes; whether it ended before."""
    try:
        drop_damaged(Dying(run, steps), verify(LocalStore(run)).damage)
    except StopError:
        return False
    return True


def check_mended(store: LocalStore, lost: set[int], layout: Layout) -> None:
    """Go on to the end, then commit what was lost as a launch would."""
    drop_damaged(store, verify(store).damage)
    finalize(store)
    assert not verify(store).faults
    index = load_index(store)
    assert numbers(index.tasks) == {1, 2, 3, 4, 5, 6} - lost
    if lost:
        put(store, layout, *(failed(n) if n == 5 else rendered(n) for n in sorted(lost)), at=LATER)
    finalize(store)
    found = verify(store)
    assert (found.ok, found.failed, found.faults) == (5, 1, ())


def test_a_damaged_part_keeps_its_orphans(store: LocalStore) -> None:
    """Its images are named by nothing that can be read, but they are its own."""
    key = part_keys(store)[0]
    store.put(key, flip(store.get(key)))
    found = verify(store)
    assert found.orphans
    assert not found.certain


def test_what_the_store_keeps_back_is_named_and_not_dropped(tmp_path: Path) -> None:
    class Guarded(LocalStore):
        """Some objects may not be read."""

        def get(self, key: str) -> bytes:
            if key == part:
                raise StoreDeniedError("not yours")
            return super().get(key)

        def get_range(self, key: str, start: int, length: int) -> bytes:
            if key == image:
                raise StoreDeniedError("not yours")
            return super().get_range(key, start, length)

    store = Guarded(tmp_path)
    part = image = ""
    run_of(store, "files")
    part, image = part_keys(store)[0], next(store.list("images/")).key
    found = verify(store)
    assert {fault.key for fault in found.faults if fault.what == "unreadable"} <= {part, image}
    assert part in {fault.key for fault in found.faults}
    assert not found.damage
    assert not found.certain


def left_over(store: LocalStore, number: int, hours: float) -> str:
    key = f"images/{number:02x}/{number:02x}{'0' * 30}-{'0' * 8}.png"
    store.put(key, b"left by a launch that was killed")
    age(store, key, hours)
    return key


def age(store: LocalStore, key: str, hours: float) -> None:
    written = time.time() - 3600 * hours
    os.utime(Path(store.uri) / key, (written, written))


NOT_OURS = (
    "metadata/ab/notes.txt", "metadata/" + "a" * 32 + ".parquet", "images/mine.png", "images/ab/" + "a" * 32 + ".png",
    "images/ab/" + "A" * 32 + "-" + "0" * 8 + ".png", "images/ab/" + "a" * 32 + "-" + "0" * 8 + ".gif",
    "images/ab/c/" + "a" * 32 + "-" + "0" * 8 + ".png", "shards/left.tar", "data/mine.parquet", "metadata-mine.parquet",
)  # fmt: skip
"""Files that somebody put into an output."""


def test_orphans_are_deleted_when_they_are_old(store: LocalStore) -> None:
    for info in list(store.list()):
        age(store, info.key, 1000)
    old, young = left_over(store, 1, 25), left_over(store, 2, 23)
    for key in NOT_OURS:
        store.put(key, b"")
        age(store, key, 1000)
    before = {info.key for info in store.list()}
    found = verify(store)
    assert not found.faults
    assert {info.key for info in found.orphans} == {old, young}
    assert delete_orphans(store, found.orphans, datetime.now(UTC) - timedelta(days=1)) == 1
    assert {info.key for info in store.list()} == before - {old}


def test_an_orphan_that_is_written_again_stays(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    run_of(store, "files")
    key = left_over(store, 1, 100)
    orphans = verify(store).orphans
    store.put(key, b"by a launch that is about to commit it")
    assert delete_orphans(store, orphans, datetime.now(UTC) - timedelta(days=1)) == 0
    assert store.head(key)


def test_what_is_committed_while_orphans_are_sought_is_none(tmp_path: Path) -> None:
    class Busy(LocalStore):
        """A launch commits while the folder of images is listed."""

        committing = False

        def list(self, prefix: str = "") -> Iterator[ObjectInfo]:
            if prefix == "images/" and not self.committing:
                self.committing = True
                put(self, "files", rendered(9))
            return super().list(prefix)

    store = Busy(tmp_path)
    run_of(store, "files")
    assert verify(store).orphans == ()
    assert store.committing


def test_many_faults_are_counted_and_the_first_are_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(verify_module, "LISTED", 3)
    store = LocalStore(tmp_path)
    run_of(store, "files")
    for info in list(store.list("images/")):
        store.delete(info.key)
    found = verify(store)
    assert (found.counts, len(found.faults)) == ({"missing": 5}, 3)
    assert sum(int(rows.sum()) for rows in found.damage.rows.values()) == 6, "and the older failure of task 3"


def test_an_s3_server(s3_bucket: str) -> None:
    store = open_store(f"s3://{s3_bucket}/a/run")
    run_of(store, "webdataset")
    assert not verify(store).faults
    (first, *_) = [info.key for info in store.list("shards/")]
    store.put(first, flip(store.get(first)))
    store.delete(METADATA_KEY)
    orphan = f"shards/{'0' * 32}-{'0' * 8}.tar"
    store.put(orphan, b"x")
    found = verify(store)
    assert {(fault.key, fault.what) for fault in found.faults} == {(first, "corrupt"), (METADATA_KEY, "missing")}
    assert [info.key for info in found.orphans] == [orphan]
    assert delete_orphans(store, found.orphans, datetime.now(UTC) - timedelta(days=1)) == 0
    assert delete_orphans(store, found.orphans, datetime.now(UTC) + timedelta(days=1)) == 1
    drop_damaged(store, found.damage)
    finalize(store)
    assert not verify(store).faults


def test_a_table_that_is_replaced_while_it_is_read(tmp_path: Path) -> None:
    class Replaced(LocalStore):
        """Some opened tables turn out to be replaced."""

        left = 0

        def get_range(self, key: str, start: int, length: int) -> bytes:
            return LocalStore(tmp_path).get_range(key, start, length)

        def open(self, key: str) -> BinaryIO:
            if key == METADATA_KEY and self.left:
                self.left -= 1
                raise ObjectReplacedError("meanwhile")
            return super().open(key)

    store = Replaced(tmp_path)
    run_of(store, "files")
    store.left = 2
    assert not verify(store).faults
    store.left = 3
    assert [(fault.key, fault.what) for fault in verify(store).faults] == [(METADATA_KEY, "outdated")]
    put(store, "files", rendered(7))
    store.left = 2
    assert finalize(store).ok == 6
    assert not verify(store).faults


def darkroom(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["darkroom", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    return int(str(ended.value.code))


def test_the_command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    store = LocalStore(tmp_path)
    numerics = NumericsProfile(rows=4, compiled=False, threads=1, device="cpu", versions={})
    constants = RunConstants(model_fingerprint="f" * 32, dtype="float32", scheduler_config={})
    run = Run(
        model_id="m",
        model_revision=None,
        constants=constants,
        numerics=numerics,
        job={},
        created_at="",
        darkroom_version="0",
    )
    write_run(store, run)
    run_of(store, "files")
    orphan = left_over(store, 1, 30)
    assert darkroom(monkeypatch, "verify", store.uri) == 0, "an orphan is no fault"
    said = capsys.readouterr().out
    assert f"  - {orphan}" in said
    assert "3 parts: 5 images, 1 failed" in said
    assert "1 of them older than 24 h" in said
    for folder in ("images/01", "metadata", "."):
        (tmp_path / folder / f".tmp-1-{'0' * 16}").write_bytes(b"half")
        age(store, f"{folder}/.tmp-1-{'0' * 16}", 25)
    (tmp_path / f".tmp-2-{'0' * 16}").write_bytes(b"by a process at work")
    assert darkroom(monkeypatch, "verify", store.uri, "--clean") == 0
    said = capsys.readouterr().out
    assert "deleted    1" in said
    assert "unfinished 3 temporary files or uploads removed" in said
    assert [path.name for path in tmp_path.rglob(".tmp-*")] == [f".tmp-2-{'0' * 16}"]
    image = next(store.list("images/")).key
    store.delete(image)
    assert darkroom(monkeypatch, "verify", store.uri, "--json") == 1
    facts = json.loads(capsys.readouterr().out)
    assert (facts["missing"], facts["corrupt"]) == (1, 0)
    assert facts["faults"] == [{"key": image, "what": "missing", "detail": "there is no such object"}]
    assert darkroom(monkeypatch, "verify", store.uri) == 1
    said = capsys.readouterr().out
    assert f"{image}: missing" in said
    assert f"darkroom verify {store.uri} --drop-damaged" in said
    assert darkroom(monkeypatch, "verify", store.uri, "--drop-damaged") == 0
    assert "dropped    1 images" in capsys.readouterr().out
    assert darkroom(monkeypatch, "verify", store.uri) == 0
    assert darkroom(monkeypatch, "verify", store.uri, "--clean", "--drop-damaged") == 2
    assert darkroom(monkeypatch, "verify", str(tmp_path / "nothing")) == 2
    store.delete(METADATA_KEY)
    capsys.readouterr()
    assert darkroom(monkeypatch, "verify", store.uri) == 1
    assert f"next       darkroom finalize {store.uri}" in capsys.readouterr().out
