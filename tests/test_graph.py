"""One wave through a real Ray, in this process: what reaches the driver when workers cannot do their work."""

import time
from collections.abc import Iterator, Sequence
from dataclasses import replace
from datetime import date
from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from pipeline.config import WorkersSection, load_job
from pipeline.distributed import draining, stopping, worker
from pipeline.distributed.added import Added
from pipeline.distributed.board import make_board
from pipeline.distributed.cluster import pool_of
from pipeline.distributed.graph import run_wave
from pipeline.distributed.launch import LaunchOptions, launch
from pipeline.distributed.shards import ShardPlan
from pipeline.distributed.spec import Pool, WorkerSpec
from pipeline.distributed.stopping import Stop
from pipeline.distributed.waves import Waves, Work
from pipeline.distributed.worker import RenderWorker
from pipeline.errors import DarkroomError, JobBrokenError, JobFileError, ModelError, StoreDeniedError
from pipeline.identity import IdSet
from pipeline.model.fingerprint import DigestCache, fingerprint
from pipeline.model.resolve import ModelSource
from pipeline.model.rows import BatchRows
from pipeline.output.part import RunFacts
from pipeline.planning.amount import Amount
from pipeline.planning.selection import Selection
from pipeline.planning.shards import ShardSize
from pipeline.planning.tasks import Space
from pipeline.prepare import prepare
from pipeline.storage.local import LocalStore
from pipeline.storage.s3_settings import S3Settings
from tests.faults.launched import wait_until

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own, of Ray's own settings


POOL = Pool(workers=1, gpus=0, cpus=1)


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """Four logical CPUs and one logical GPU, which no worker here really uses."""
    ray.init(
        address="local", num_cpus=4, num_gpus=1, include_dashboard=False, _node_ip_address="127.0.0.1",
        log_to_driver=False, logging_level="ERROR",
    )  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture
def wave(tmp_path: Path, local_ray: None) -> tuple[ShardPlan, WorkerSpec]:
    pq.write_table(pa.table({"prompt": ["a red circle", "a blue star"]}), tmp_path / "m.parquet")
    job = load_job(None, [("manifest", str(tmp_path / "m.parquet")), ("sweep.num_inference_steps", [1])], date.today())
    prepared = prepare(job)
    folder = prepared.source.folder()
    found = fingerprint(folder, DigestCache(tmp_path / "digests"))
    facts = RunFacts(model_id="shapes", model_fingerprint=found, dtype="float32", darkroom_version="0")
    spec = WorkerSpec(
        model=prepared.source.pinned(), facts=facts, output_uri=str(tmp_path / "out"), s3=S3Settings(), device="cpu",
        rows=BatchRows(fixed=4, family=prepared.model.family, dtype="float32", device_bytes=None),
        compiled=False, call={}, threads=1, cache_folder=tmp_path / "digests",
        launch_id="launch", watchdog_s=600.0,
    )  # fmt: skip
    space = Space(axes=prepared.axes, family=prepared.model.family, run_digest=b"\0" * 16)
    size = ShardSize(megapixel_evaluations=0.0, min_images=1, max_images=1)
    return ShardPlan(
        manifest=prepared.manifest, space=space, selection=Selection(), sizes=dict.fromkeys(prepared.count.sizes, size)
    ), spec


class LateWorker(RenderWorker):
    """Its machine is given the model the second time that it asks for it; it soon asks again."""

    def __init__(self, spec: WorkerSpec) -> None:
        worker.FIRST_PAUSE_S = 0.1  # in the worker's process alone
        super().__init__(spec)

    def _files(self, spec: WorkerSpec) -> tuple[Path, Sequence[tuple[Path, float]], str]:
        tried = spec.cache_folder / "tried"
        with tried.open("a") as file:
            file.write("x")
        if len(tried.read_text()) < 2:
            raise ModelError("the Hub did not give it: 429", where="model.id")
        return super()._files(replace(spec, model=ModelSource(model_id="shapes")))


class HastyWorker(RenderWorker):
    """It does not wait long before it gives up."""

    def __init__(self, spec: WorkerSpec) -> None:
        worker.FIRST_PAUSE_S = 0.1  # in the worker's process alone
        super().__init__(spec)


