"""Leases through a real Ray, in this process: what reaches the driver, also when workers cannot do their work."""

import os
import signal
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
from pipeline.distributed import limits, worker
from pipeline.distributed.added import Added
from pipeline.distributed.cluster import pool_of
from pipeline.distributed.dispatcher import CrewSize, Dispatcher
from pipeline.distributed.events import Begun, Event
from pipeline.distributed.launch import LaunchOptions, launch
from pipeline.distributed.planned import LeasePlan, Planner, planned_leases
from pipeline.distributed.ray_crew import RayCrew
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
from pipeline.planning.tasks import Space
from pipeline.prepare import prepare
from pipeline.storage.local import LocalStore
from pipeline.storage.s3_settings import S3Settings
from tests.test_dispatcher import Listener

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own, of Ray's own settings


POOL = Pool(workers=1, gpus=0, cpus=1)
Wave = tuple[LeasePlan, WorkerSpec]


@pytest.fixture(scope="module")
def local_ray() -> Iterator[None]:
    """Two logical CPUs and one logical GPU, which no worker here really uses."""
    ray.init(
        address="local", num_cpus=2, num_gpus=1, include_dashboard=False, _node_ip_address="127.0.0.1",
        log_to_driver=False, logging_level="ERROR",
    )  # fmt: skip
    yield
    ray.shutdown()


@pytest.fixture
def wave(tmp_path: Path, local_ray: None) -> Wave:
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
    plan = LeasePlan(
        manifest=prepared.manifest,
        space=Space(axes=prepared.axes, family=prepared.model.family, run_digest=b"\0" * 16),
        selection=Selection(),
        missing=Amount(images=2),
        workers=1,
        slots=dict.fromkeys(prepared.count.sizes, 1),
        images=1,
    )
    return plan, spec


class Kept(Listener):
    """A listener that keeps the outcomes."""

    def __init__(self) -> None:
        super().__init__()
        self.tables: list[pa.Table] = []

    def committed(self, outcomes: pa.Table) -> None:
        self.tables.append(outcomes)

    @property
    def statuses(self) -> list[str]:
        return pa.concat_tables(self.tables)["status"].to_pylist() if self.tables else []


class Noting(RayCrew):
    """A crew that keeps what workers told of themselves."""

    def __init__(self, *given: Any) -> None:
        super().__init__(*given)
        self.begun: list[Begun] = []

    def events(self, timeout_s: float) -> Sequence[tuple[int, Event]]:
        told = super().events(timeout_s)
        self.begun += [event for _, event in told if isinstance(event, Begun)]
        return told


def dispatched(
    wave: Wave, pool: Pool = POOL, worker: type[RenderWorker] = RenderWorker, failed_starts: int = 9
) -> tuple[Dispatcher, Kept, Noting]:
    plan, spec = wave
    crew, listener = Noting(spec, pool, print, worker), Kept()
    size = CrewSize(most=pool.workers, slots=1, most_failed_starts=failed_starts, window=8)
    return Dispatcher(crew, Planner(planned_leases(plan, IdSet())), size, listener, images=2), listener, crew


def rendered(wave: Wave, pool: Pool = POOL, worker: type[RenderWorker] = RenderWorker, failed_starts: int = 9) -> Kept:
    dispatcher, listener, _ = dispatched(wave, pool, worker, failed_starts)
    dispatcher.run()
    return listener


