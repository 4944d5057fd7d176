"""What ``darkroom status`` says of a run, on a real directory with committed parts."""

import json
import time
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from jobs.options import s3_settings
from jobs.runs import open_run
from jobs.status import status
from pipeline.errors import InputError
from pipeline.output.failures import failed_rows
from pipeline.output.finalize import finalize
from pipeline.output.index import is_part_key, load_index, part_keys
from pipeline.output.launch_note import LaunchNote, write_note
from pipeline.output.layout import FAILURES_KEY
from pipeline.output.run import RUN_FILE_VERSION
from pipeline.rendering.results import Failed
from pipeline.storage.base import ObjectStore
from pipeline.storage.local import LocalStore
from tests.test_output import commit, failed, rendered, task

LATER = datetime(2026, 1, 2, tzinfo=UTC)


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    constants = {"model_fingerprint": "f", "dtype": "float32", "scheduler_config": {}, "call": {}}
    numerics = {"rows": 16, "compiled": False, "threads": 1, "device": "cpu", "versions": {}}
    run = {
        "version": RUN_FILE_VERSION, "model_id": "m", "model_revision": None, "constants": constants,
        "numerics": numerics, "job": {}, "created_at": "", "darkroom_version": "0",
    }  # fmt: skip
    store = LocalStore(tmp_path)
    store.put("_darkroom/run.json", json.dumps(run).encode())
    return store