class WorkerWithoutRoom(RenderWorker):
    """Its device, which nobody else uses, is too small for the model."""

    def _renderer(self, spec: WorkerSpec, folder: Path, loras: Sequence[tuple[Path, float]]) -> Any:
        worker.FIRST_PAUSE_S = 0.0  # in the worker's process alone
        with (spec.cache_folder / "without_room").open("a") as file:
            file.write("x")
        raise MemoryError("no room")


def outcomes(plan: ShardPlan, spec: WorkerSpec, pool: Pool, worker: type[RenderWorker] = RenderWorker) -> pa.Table:
    return pa.concat_tables(run_wave(plan, 1, IdSet(), spec, pool, worker))


def test_workers_may_reserve_gpus(wave: tuple[ShardPlan, WorkerSpec]) -> None:
    plan, spec = wave
    table = outcomes(plan, spec, Pool(workers=1, gpus=1.0, cpus=1))
    assert table["status"].to_pylist() == ["ok", "ok"]
    assert len(table["model_load"].unique()) == 1


def test_what_a_worker_cannot_load_or_store_reaches_the_driver_as_it_was_raised(
    wave: tuple[ShardPlan, WorkerSpec], tmp_path: Path
) -> None:
    plan, spec = wave
    other = replace(spec, facts=replace(spec.facts, model_fingerprint="0" * 32))
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "images").write_text("in the way")
    kinds: list[tuple[WorkerSpec, type[DarkroomError], str]] = [
        (other, ModelError, "other model files than the driver"),
        (spec, StoreDeniedError, "in the way"),
    ]
    for told, kind, says in kinds:
        with pytest.raises(kind, match=says) as caught:
            outcomes(plan, told, POOL)
        assert type(caught.value) is kind
        assert "Traceback" not in str(caught.value)


@pytest.fixture
def fetching(wave: tuple[ShardPlan, WorkerSpec]) -> tuple[ShardPlan, WorkerSpec]:
    """Of a model that no server gives; its workers have no patience."""
    plan, spec = wave
    nowhere = S3Settings(endpoint_url="http://127.0.0.1:1", region="us-east-1", max_attempts=1, patience_s=0)
    model = ModelSource(model_id="s3://bucket/model", s3=nowhere, cache_folder=spec.cache_folder)
    return plan, replace(spec, model=model, fetch_patience_s=0)


def test_a_worker_that_cannot_fetch_the_model_is_replaced(fetching: tuple[ShardPlan, WorkerSpec]) -> None:
    plan, spec = fetching
    board = make_board(most_failed_starts=1, quiet_s=0)
    table = outcomes(plan, replace(spec, board=board), POOL, LateWorker)
    assert table["status"].to_pylist() == ["ok", "ok"]
    assert ray.get(board.complaints.remote()) == {
        ray.get_runtime_context().get_node_id(): "the Hub did not give it: 429"
    }


def test_a_worker_asks_again_before_it_gives_up(fetching: tuple[ShardPlan, WorkerSpec]) -> None:
    plan, spec = fetching
    patient = replace(spec, board=make_board(most_failed_starts=0, quiet_s=0), fetch_patience_s=60)
    table = outcomes(plan, patient, POOL, LateWorker)
    assert table["status"].to_pylist() == ["ok", "ok"]


def test_a_model_that_no_worker_gets_ends_the_job_and_says_why(fetching: tuple[ShardPlan, WorkerSpec]) -> None:
    plan, spec = fetching
    told = replace(spec, board=make_board(most_failed_starts=1, quiet_s=0))
    with pytest.raises(JobBrokenError, match=r"(?s)too many workers in a row.*the model cannot be fetched"):
        outcomes(plan, told, POOL, HastyWorker)


def test_a_model_that_fits_on_no_device_ends_the_launch_once_a_fresh_process_says_so_too(
    wave: tuple[ShardPlan, WorkerSpec],
) -> None:
    plan, spec = wave
    told = replace(spec, board=make_board(most_failed_starts=9))
    with pytest.raises(ModelError, match="the model does not fit on cpu: MemoryError: no room"):
        outcomes(plan, told, POOL, WorkerWithoutRoom)
    assert (spec.cache_folder / "without_room").read_text() == "xx"