@pytest.fixture(autouse=True)
def impatient(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(limits, "FIRST_PAUSE_S", 0.1)
    monkeypatch.setattr(limits, "QUIET_S", 0.0)


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
        with (spec.cache_folder / "without_room").open("a") as file:
            file.write("x")
        raise MemoryError("no room")


class Dying(RenderWorker):
    """Its process is killed as soon as it begins a task, as often as there is no file that says so."""

    def _task_begins(self, task: Any) -> None:
        super()._task_begins(task)
        marks = Path(tempfile_folder(self._journal.path), f"killed-{self._tags['launch']}")
        deaths = len(marks.read_text()) if marks.exists() else 0
        if "blue" in task.recipe.prompt or not deaths:
            with marks.open("a") as file:
                file.write("x")
            os.kill(os.getpid(), signal.SIGKILL)


def tempfile_folder(journal: Path) -> Path:
    return journal.parent.parent


def test_workers_may_reserve_gpus(wave: Wave) -> None:
    dispatcher, listener, crew = dispatched(wave, Pool(workers=1, gpus=1.0, cpus=1))
    dispatcher.run()
    assert listener.statuses == ["ok", "ok"]
    assert len(crew.begun) == 1
    assert not Path(crew.begun[0].journal).exists(), "nothing is left on the machine"


def test_what_a_worker_cannot_load_or_store_reaches_the_driver_as_it_was_raised(wave: Wave, tmp_path: Path) -> None:
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
            rendered((plan, told))
        assert type(caught.value) is kind
        assert "Traceback" not in str(caught.value)


def test_a_task_that_kills_its_process_is_found_by_the_journals_of_the_dead(wave: Wave, tmp_path: Path) -> None:
    plan, spec = wave
    own = replace(spec, launch_id=f"dying-{os.getpid()}-{time.monotonic_ns()}")
    together = replace(plan, images=2)
    dispatcher, listener, crew = dispatched((together, own), worker=Dying)
    dispatcher.run()
    assert dispatcher.deaths >= 3
    assert listener.statuses == ["ok"]
    assert len(listener.condemned) == 1
    assert not any(Path(begun.journal).exists() for begun in crew.begun)


@pytest.fixture
def fetching(wave: Wave) -> Wave:
    """Of a model that no server gives; its workers have no patience."""
    plan, spec = wave
    nowhere = S3Settings(endpoint_url="http://127.0.0.1:1", region="us-east-1", max_attempts=1, patience_s=0)
    model = ModelSource(model_id="s3://bucket/model", s3=nowhere, cache_folder=spec.cache_folder)
    return plan, replace(spec, model=model, fetch_patience_s=0)


def test_a_worker_that_cannot_fetch_the_model_is_replaced(fetching: Wave) -> None:
    listener = rendered(fetching, worker=LateWorker)
    assert listener.statuses == ["ok", "ok"]
    node = ray.get_runtime_context().get_node_id()[:8]
    assert listener.said == [
        f"warning: a worker on node {node} cannot work and tries again: the Hub did not give it: 429"
    ]


def test_a_worker_asks_again_before_it_gives_up(fetching: Wave) -> None:
    plan, spec = fetching
    dispatcher, listener, crew = dispatched((plan, replace(spec, fetch_patience_s=60)), worker=LateWorker)
    dispatcher.run()
    assert (listener.statuses, len(crew.begun)) == (["ok", "ok"], 1)


def test_a_model_that_no_worker_gets_ends_the_job_and_says_why(fetching: Wave) -> None:
    with pytest.raises(JobBrokenError, match=r"(?s)too many workers in a row.*the model cannot be fetched"):
        rendered(fetching, worker=HastyWorker, failed_starts=1)


def test_a_model_that_fits_on_no_device_ends_the_launch_once_a_fresh_process_says_so_too(wave: Wave) -> None:
    with pytest.raises(ModelError, match="the model does not fit on cpu: MemoryError: no room"):
        rendered(wave, worker=WorkerWithoutRoom)
    assert (wave[1].cache_folder / "without_room").read_text() == "xx"


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
    wave: Wave, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def refuse(*_: object) -> Iterator[pa.Table]:
        raise ModelError("other model files", where="here")

    monkeypatch.setattr(Waves, "_wave", refuse)
    crew = RayCrew(wave[1], POOL, print)
    work = SimpleNamespace(missing=Amount(images=9), committed=IdSet())
    store, stop = LocalStore(tmp_path / "out"), Stop(print)
    for rendered, kind in ((0, ModelError), (1, JobBrokenError)):
        with Added() as added:
            waves = Waves(cast("Work", work), wave[1], POOL, store, crew, stop, print, print, added)
            waves.tally.progress = replace(waves.tally.progress, ok=rendered)
            with pytest.raises(kind, match=r"(?s)other model files.*here") as caught:
                waves.run()
            assert type(caught.value) is kind