def facts(store: ObjectStore, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    status(store.uri, as_json=True)
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def launched(store: ObjectStore, number: int, committed_before: int) -> None:
    note = LaunchNote(launch_id=f"{number}", started_at="", planned=10, to_render=10, committed_before=committed_before)
    write_note(store, note)


def test_a_sweep_that_changed_between_launches(store: LocalStore, capsys: pytest.CaptureFixture[str]) -> None:
    launched(store, 1, committed_before=0)
    commit(store, *map(rendered, range(1, 11)))
    assert facts(store, capsys)["remaining"] == 0
    launched(store, 2, committed_before=10)
    assert facts(store, capsys)["remaining"] == 10
    commit(store, *map(rendered, range(11, 16)))
    assert facts(store, capsys)["remaining"] == 5
    commit(store, *map(rendered, range(16, 26)))
    assert facts(store, capsys)["remaining"] == 0, "two launches at once: never below"


def test_reasons_add_up(store: LocalStore, capsys: pytest.CaptureFixture[str]) -> None:
    commit(store, rendered(1), failed(2), failed(3), failed(4))
    commit(store, failed(2), rendered(3), at=LATER)
    black = Failed(task=task(4), stage="decode", verdict="error", error="all zero")
    commit(store, black, failed(5), at=LATER + timedelta(days=1))
    found = facts(store, capsys)
    assert (found["ok"], found["failed"]) == (2, 3)
    assert found["failed_by_reason"] == {"nan_latents: decode: NaN: no": 2, "error: decode: all zero": 1}


def test_many_reasons_still_add_up(store: LocalStore, capsys: pytest.CaptureFixture[str]) -> None:
    commit(store, *(Failed(task=task(n), stage="decode", verdict="error", error=f"{n}") for n in range(1, 31)))
    reasons = facts(store, capsys)["failed_by_reason"]
    assert len(reasons) == 21
    assert reasons["other reasons"] == 10


def test_stray_files_are_none_of_its_business(store: LocalStore, capsys: pytest.CaptureFixture[str]) -> None:
    commit(store, rendered(1), failed(2))
    for key in ("metadata/notes.txt", "metadata/ab/mine.parquet"):
        store.put(key, b"not a part")
    assert facts(store, capsys)["failed_by_reason"] == {"nan_latents: decode: NaN: no": 1}


class Meddled(LocalStore):
    """Knows which parts were read; one is dropped just before that."""

    def __init__(self, root: Path, dropped: str = "") -> None:
        super().__init__(root)
        self.read: list[str] = []
        self.dropped = dropped

    def get(self, key: str) -> bytes:
        if is_part_key(key):
            if key == self.dropped:
                self.delete(key)
            self.read.append(key)
        return super().get(key)


def test_a_part_that_is_dropped_meanwhile(store: LocalStore) -> None:
    commit(store, failed(1))
    commit(store, failed(2))
    index = load_index(store)
    meddled = Meddled(Path(store.uri), dropped=part_keys(store)[0])
    rows = failed_rows(meddled, index)
    assert (rows.num_rows, len(meddled.read)) == (1, 2)


def test_parts_that_the_table_has_are_not_read(store: LocalStore) -> None:
    commit(store, rendered(1), failed(2))
    commit(store, failed(3))
    finalize(store)
    watched = Meddled(Path(store.uri))
    assert failed_rows(watched, load_index(store))["verdict"].to_pylist() == ["nan_latents"] * 2
    assert watched.read == []
    commit(store, failed(4), rendered(3), at=LATER)
    watched = Meddled(Path(store.uri))
    assert sorted(failed_rows(watched, load_index(store))["task_id"].to_pylist()) == ["02" * 16, "04" * 16]
    store.put(FAILURES_KEY, store.get(FAILURES_KEY)[:-9])
    index, watched = load_index(store), Meddled(Path(store.uri))
    assert sorted(failed_rows(watched, index)["task_id"].to_pylist()) == ["02" * 16, "04" * 16]
    assert set(watched.read) == set(part_keys(store)), "a table that is damaged is not believed"


def test_an_unreachable_store_is_told_about_soon(s3_bucket: str) -> None:
    began = time.monotonic()
    with pytest.raises(InputError, match="cannot be reached") as caught:
        open_run(f"s3://{s3_bucket}/x", s3_settings("http://127.0.0.1:9", None))
    assert caught.value.where == "OUTPUT"
    assert time.monotonic() - began < 15


def at_work(store: ObjectStore) -> LaunchNote:
    """The note of a launch of nine images that began ten seconds ago."""
    began = (datetime.now(UTC) - timedelta(seconds=10)).isoformat()
    note = LaunchNote(launch_id="1", started_at=began, alive_at=began, planned=9, to_render=9)
    write_note(store, note)
    return note


def test_a_launch_that_is_at_work_says_since_when_and_how_fast(
    store: LocalStore, capsys: pytest.CaptureFixture[str]
) -> None:
    note = at_work(store)
    commit(store, *map(rendered, range(1, 6)))
    found = facts(store, capsys)
    assert found["at_work_since"] == note.started_at
    assert 0.3 < found["images_per_s"] <= 0.5
    status(store.uri)
    assert "images/s in this launch so far" in capsys.readouterr().out
    write_note(store, replace(note, alive_at=None, finished_at=note.started_at, remaining=4, images_per_s=2.0))
    found = facts(store, capsys)
    assert (found["at_work_since"], found["images_per_s"], found["remaining"]) == (None, 2.0, 4)


def test_images_that_are_tried_again_remain_until_they_are_done(
    store: LocalStore, capsys: pytest.CaptureFixture[str]
) -> None:
    commit(store, rendered(1), failed(2), failed(3))
    note = LaunchNote(launch_id="1", started_at="", planned=3, to_render=2, committed_before=1, retry_failed=True)
    write_note(store, note)
    assert facts(store, capsys)["remaining"] == 2
    commit(store, rendered(2), failed(3), at=LATER)
    assert facts(store, capsys)["remaining"] == 1
    write_note(store, replace(note, finished_at="x"))
    assert facts(store, capsys)["remaining"] == 0


def test_the_launch_at_work_counts_and_not_one_that_began_later_and_ended(
    store: LocalStore, capsys: pytest.CaptureFixture[str]
) -> None:
    note = at_work(store)
    write_note(store, replace(note, launch_id="2", alive_at=None, finished_at="x", remaining=8))
    commit(store, *map(rendered, range(1, 6)))
    found = facts(store, capsys)
    assert (found["remaining"], found["at_work_since"]) == (4, note.started_at)


def test_images_that_were_taken_away_remain_again(store: LocalStore, capsys: pytest.CaptureFixture[str]) -> None:
    commit(store, *map(rendered, range(1, 9)))
    write_note(store, LaunchNote(launch_id="1", started_at="", finished_at="x", planned=10, to_render=10, remaining=0))
    assert facts(store, capsys)["remaining"] == 2
