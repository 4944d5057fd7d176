"""Who asked for which picture, from manifests whose rows overlap to ``requests.parquet``."""

import os
import time
from collections.abc import Iterator, Mapping
from datetime import UTC, date, datetime
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import load_job
from pipeline.distributed.launch import LaunchOptions, launch
from pipeline.errors import JobBrokenError
from pipeline.identity import RunConstants
from pipeline.model.fingerprint import DigestCache, fingerprint
from pipeline.output import requests as stored
from pipeline.output.finalize import finalize
from pipeline.output.index import load_index
from pipeline.output.layout import REQUESTS_PREFIX
from pipeline.output.mending import drop_damaged
from pipeline.output.part import PartWriter, RunFacts
from pipeline.output.requests import united_requests, write_requests
from pipeline.output.run import NumericsProfile, Run, write_run
from pipeline.output.schema import METADATA_SCHEMA
from pipeline.output.verify import verify
from pipeline.planning.count import count
from pipeline.planning.grids import Axes
from pipeline.planning.requests import REQUEST_COLUMNS, requests
from pipeline.planning.rows import Numbered, keep_rows
from pipeline.planning.selection import Selection, first_tasks, sample_tasks
from pipeline.planning.tasks import Space, plan_batch
from pipeline.prepare import Prepared, numbered_batches, prepare, select
from pipeline.recipe import Recipe, RenderTask
from pipeline.rendering.results import Failed, Rendered
from pipeline.storage.base import ObjectStore
from pipeline.storage.local import LocalStore
from pipeline.storage.location import open_store
from pipeline.storage.s3_settings import S3Settings
from tests.planning.plain import (
    FAMILY,
    Cells,
    axes_strategy,
    batches,
    plain_tasks,
    planned_ids,
    rows_strategy,
    space,
)
from tests.test_end_to_end import Darkroom
from tests.test_verify import TAMPERING

TABLE = "requests.parquet"
FACTS = RunFacts(model_id="shapes", model_fingerprint="f" * 32, dtype="float32", darkroom_version="0")
Said = set[tuple[int, str, int, str]]
"""Of each request the manifest row, the prompt of the picture that answers it, the seed, the status."""


@given(rows_strategy, axes_strategy, st.sampled_from(["all", "limit", "sample"]), st.integers(1, 30), st.data())
def test_requests_are_those_of_the_plain_loops(
    rows: Cells, axes: Axes, kind: str, size: int, data: st.DataObject
) -> None:
    unusable = np.array(sorted(data.draw(st.sets(st.integers(0, len(rows) - 1), max_size=len(rows) - 1))), np.int64)

    def usable() -> Iterator[Numbered]:
        return (keep_rows(numbered, ~np.isin(numbered[1], unusable)) for numbered in batches(rows))

    found = count(usable, axes, FAMILY)
    selection = Selection(skipped=np.union1d(unusable, found.repeated), repeats=found.repeats)
    if kind == "limit":
        selection = first_tasks(batches(rows), axes, FAMILY, selection, size)
    if kind == "sample":
        selection = sample_tasks(batches(rows), axes, FAMILY, selection, found.amount.images, size)
    selected = set(planned_ids(rows, axes, selection))
    tables = list(requests(lambda: batches(rows), space(axes), selection, unusable))
    asked = [(row["manifest_row"], row["task_id"].hex()) for table in tables for row in table.to_pylist()]
    assert asked == [
        (task.row, task.task_id)
        for task in plain_tasks(rows, axes)
        if task.row not in unusable and task.task_id in selected
    ]
    assert all(table.column_names == list(REQUEST_COLUMNS) for table in tables)


