"""One wave through a real Ray, in this process: what reaches the driver when workers cannot do their work."""

from collections.abc import Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import ray

from pipeline.config import load_job
from pipeline.distributed.graph import run_wave
from pipeline.distributed.shards import ShardPlan
from pipeline.distributed.spec import Pool, WorkerSpec
from pipeline.errors import DarkroomError, ModelError, StoreDeniedError
from pipeline.identity import IdSet
from pipeline.model.fingerprint import DigestCache, fingerprint
from pipeline.model.rows import BatchRows
from pipeline.output.part import RunFacts
from pipeline.planning.selection import Selection
from pipeline.planning.shards import ShardSize
from pipeline.planning.tasks import Space
from pipeline.prepare import prepare
from pipeline.storage.s3_settings import S3Settings

pytestmark = pytest.mark.filterwarnings("ignore")  # Ray's own, of Ray's own settings


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
        rows=BatchRows(fixed=4, dtype="float32", device_bytes=None), compiled=False, call={},
        threads=1, cache_folder=tmp_path / "digests",
        launch_id="launch", watchdog_s=600.0,
    )  # fmt: skip
    space = Space(axes=prepared.axes, family=prepared.model.family, run_digest=b"\0" * 16)
    size = ShardSize(megapixel_evaluations=0.0, min_images=1, max_images=1)
    return ShardPlan(
        manifest=prepared.manifest, space=space, selection=Selection(), sizes=dict.fromkeys(prepared.count.sizes, size)
    ), spec


def outcomes(plan: ShardPlan, spec: WorkerSpec, pool: Pool) -> pa.Table:
    return pa.concat_tables(run_wave(plan, 1, IdSet(), spec, pool))


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
            outcomes(plan, told, Pool(workers=1, gpus=0, cpus=1))
        assert type(caught.value) is kind
        assert "Traceback" not in str(caught.value)
