"""Planning of whole jobs, from manifests on disk."""

from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import Job, load_job
from pipeline.errors import JobFileError, ManifestError, RunMismatchError
from pipeline.output.launch_note import LaunchNote
from pipeline.output.run import NumericsProfile, Run
from pipeline.overview import Figures, describe, pace_of
from pipeline.planning.amount import Amount
from pipeline.planning.tasks import Space, plan_batch, planned_amount
from pipeline.prepare import Prepared, check_run, numbered_batches, prepare, select
from tests.planning.plain import DIGEST, NOTHING


def test_a_job_knows_what_it_cannot_render(tmp_path: Path) -> None:
    manifest = _manifest(tmp_path, prompt=["a", "b", "c"], scheduler=["lcm", None, "euler"], steps=[60, 60, 10])
    with pytest.raises(ManifestError, match=r"row 0 \(from 0\), column steps: the scheduler lcm cannot take 60 steps"):
        prepare(manifest)
    prepared = prepare(manifest, skip_bad_rows=True)
    assert prepared.rejected_rows.tolist() == [0]
    for chosen in (select(prepared, limit=None, sample=None), select(prepared, limit=5, sample=None)):
        tables = [
            t for b in numbered_batches(prepared.manifest) for t in plan_batch(b, _space(prepared), chosen, NOTHING)
        ]
        assert [row for table in tables for row in table["manifest_row"].to_pylist()] == [1, 2]
        assert prepared.count.amount.images == 2
    absurd = {"seeds": "0-99999", "guidance_scales": "1-50", "num_inference_steps": "1-20"}
    with pytest.raises(JobFileError, match="too many points"):
        prepare(_manifest(tmp_path, absurd, prompt=["a"]))
    with pytest.raises(JobFileError, match="cannot be sampled with this scheduler"):
        prepare(_manifest(tmp_path, {"schedulers": "flow_match_euler"}, prompt=["a"]))
    with pytest.raises(ManifestError, match="no such scheduler"):
        prepare(_manifest(tmp_path, prompt=["a"], scheduler=["flow_match_euler"]))


def test_sample_of_a_job_counts_what_rows_have(tmp_path: Path) -> None:
    for lists in ([list(range(10))] * 5, [[1], list(range(30)), None, [2], [3]]):
        prepared = prepare(_manifest(tmp_path, prompt=list("abcde"), seeds=lists))
        selection = select(prepared, limit=None, sample=20)
        whole, _ = planned_amount(numbered_batches(prepared.manifest), _space(prepared), selection, NOTHING)
        assert whole.images == 20


def test_a_preview_tells_how_fast_all_workers_will_be(tmp_path: Path) -> None:
    """One worker was enough for it; the job asks for four, or for what there is room for."""
    preview = LaunchNote(
        launch_id="1", started_at="", planned=8, to_render=8, workers=1, room=8, ok=8, megapixel_evaluations_per_s=3.0
    )
    for count, images, workers in ((4, 1000, 4), (4, 9, 2), ("auto", 1000, 8), ({"min": 1, "max": 3}, 1000, 3)):
        _manifest(tmp_path, prompt=["a"])
        keys = [("manifest", str(tmp_path / "m.parquet")), ("workers.count", count), ("render.rows", 16)]
        prepared = prepare(load_job(None, keys, date(2026, 1, 1)))
        pace = pace_of(prepared, None, Amount(images=images), [preview])
        assert (pace.workers, pace.megapixel_evaluations_per_s, pace.measured_images) == (workers, 3.0 * workers, 8)
    assert pace_of(prepared, None, Amount(images=1), []).hours(Amount(images=1)) is None


def test_plan_refuses_the_run_that_render_refuses(tmp_path: Path) -> None:
    prepared = prepare(_manifest(tmp_path, prompt=["a"]))
    run = Run(
        model_id="shapes",
        model_revision=None,
        constants=prepared.constants("0" * 32, "float16"),
        numerics=NumericsProfile(rows=8, compiled=False, threads=1, device="cpu", versions={}),
        job={},
        created_at="",
        darkroom_version="",
    )
    check_run(run, prepared, "out")
    facts = describe(prepared, Figures(run=run, whole=prepared.count.amount, to_render=prepared.count.amount))
    assert (facts["dtype"], facts["images_committed"], facts["raw_bytes"]) == ("float16", 0, 96 * 96 * 3)
    model = prepared.job.model.model_copy(update={"dtype": "float32"})
    float32 = prepared.job.model_copy(update={"model": model})
    with pytest.raises(RunMismatchError, match="dtype: the run has 'float16', this job 'float32'"):
        check_run(run, replace(prepared, job=float32), "out")
    with pytest.raises(RunMismatchError, match="another model"):
        check_run(replace(run, model_id="other"), prepared, "out")


def _manifest(folder: Path, sweep: dict[str, str] | None = None, **columns: list[Any]) -> Job:
    pq.write_table(pa.table(columns), folder / "m.parquet")
    keys = [(f"sweep.{name}", value) for name, value in (sweep or {}).items()]
    return load_job(None, [("manifest", str(folder / "m.parquet")), *keys], date(2026, 1, 1))


def _space(prepared: Prepared) -> Space:
    return Space(axes=prepared.axes, family=prepared.model.family, run_digest=DIGEST)
