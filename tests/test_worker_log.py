"""What workers write to their logs, and the list of what a launch added."""

import io
import json
import logging
from collections.abc import Iterator
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.distributed.added import COLUMNS, Added
from pipeline.distributed.worker_log import LOGGER, Lines, WorkerLog
from pipeline.storage.location import open_store

IDENTITY = {"job": "01000000", "launch": "l", "node": "n", "worker": "host:1"}


@pytest.fixture(autouse=True)
def own_handlers() -> Iterator[None]:
    """Each test has a standard error of its own."""
    yield
    logger = logging.getLogger(LOGGER)
    for handler in [*logger.handlers]:
        if isinstance(handler, Lines):
            logger.removeHandler(handler)


def test_one_line_of_json_for_each_event(capsys: pytest.CaptureFixture[str]) -> None:
    for _ in range(2):  # a worker that Ray starts again in the same process
        log = WorkerLog(IDENTITY)
    log.ready(device="cpu", rows=8, seconds=1.23456)
    log.shard("ab12", images=7, failed=1, seconds=2.0)
    out, err = capsys.readouterr()
    ready, shard = (json.loads(line) for line in err.splitlines())
    assert out == ""
    assert IDENTITY.items() <= ready.items() & shard.items()
    assert (ready["event"], ready["seconds"], ready["level"]) == ("ready", 1.235, "info")
    assert (shard["event"], shard["part"], shard["images"], shard["failed"]) == ("shard", "ab12", 7, 1)


def test_no_credential_and_one_line_whatever_the_error_says(capsys: pytest.CaptureFixture[str]) -> None:
    WorkerLog(IDENTITY).broken("cannot read https://user:hunter2@host/x?token=hunter3\nand more\n", "ab")
    (line,) = capsys.readouterr().err.splitlines()
    assert "hunter" not in line
    assert json.loads(line)["reason"].startswith("cannot read https://…@host/x")
    assert json.loads(line)["level"] == "error"


def outcomes(ids: list[str], status: str = "ok", manifest: str = "a.parquet") -> pa.Table:
    rows = [
        {
            "task_id": name, "file_name": f"images/{name}.png" if status == "ok" else None, "status": status,
            "prompt_id": "p", "manifest_file": manifest, "manifest_row": 0, "evaluations": 3,
        }
        for name in ids
    ]  # fmt: skip
    return pa.Table.from_pylist(rows)


def test_the_list_of_what_was_added(tmp_path: Path) -> None:
    store = open_store(str(tmp_path))
    with Added() as added:
        added.take(outcomes(["1", "2"]))
        added.take(outcomes(["3"], "failed"))
        added.take(outcomes(["4"], manifest="b.parquet"))
        added.take(outcomes(["5"]).slice(0, 0))
        key = added.store(store, "launch")
    assert key == "_darkroom/added/launch.parquet"
    table = pq.read_table(io.BytesIO(store.get(key)))
    assert tuple(table.column_names) == COLUMNS
    assert table["task_id"].to_pylist() == ["1", "2", "3", "4"]
    assert table["status"].to_pylist() == ["ok", "ok", "failed", "ok"]
    assert added.by_manifest == {"a.parquet": 2, "b.parquet": 1}


def test_nothing_added_is_no_list(tmp_path: Path) -> None:
    with Added() as added:
        assert added.store(open_store(str(tmp_path)), "launch") is None
    assert not list(tmp_path.iterdir())


def test_long_lists_are_written_as_they_come(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("pipeline.distributed.added._GATHERED", 2)
    store = open_store(str(tmp_path))
    with Added() as added:
        for number in range(7):
            added.take(outcomes([str(number)]))
        key = added.store(store, "launch")
    assert key is not None
    file = pq.ParquetFile(io.BytesIO(store.get(key)))
    assert file.metadata.num_row_groups == 4
    assert file.read()["task_id"].to_pylist() == [str(number) for number in range(7)]