class Studio:
    """An output of the built-in model. Its pictures are made here, so that ``launch`` has none to render."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.store = folder, LocalStore(folder / "out")

    def job(self, rows: list[str] | list[dict[str, Any]], seeds: str = "0-1", name: str = "m.parquet") -> Prepared:
        cells = [row if isinstance(row, dict) else {"prompt": row} for row in rows]
        pq.write_table(pa.Table.from_pylist(cells), self.folder / name, row_group_size=3)
        keys = {"manifest": str(self.folder / name), "output.uri": self.store.uri, "sweep.seeds": seeds}
        return prepare(load_job(None, list(keys.items()), date(2026, 1, 1)))

    def space(self, prepared: Prepared) -> Space:
        return Space(axes=prepared.axes, family=prepared.model.family, run_digest=self.constants(prepared).digest())

    def constants(self, prepared: Prepared) -> RunConstants:
        return prepared.constants(fingerprint(prepared.source.folder(), DigestCache(self.folder)), "float32")

    def render(self, prepared: Prepared, fails: str = "", only: str = "", limit: int | None = None) -> None:
        """Commit what is missing; prompts that have ``fails`` in them fail."""
        numerics = NumericsProfile(rows=8, compiled=False, threads=1, device="cpu", versions={})
        run = Run(
            model_id="shapes", model_revision=None, constants=self.constants(prepared), numerics=numerics, job={},
            created_at="", darkroom_version="0",
        )  # fmt: skip
        write_run(self.store, run)
        selection, done = select(prepared, limit=limit, sample=None), load_index(self.store).all()
        for numbered in numbered_batches(prepared.manifest):
            for shard in plan_batch(numbered, self.space(prepared), selection, done):
                self._commit(shard, fails, only)

    def _commit(self, shard: pa.Table, fails: str, only: str) -> None:
        part = PartWriter(self.store, shard, FACTS)
        for row in shard.select(["task_id", *Recipe.__dataclass_fields__]).to_pylist():
            task = RenderTask(task_id=row.pop("task_id").hex(), recipe=Recipe(**row))
            if only not in task.recipe.prompt:
                continue
            failed = fails and fails in task.recipe.prompt
            part.put(_failed(task) if failed else _rendered(task), datetime.now(UTC))
        part.commit()

    def launch(self, prepared: Prepared, limit: int | None = None) -> None:
        report = launch(prepared, LaunchOptions(address=None, cache_folder=self.folder, limit=limit), print, print)
        assert report.workers == 0

    def rendered(self, rows: list[str] | list[dict[str, Any]], seeds: str = "0-1", name: str = "m.parquet") -> Said:
        """A whole launch."""
        prepared = self.job(rows, seeds, name)
        self.render(prepared)
        self.launch(prepared)
        return self.table()

    def table(self) -> Said:
        """What ``requests.parquet`` says, joined with the pictures' own metadata."""
        asked = pq.read_table(self.folder / "out" / TABLE).to_pylist()
        tables = [pq.read_table(path) for path in (self.folder / "out").glob("*s.parquet") if path.name != TABLE]
        tables.append(pq.read_table(self.folder / "out" / "metadata.parquet"))
        pictures = {row["task_id"]: row for table in tables for row in table.to_pylist()}
        for row in asked:
            picture = pictures.get(row["task_id"])
            assert row["status"] == (picture["status"] if picture else "missing")
            point = ("seed", "guidance_scale", "num_inference_steps", "scheduler", "width", "height", "file_name")
            assert picture is None or [row[name] for name in point] == [picture[name] for name in point]
        keys = [tuple(row[name] for name in stored.ORDER) for row in asked]
        assert keys == sorted(set(keys))
        prompt = {row["task_id"]: pictures[row["task_id"]]["prompt"] for row in asked if row["task_id"] in pictures}
        return {(r["manifest_row"], prompt.get(r["task_id"], "?"), r["seed"], r["status"]) for r in asked}

    def objects(self) -> dict[str, datetime]:
        return {info.key: info.modified for info in self.store.list(REQUESTS_PREFIX)}


def _rendered(task: RenderTask) -> Rendered:
    pixels = np.zeros((8, 8, 3), np.uint8)
    return Rendered(task=task, pixels=pixels, prompt_truncated=False, rows=8, render_s=0.1, device="cpu")


def _failed(task: RenderTask) -> Failed:
    return Failed(task=task, stage="decode", verdict="error", error="no")