@pytest.mark.parametrize(
    ("workers", "value", "allowed"),
    [
        (WorkersSection(gpus=0, count=9999), "9999 × 1 CPU(s)", "up to 2 of them here"),
        (WorkersSection(gpus=0, cpus=9999), "1 × 9999 CPU(s)", "less than 9999 CPU(s) each: there are not as many"),
    ],
)
def test_no_room_for_the_workers(local_ray: None, workers: WorkersSection, value: str, allowed: str) -> None:
    with pytest.raises(JobFileError, match="this machine has no room for the workers") as caught:
        pool_of(workers, local=True)
    assert (caught.value.value, caught.value.allowed) == (repr(value), allowed)


def test_nobody_waits_for_a_gpu_longer_than_the_launch_may(local_ray: None, tmp_path: Path) -> None:
    pq.write_table(pa.table({"prompt": ["a red circle", "a blue star"]}), tmp_path / "m.parquet")
    paths = [("manifest", str(tmp_path / "m.parquet")), ("output.uri", str(tmp_path / "out"))]
    keys = [("workers.gpus", 2), ("workers.count", 1), ("render.stop_after", "2s")]
    prepared = prepare(load_job(None, [*paths, *keys], date.today()))
    began, said = time.monotonic(), list[str]()
    here = LaunchOptions(address="this Ray", cache_folder=tmp_path / "cache")
    report = launch(prepared, here, said.append, lambda _: None)
    assert time.monotonic() - began < 30
    assert (report.stopped, report.remaining, report.ok, report.launch_id) == ("time", 2, 0, None)
    assert "over before the first image has begun" in said[-2]
    assert not (tmp_path / "out" / "_darkroom" / "run.json").exists()


def test_what_a_worker_refuses_after_images_were_rendered_is_no_bad_input(
    wave: tuple[ShardPlan, WorkerSpec], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Iterator[pa.Table]:
        raise ModelError("other model files", where="here")

    monkeypatch.setattr(Waves, "_wave", refuse)
    work = SimpleNamespace(missing=Amount(images=9), committed=IdSet())
    store, stop = LocalStore(tmp_path / "out"), Stop(print)
    for rendered, kind in ((0, ModelError), (1, JobBrokenError)):
        with Added() as added:
            waves = Waves(cast("Work", work), wave[1], POOL, store, stop, print, print, added)
            waves.tally.progress = replace(waves.tally.progress, ok=rendered)
            with pytest.raises(kind, match=r"(?s)other model files.*here") as caught:
                waves.run()
            assert type(caught.value) is kind


def is_lost(board: Any) -> bool:
    try:
        ray.get(board.working.remote())
    except ray.exceptions.RayError:
        return True
    return False


def test_workers_have_their_time_though_they_cannot_be_told_to_stop(
    local_ray: None, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stopping, "GRACE_S", 2.0)
    monkeypatch.setattr(stopping, "LATE_S", 0.0)
    board, said = make_board(most_failed_starts=1), list[str]()
    ray.kill(board)
    assert wait_until(lambda: is_lost(board), 10)
    stop, asked_at = Stop(said.append), time.monotonic()
    with stop.listening(board, None):
        stop.ask("time")
        assert wait_until(lambda: stop.complete({}), 30)
    assert time.monotonic() - asked_at >= 2.0
    assert "workers cannot be told to stop; they get 2 s" in said[-1]


def test_a_lost_board_is_told_about(local_ray: None, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(draining, "POLL_S", 0.05)
    board, said = make_board(most_failed_starts=1, quiet_s=0), list[str]()
    ray.get(board.complain.remote("0123456789", "the Hub did not give it"))
    with draining.watched(board, said.append):
        assert wait_until(lambda: len(said) == 1, 10)
        ray.kill(board)
        assert wait_until(lambda: len(said) == 2, 10)
    assert said[0].endswith("node 01234567 cannot work and tries again: the Hub did not give it")
    assert "workers cannot be told any more" in said[1]
