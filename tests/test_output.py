"""The commit and what is read back from it, on a real directory, with outcomes as the engine makes them."""

import io
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.errors import JobBrokenError, RunMismatchError, StoreUnavailableError
from pipeline.identity import RunConstants, ids_from_bytes, part_id
from pipeline.output.encode import pixel_sha256
from pipeline.output.finalize import finalize, one_per_task
from pipeline.output.index import load_index, write_segment
from pipeline.output.layout import Packing, part_prefix
from pipeline.output.part import PartWriter, RunFacts
from pipeline.output.run import (
    NumericsProfile,
    Run,
    check_same_packing,
    check_same_pixels,
    numerics_warnings,
    read_run,
    write_run,
)
from pipeline.planning.tasks import TASK_FIELDS
from pipeline.recipe import Recipe, RenderTask
from pipeline.rendering.results import Failed, Rendered
from pipeline.storage.base import ObjectStore
from pipeline.storage.local import LocalStore

FACTS = RunFacts(model_id="m", model_fingerprint="f" * 32, dtype="float32", darkroom_version="0")
START = datetime(2026, 1, 1, tzinfo=UTC)


def shard_of(*numbers: int) -> pa.Table:
    fields = [
        pa.field("prompt", pa.string()),
        pa.field("manifest_file", pa.string()),
        pa.field("manifest_row", pa.int64()),
    ]
    rows = [
        {
            "prompt": f"p{n}", "manifest_file": "m.parquet", "manifest_row": n, "task_id": bytes([n]) * 16, "seed": n,
            "guidance_scale": 2.0, "num_inference_steps": 5, "scheduler": "ddim", "width": 8, "height": 8,
            "evaluations": 10, "theme": "x",
        }
        for n in numbers
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=pa.schema([*fields, *TASK_FIELDS, pa.field("theme", pa.string())]))


def task(number: int) -> RenderTask:
    recipe = Recipe(
        prompt=f"p{number}", negative_prompt=None, seed=number, guidance_scale=2.0, num_inference_steps=5,
        scheduler="ddim", width=8, height=8,
    )  # fmt: skip
    return RenderTask(task_id=(bytes([number]) * 16).hex(), recipe=recipe)


def rendered(number: int, shade: int = 0) -> Rendered:
    pixels = np.full((8, 8, 3), number + shade, np.uint8)
    return Rendered(task=task(number), pixels=pixels, prompt_truncated=False, rows=16, render_s=0.1, device="cpu")


def failed(number: int) -> Failed:
    return Failed(task=task(number), stage="decode", verdict="nan_latents", error="NaN: no")


def commit(store: ObjectStore, *outcomes: Rendered | Failed, at: datetime = START, facts: RunFacts = FACTS) -> pa.Table:
    numbers = [outcome.task.recipe.seed for outcome in outcomes]
    writer = PartWriter(store, shard_of(*numbers), facts)
    for outcome in reversed(outcomes):
        writer.put(outcome, at)
    return writer.commit()