def asked_by(prompts: str, seeds: int = 2, status: str = "ok") -> Said:
    """Every row with every seed."""
    return {(row, prompt, seed, status) for row, prompt in enumerate(prompts) for seed in range(seeds)}


@pytest.fixture
def studio(tmp_path: Path) -> Studio:
    return Studio(tmp_path)


def test_rows_repeated_in_whole_and_in_part(studio: Studio) -> None:
    rows = [{"prompt": p, "seeds": s} for p, s in (("a", None), ("b", None), ("a", None), ("a", [1, 5]), ("a", [0]))]
    assert studio.rendered(rows) == asked_by("aba") | {(3, "a", 1, "ok"), (3, "a", 5, "ok"), (4, "a", 0, "ok")}
    assert pq.read_table(studio.folder / "out" / "metadata.parquet").num_rows == 5


def test_the_table_has_the_columns_of_the_docs(studio: Studio) -> None:
    studio.rendered(["a", "a"])
    table = pq.read_table(studio.folder / "out" / TABLE)
    assert table.column_names == [*REQUEST_COLUMNS, "status", "file_name"]
    assert [table.schema.field(name) for name in REQUEST_COLUMNS] == [METADATA_SCHEMA.field(n) for n in REQUEST_COLUMNS]
    assert table["prompt_id"].to_pylist() == ["m:0", "m:0", "m:1", "m:1"]
    docs = (Path(__file__).parent.parent / "docs" / "operations.md").read_text()
    assert all(f"`{name}`" in docs for name in table.column_names)


def test_without_repeats_there_is_no_table(studio: Studio) -> None:
    prepared = studio.job(["a", "b"])
    studio.render(prepared)
    studio.launch(prepared)
    assert not studio.objects()
    assert not (studio.folder / "out" / TABLE).exists()


def test_a_manifest_that_grows_by_repeats_alone(studio: Studio) -> None:
    studio.render(studio.job(["a", "b"]))
    grown = studio.job(["a", "b", "b", "a"])
    studio.launch(grown)
    assert studio.table() == asked_by("abba")


def test_a_wider_and_a_narrower_sweep_are_one_table(studio: Studio) -> None:
    studio.rendered(["a", "a", "b"])
    assert studio.rendered(["a", "a", "b"], seeds="0-3") == asked_by("aab", seeds=4)
    assert studio.rendered(["a", "a", "b"], seeds="2-2") == asked_by("aab", seeds=4)


def test_a_failed_picture_answers_all_who_asked(studio: Studio) -> None:
    prepared = studio.job(["a", "b", "a"])
    studio.render(prepared, fails="a")
    studio.launch(prepared)
    ok = {(1, "b", 0, "ok"), (1, "b", 1, "ok")}
    assert studio.table() == ok | {(row, "a", seed, "failed") for row in (0, 2) for seed in (0, 1)}


def test_a_launch_that_was_cut_short(studio: Studio) -> None:
    prepared = studio.job(["a", "b", "a"])
    every = select(prepared, limit=None, sample=None)
    read = partial(numbered_batches, prepared.manifest)
    write_requests(studio.store, requests(read, studio.space(prepared), every, prepared.rejected_rows))
    finalize(studio.store)
    assert {status for *_, status in studio.table()} == {"missing"}
    studio.render(prepared, only="b")
    finalize(studio.store)
    assert studio.table() >= {(1, "b", 0, "ok"), (0, "?", 1, "missing"), (2, "?", 1, "missing")}
    studio.render(prepared)
    studio.launch(prepared)
    assert studio.table() == asked_by("aba")


