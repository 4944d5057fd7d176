"""Launches that are stopped, that fail in part, and that others disturb; as a user runs them."""

import json
import re
import signal
import time
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.output.launch_note import LaunchNote, write_note
from pipeline.storage.local import LocalStore
from tests.faults.launched import Launch, wait_until

PROMPTS = [f"a red circle {number}" for number in range(40)]


def render(folder: Path, *words: str, ray: Mapping[str, str] | None = None, harmful: bool = False) -> Launch:
    base = ["render", "--manifest", "m.parquet", "--steps", "2", "--sizes", "32x32", "-o", "out"]
    return Launch(folder, [*base, "--set", "workers.count=1", *words], ray, harmful=harmful)


def committed(folder: Path) -> int:
    return sum(pq.read_metadata(path).num_rows for path in (folder / "out" / "metadata").rglob("*.parquet"))


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    pq.write_table(pa.table({"prompt": PROMPTS}), tmp_path / "m.parquet")
    return tmp_path


def test_what_has_begun_is_committed_when_a_launch_is_stopped(folder: Path, shared_ray: Mapping[str, str]) -> None:
    """One shard of a thousand images, none of which would be committed before the last; progress shows them before."""
    words = ("--seeds", "0-49", "--set", "render.shard_images=1000")
    stopped = render(folder, *words, ray=shared_ray)
    assert wait_until(lambda: len(list((folder / "out" / "images").rglob("*.png"))) >= 20), stopped.err.read_text()
    moved = re.compile(r"^[1-9]\d*/2000 images, .*\d+ not committed yet", re.M)
    assert wait_until(lambda: bool(moved.search(stopped.err.read_text()))), stopped.err.read_text()
    stopped.process.send_signal(signal.SIGTERM)
    assert stopped.wait() == 130, stopped.err.read_text()
    assert "images that have begun are finished and committed" in stopped.err.read_text()
    first = committed(folder)
    assert 20 <= first < 1000
    assert f"rendered   {first} images" in stopped.out.read_text()
    assert f"remaining  {2000 - first:,} images" in stopped.out.read_text()
    settings = ("--set", "render.stop_after=12s", "--set", "render.rows=32")
    timed = render(folder, *words, *settings, ray=shared_ray)
    assert timed.wait() == 0, timed.err.read_text()
    assert "the time of render.stop_after is over" in timed.err.read_text()
    assert "rows was 'auto' when the run began and is 32 now" in timed.err.read_text()
    both = committed(folder)
    assert f"remaining  {2000 - both:,} images" in timed.out.read_text()
    assert pq.read_metadata(folder / "out" / "metadata.parquet").num_rows == both
    assert not list((folder / "out" / "_darkroom" / "attempts").rglob("*.json"))


def test_a_launch_that_is_stopped_while_workers_load_says_so_too(folder: Path) -> None:
    """Ray Data has workers to make and nothing to give yet: what it goes on with must not end the process its way."""
    stopped = render(folder)
    assert wait_until(lambda: "loading the model" in stopped.err.read_text()), stopped.err.read_text()
    time.sleep(2.5)
    stopped.process.send_signal(signal.SIGINT)
    assert stopped.wait() == 130, stopped.err.read_text()
    assert "interrupted: what is committed stands" in stopped.err.read_text()


def test_failed_images_are_tried_again_when_asked_for(folder: Path, shared_ray: Mapping[str, str]) -> None:
    pq.write_table(pa.table({"prompt": [*PROMPTS[:4], "a failing circle"]}), folder / "m.parquet")
    assert render(folder, harmful=True).wait() == 3
    again = render(folder)
    assert again.wait() == 0
    assert "Nothing to render: all 5 images have an outcome in " in again.out.read_text()
    assert "failed     1 image in earlier launches; --retry-failed tries them again" in again.out.read_text()
    other = LaunchNote(
        launch_id="other", started_at="2026-01-01T00:00:00+00:00", alive_at="2999-01-01T00:00:00+00:00", planned=5,
        to_render=5,
    )  # fmt: skip
    write_note(LocalStore(folder / "out"), other)
    retried = render(folder, "--retry-failed", ray=shared_ray)
    assert retried.wait() == 0, retried.err.read_text()
    assert "warning: the launch other seems to be at work on this output too" in retried.err.read_text()
    assert "rendered   1 image " in retried.out.read_text()
    rows = pq.read_table(folder / "out" / "metadata.parquet").to_pylist()
    assert [row["attempt"] for row in rows] == [0, 0, 0, 0, 1]
    assert pq.read_table(folder / "out" / "failures.parquet").num_rows == 0
    note = json.loads(sorted((folder / "out" / "_darkroom" / "launches").glob("2*.json"))[-1].read_text())
    assert (note["retry_failed"], note["ok"]) == (True, 1)
