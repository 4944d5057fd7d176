"""What an output is bound to, and what a launch that computes otherwise is told."""

import json
from dataclasses import replace
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import load_job
from pipeline.distributed.binding import bind, find_model
from pipeline.distributed.launch import LaunchOptions, launch
from pipeline.distributed.spec import Device, Pool
from pipeline.errors import RunMismatchError
from pipeline.output.run import Run, read_run
from pipeline.prepare import Prepared, prepare
from pipeline.rendering.determinism import SETTINGS
from pipeline.storage.local import LocalStore
from tests.test_output import commit, rendered

CPU = Device(name="cpu", memory_bytes=None)


@pytest.fixture
def prepared(tmp_path: Path) -> Prepared:
    pq.write_table(pa.table({"prompt": ["a red circle"]}), tmp_path / "m.parquet")
    return prepare(load_job(None, [("manifest", str(tmp_path / "m.parquet"))], date(2026, 1, 1)))


def bound(prepared: Prepared, store: LocalStore, cache: Path, cpus: int) -> list[str]:
    """Binds a launch with so many threads per worker; returns what was said."""
    said: list[str] = []
    known = read_run(store)
    model = find_model(prepared, known, cache, said.append)
    bind(store, known, known, prepared, model, Pool(workers=1, gpus=0, cpus=cpus), CPU, said.append)
    return [sentence for sentence in said if sentence.startswith("warning")]


def test_other_threads_are_warned_about_or_refused(prepared: Prepared, tmp_path: Path) -> None:
    store, cache = LocalStore(tmp_path / "out"), tmp_path / "cache"
    assert bound(prepared, store, cache, cpus=1) == []
    assert bound(prepared, store, cache, cpus=1) == []
    (warning,) = bound(prepared, store, cache, cpus=2)
    assert "threads was 1 when the run began and is 2 now" in warning
    strict = prepared.job.render.model_copy(update={"strict_numerics": True})
    prepared = replace(prepared, job=prepared.job.model_copy(update={"render": strict}))
    assert bound(prepared, store, cache, cpus=1) == []
    with pytest.raises(RunMismatchError, match="threads was 1") as caught:
        bound(prepared, store, cache, cpus=2)
    assert "strict_numerics" in str(caught.value)


def test_a_run_of_the_former_engine_goes_on_with_one_warning_or_not_at_all(prepared: Prepared, tmp_path: Path) -> None:
    store, cache = LocalStore(tmp_path / "out"), tmp_path / "cache"
    assert bound(prepared, store, cache, cpus=1) == []
    stored = json.loads(store.get("_darkroom/run.json"))
    assert stored["numerics"]["engine"] == 2
    for name in (*SETTINGS, "engine"):  # as the former version wrote it
        del stored["numerics"][name]
    store.put("_darkroom/run.json", json.dumps(stored).encode())
    (warning,) = bound(prepared, store, cache, cpus=1)
    assert "began with version 1 of the engine and goes on with version 2" in warning
    assert len(bound(prepared, store, cache, cpus=2)) == 2
    strict = prepared.job.render.model_copy(update={"strict_numerics": True})
    prepared = replace(prepared, job=prepared.job.model_copy(update={"render": strict}))
    with pytest.raises(RunMismatchError, match="version 1 of the engine"):
        bound(prepared, store, cache, cpus=1)
    assert json.loads(store.get("_darkroom/run.json")) == stored, "the first launch's profile stays"


def test_rows_by_image_size_stay_those_of_the_first_gpu(prepared: Prepared, tmp_path: Path) -> None:
    store, model = LocalStore(tmp_path / "out"), find_model(prepared, None, tmp_path / "cache", print)
    for gib in (80, 8):
        gpu = Device(name="a GPU", memory_bytes=gib * 2**30)
        run = bind(store, None, read_run(store), prepared, model, Pool(workers=1, gpus=1, cpus=1), gpu, print)
        rows = run.batch_rows(prepared.model.family)
        assert [rows(side, side) for side in (512, 1024, 2048)] == [64, 16, 4]


def with_dtype(prepared: Prepared, dtype: str) -> Prepared:
    model = prepared.job.model.model_copy(update={"dtype": dtype})
    return replace(prepared, job=prepared.job.model_copy(update={"model": model}))


def test_a_launch_that_bound_the_output_meanwhile_is_obeyed(prepared: Prepared, tmp_path: Path) -> None:
    store, model = LocalStore(tmp_path / "out"), find_model(prepared, None, tmp_path / "cache", print)

    def bind_as(job: Prepared, seen: Run | None) -> Run:
        return bind(store, seen, None, job, model, Pool(workers=1, gpus=0, cpus=1), CPU, print)

    first = bind_as(prepared, None)
    assert bind_as(prepared, None).created_at == first.created_at
    with pytest.raises(RunMismatchError, match="dtype: the run has 'float32', this job 'bfloat16'"):
        bind_as(with_dtype(prepared, "bfloat16"), None)
    # What stood there before and made nothing is replaced.
    assert bind_as(with_dtype(prepared, "bfloat16"), read_run(store)).constants.dtype == "bfloat16"


def with_license(prepared: Prepared, store: LocalStore, license_id: str | None) -> Prepared:
    output = prepared.job.output.model_copy(update={"uri": store.uri, "license": license_id})
    return replace(prepared, job=prepared.job.model_copy(update={"output": output}))


def test_a_later_launch_may_name_another_license(prepared: Prepared, tmp_path: Path) -> None:
    """Also one that has nothing to render."""
    store, options = LocalStore(tmp_path / "out"), LaunchOptions(address=None, cache_folder=tmp_path / "cache", limit=0)
    bound(with_license(prepared, store, "mit"), store, tmp_path / "cache", cpus=1)
    commit(store, rendered(1))
    for named, stated in ((None, "mit"), ("cc-by-4.0", "cc-by-4.0"), (None, "cc-by-4.0")):
        launch(with_license(prepared, store, named), options, print, lambda _: None)
        assert f"\nlicense: {stated}\n" in store.get("README.md").decode()