def test_the_same_launch_again_writes_nothing_new(studio: Studio, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stored, "OBJECT_ROWS", 3)
    first = studio.rendered(["a", "a", "b", "c"])
    objects, table = studio.objects(), (studio.folder / "out" / TABLE).read_bytes()
    assert len(objects) == 3
    assert studio.rendered(["a", "a", "b", "c"]) == first == asked_by("aabc")
    assert studio.objects() == objects
    assert (studio.folder / "out" / TABLE).read_bytes() == table
    monkeypatch.setattr("pipeline.manifest.read.BATCH_ROWS", 1)
    studio.rendered(["a", "a", "b", "c"])
    assert studio.objects() == objects
    assert studio.rendered(["a", "a", "b", "c", "b"]) == asked_by("aabcb")
    assert len(studio.objects()) == 5, "the first two are the same, the third was not full"


def test_a_limit_asks_for_its_pictures_in_every_row(studio: Studio) -> None:
    prepared = studio.job(["a", "b", "a", "b"])
    studio.render(prepared, limit=3)
    studio.launch(prepared, limit=3)
    assert studio.table() == asked_by("abab") - {(1, "b", 1, "ok"), (3, "b", 1, "ok")}


def test_a_limit_where_rows_overlap_only_in_part(studio: Studio) -> None:
    prepared = studio.job([{"prompt": "a", "seeds": [0]}, {"prompt": "a", "seeds": [0, 1]}])
    assert not len(prepared.count.repeated)
    studio.render(prepared, limit=1)
    studio.launch(prepared, limit=1)
    assert studio.table() == {(0, "a", 0, "ok"), (1, "a", 0, "ok")}


def test_a_limit_that_no_repeat_is_within(studio: Studio) -> None:
    prepared = studio.job(["a", "b", "b"])
    studio.render(prepared, limit=2)
    studio.launch(prepared, limit=2)
    assert not (studio.folder / "out" / TABLE).exists()


def test_a_manifest_edited_in_place(studio: Studio) -> None:
    assert studio.rendered(["a", "a", "b"]) == asked_by("aab")
    mended = asked_by("abc")
    assert studio.rendered(["a", "b", "c"]) == mended, "without repeats, and yet other rows than before"
    assert studio.rendered(["a", "a", "b"]) == asked_by("aab"), "as it was at first"
    assert studio.rendered(["a", "b"]) == asked_by("abb"), "what was once asked for stays"


def test_earlier_launches_without_repeats_are_in_the_table(studio: Studio) -> None:
    studio.render(studio.job(["a", "b"]))
    studio.rendered(["b", "c", "c"], name="n.parquet")
    table = pq.read_table(studio.folder / "out" / TABLE)
    asked = {(row["manifest_file"], row["manifest_row"]) for row in table.to_pylist()}
    assert asked == {("m.parquet", 0), ("m.parquet", 1), ("n.parquet", 0), ("n.parquet", 1), ("n.parquet", 2)}


@pytest.mark.parametrize("kind", ["cut short", "other columns", "nonsense"])
def test_a_broken_object_is_named(studio: Studio, kind: str) -> None:
    studio.rendered(["a", "a"])
    (key,) = studio.objects()
    body = studio.store.get(key)
    pq.write_table(pa.table({"prompt": ["a"]}), studio.folder / "other.parquet")
    others = {"cut short": body[:100], "other columns": (studio.folder / "other.parquet").read_bytes()}
    studio.store.put(key, others.get(kind, b"PAR1" + bytes(100) + b"PAR1"))
    with pytest.raises(JobBrokenError, match=key):
        finalize(studio.store)


@pytest.mark.parametrize("how", ["flip a byte", "cut the end", "append", "delete"])
def test_a_damaged_object_is_found_dropped_and_written_again(studio: Studio, how: str) -> None:
    rows = ["a", "b", "a"]
    studio.rendered(rows)
    (key,) = studio.objects()
    body = studio.store.get(key)
    TAMPERING[how](studio.store, key)
    found = verify(studio.store)
    assert {fault.key: fault.what for fault in found.faults} == {key: "missing" if how == "delete" else "corrupt"}
    assert found.damage.requests == (key,)
    assert drop_damaged(studio.store, found.damage) == 0
    finalize(studio.store, reread=True)
    assert not verify(studio.store).faults
    assert not studio.objects()
    studio.launch(studio.job(rows))
    assert studio.table() == asked_by("aba")
    assert studio.store.get(key) == body
    TAMPERING[how](studio.store, key)
    studio.launch(studio.job(rows))
    assert studio.store.get(key) == body, "without having been dropped"
    assert not verify(studio.store).faults