def test_a_part_names_what_is_there(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    table = commit(store, rendered(3), failed(4), rendered(5))
    assert table["status"].to_pylist() == ["ok", "failed", "ok"]
    assert table["theme"].to_pylist() == ["x"] * 3
    row = table.to_pylist()[0]
    picture = np.asarray(Image.open(io.BytesIO(store.get(row["file_name"]))))
    assert pixel_sha256(picture) == row["pixel_sha256"]
    assert row["file_name"].endswith(f"{row['task_id']}-{row['file_sha256'][:8]}.png")
    assert len(list(store.list(part_prefix(row["part_id"])))) == 1
    assert row["part_id"] == part_id([bytes([n]) * 16 for n in (3, 4, 5)])


def test_a_subset_is_a_part_of_its_own(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    writer = PartWriter(store, shard_of(1, 2, 3), FACTS)
    writer.put(rendered(2), START)
    assert writer.commit()["part_id"].to_pylist() == [part_id([bytes([2]) * 16])]
    assert writer.committed() is None
    again = PartWriter(store, shard_of(2), FACTS)
    done = again.committed()
    assert done is not None
    assert done.num_rows == 1


def test_nothing_is_committed_before_the_part_is_there(tmp_path: Path) -> None:
    class Dying(LocalStore):
        """Fails at its n-th put."""

        left = 0

        def put_file(self, key: str, file: BinaryIO) -> None:
            if self.left == 0:
                raise StoreUnavailableError("gone")
            self.left -= 1
            super().put_file(key, file)

    for survived in range(3):
        store = Dying(tmp_path / str(survived))
        store.left = survived
        with pytest.raises(StoreUnavailableError):
            commit(store, rendered(1), rendered(2))
        assert len(load_index(store).all()) == 0
        commit(LocalStore(tmp_path / str(survived)), rendered(1), rendered(2))
        assert len(load_index(store).ok) == 2


def test_index_with_and_without_segments(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    commit(store, rendered(1), failed(2))
    before = load_index(store)
    assert (len(before.ok), len(before.failed), len(before.uncovered)) == (1, 1, 1)
    write_segment(store, before)
    commit(store, rendered(2), rendered(3))
    after = load_index(store)
    assert (len(after.ok), len(after.failed), len(after.uncovered)) == (3, 0, 1)
    write_segment(store, after)
    assert load_index(store).uncovered == ()
    assert after.ok.contains(ids_from_bytes(bytes([2]) * 16 + bytes([9]) * 16)).tolist() == [True, False]


def test_a_broken_part_is_named(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    table = commit(store, rendered(1))
    (key,) = (info.key for info in store.list(part_prefix(table["part_id"][0].as_py())))
    store.put(key, store.get(key)[:50])
    with pytest.raises(JobBrokenError, match=key):
        load_index(store)


def test_finalize_has_one_row_a_task_in_manifest_order(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    commit(store, rendered(3), failed(2))
    commit(store, rendered(2), rendered(1), at=START + timedelta(seconds=1))
    commit(store, failed(3), failed(4))
    made = finalize(store)
    assert (made.ok, made.failed) == (3, 1)
    table = pq.read_table(tmp_path / "metadata.parquet")
    assert table["manifest_row"].to_pylist() == [1, 2, 3]
    first = (tmp_path / "metadata.parquet").read_bytes()
    finalize(store)
    assert (tmp_path / "metadata.parquet").read_bytes() == first
    assert pq.read_table(tmp_path / "failures.parquet")["manifest_row"].to_pylist() == [4]


def test_the_latest_ok_row_wins_then_the_smaller_part(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    old = commit(store, rendered(1))
    new = commit(store, rendered(1, shade=7), rendered(2), at=START + timedelta(seconds=5))
    for rows in (pa.concat_tables([old, new]), pa.concat_tables([new, old])):
        kept = {row["task_id"]: row for row in one_per_task(rows).to_pylist()}
        assert len(kept) == 2
        assert kept[task(1).task_id]["created_at"] == START + timedelta(seconds=5)


RUN = Run(
    model_id="m",
    model_revision=None,
    constants=RunConstants(model_fingerprint="a" * 32, dtype="float32", scheduler_config={"steps_offset": 1}),
    numerics=NumericsProfile(rows=16, compiled=False, threads=1, device="cpu", versions={"torch": "2"}),
    job={"manifest": "m.parquet"},
    created_at="",
    darkroom_version="0",
)


def test_a_run_refuses_other_pixels_and_says_why(tmp_path: Path) -> None:
    store, run = LocalStore(tmp_path), replace(RUN, packing=Packing(layout="webdataset"))
    assert read_run(store) is None
    write_run(store, run)
    assert read_run(store) == run
    check_same_pixels(run, run.constants, "here")
    other = RunConstants(model_fingerprint="a" * 32, dtype="float16", scheduler_config={"steps_offset": 0})
    with pytest.raises(RunMismatchError) as caught:
        check_same_pixels(run, other, "here")
    assert "dtype: the run has 'float32', this job 'float16'" in str(caught.value)
    assert "scheduler_config.steps_offset: the run has 1, this job 0" in str(caught.value)
    (warning,) = numerics_warnings(
        run, NumericsProfile(rows=16, compiled=False, threads=1, device="cpu", versions={"torch": "3"})
    )
    assert "versions.torch was '2'" in warning


@pytest.mark.parametrize(
    ("ours", "theirs", "says"),
    [
        (Packing(), Packing(layout="parquet"), "output.layout: the run has 'files', this job 'parquet'"),
        (Packing(), Packing(format="webp"), "output.format: the run has 'png', this job 'webp'"),
        (
            Packing(format="jpeg", jpeg_quality=95),
            Packing(format="jpeg", jpeg_quality=80),
            "output.jpeg_quality: the run has 95, this job 80",
        ),
    ],
)
def test_a_run_refuses_another_packing(ours: Packing, theirs: Packing, says: str) -> None:
    run = replace(RUN, packing=ours)
    check_same_packing(run, ours, "here")
    with pytest.raises(RunMismatchError, match=says):
        check_same_packing(run, theirs, "here")


def test_the_same_tasks_with_other_bytes_are_another_part(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    commit(store, failed(1), rendered(2))
    commit(store, rendered(1), rendered(2), at=START + timedelta(hours=1))
    assert len(list(store.list("metadata/"))) == 2
    assert (len(load_index(store).ok), len(load_index(store).failed)) == (2, 0)
    assert (finalize(store).ok, finalize(store).failed) == (2, 0)


def with_extra(store: LocalStore, number: int, name: str, value: object) -> None:
    shard = shard_of(number).append_column(name, pa.array([value]))
    writer = PartWriter(store, shard, FACTS)
    writer.put(rendered(number), START)
    writer.commit()


@pytest.mark.parametrize(
    ("values", "expected"),
    [([1, 2.5], [1.0, 2.5]), ([1, "x"], ["1", "x"]), ([[1], "x"], ["[1]", "x"]), ([None, 3], [None, 3])],
)
def test_an_extra_column_may_change_its_type(tmp_path: Path, values: list[object], expected: list[object]) -> None:
    store = LocalStore(tmp_path)
    for number, value in enumerate(values):
        with_extra(store, number, "score", value)
    finalize(store)
    assert pq.read_table(tmp_path / "metadata.parquet")["score"].to_pylist() == expected


@pytest.mark.parametrize("name", ["_failed", "failed", "number", "_number"])
def test_extra_columns_may_have_any_name(tmp_path: Path, name: str) -> None:
    store = LocalStore(tmp_path)
    with_extra(store, 1, name, "kept")
    finalize(store)
    assert pq.read_table(tmp_path / "metadata.parquet")[name].to_pylist() == ["kept"]


def test_a_part_that_is_cut_short_is_named(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    commit(store, rendered(1))
    (part,) = store.list("metadata/")
    store.put(part.key, store.get(part.key)[:100])
    for read in (load_index, finalize):
        with pytest.raises(JobBrokenError, match=part.key):
            read(store)


@pytest.mark.parametrize("text", ["[]", '{"version": 1}', "{", '{"version": 2}', "null"])
def test_a_run_file_that_is_none(tmp_path: Path, text: str) -> None:
    store = LocalStore(tmp_path)
    store.put("_darkroom/run.json", text.encode())
    with pytest.raises(RunMismatchError, match=r"run\.json"):
        read_run(store)