def asking(*rows: tuple[int, int, float | None]) -> pa.Table:
    """Requests, given rows, tasks and guidance scales."""
    numbers, tasks, scales = zip(*rows, strict=True)
    n = len(rows)
    columns = [
        ["m"] * n, numbers, [None] * n, [0] * n, scales, [1] * n, ["ddim"] * n, [8] * n, [8] * n,
        [bytes([task]) * 16 for task in tasks],
    ]  # fmt: skip
    types = [METADATA_SCHEMA.field(name).type for name in REQUEST_COLUMNS[:-1]] + [pa.binary(16)]
    return pa.table([pa.array(c, t) for c, t in zip(columns, types, strict=True)], names=REQUEST_COLUMNS)


VERSIONS = [asking((0, 1, 1.0), (1, 1, 1.0)), asking((0, 2, 1.0), (1, 2, 1.0))]
"""Of one manifest: two rows, answered by task 1, then by task 2."""


def test_models_without_guidance(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    write_requests(store, [asking((0, 1, None), (0, 2, 1.0), (1, 1, None))])
    write_requests(store, [asking((0, 3, None), (2, 1, None))])
    table = united_requests(store, METADATA_SCHEMA.empty_table())
    assert table is not None
    answers = zip(*(table[name].to_pylist() for name in ("manifest_row", "guidance_scale", "task_id")), strict=True)
    assert [(row, scale, int(task[:2])) for row, scale, task in answers] == [
        (0, 1.0, 2), (0, None, 3), (1, None, 1), (2, None, 1),
    ]  # fmt: skip


def answered(store: ObjectStore) -> set[int]:
    table = united_requests(store, METADATA_SCHEMA.empty_table())
    assert table is not None
    return {int(task[:2]) for task in table["task_id"].to_pylist()}


def test_the_latest_counts_among_objects_of_one_time(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    for version in VERSIONS:
        write_requests(store, [version])
    for path in tmp_path.rglob("*.parquet"):
        os.utime(path, (1, 1))
    for number, version in enumerate(VERSIONS, start=1):
        write_requests(store, [version])
        assert answered(store) == {number}


def test_a_server_that_knows_seconds(s3_bucket: str) -> None:
    store: ObjectStore = open_store(f"s3://{s3_bucket}/run", S3Settings())
    for number in (1, 2, 1):
        write_requests(store, [VERSIONS[number - 1]])
        assert answered(store) == {number}
        time.sleep(1.1)
    assert len(list(store.list(REQUESTS_PREFIX))) == 2


def test_from_the_command_to_the_table(tmp_path: Path, shared_ray: Mapping[str, str]) -> None:
    rows = [{"prompt": "a red circle", "scheduler": None}, {"prompt": "a blue star", "scheduler": None}] * 2
    rows += [{"prompt": "a red circle", "scheduler": "ddpm:timesteps=2000/5"}] * 2  # it cannot start there
    pq.write_table(pa.Table.from_pylist(rows), tmp_path / "m.parquet")
    words = ("--manifest", "m.parquet", "--seeds", "0-1", "--steps", "2", "-o", "out")
    assert "rendered   4 images" in Darkroom(tmp_path, shared_ray).run("render", *words, code=3)
    table = pq.read_table(tmp_path / "out" / TABLE)
    assert table["manifest_row"].to_pylist() == [row for row in range(6) for _ in range(2)]
    assert table["status"].to_pylist() == ["ok"] * 8 + ["failed"] * 4
    files = table["file_name"].to_pylist()
    assert files[:4] == files[4:8]
    assert all((tmp_path / "out" / name).exists() for name in files[:8])
    (tmp_path / "out" / TABLE).unlink()
    finalize(LocalStore(tmp_path / "out"))
    assert pq.read_table(tmp_path / "out" / TABLE).equals(table)
