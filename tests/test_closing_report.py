"""What ``plan`` says before and ``render`` at its end: few lines, in units that people know."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from typer.testing import CliRunner

from jobs.cli import app
from jobs.render import _as_text
from pipeline.distributed.report import Report
from pipeline.output.finalize import Finalized
from pipeline.output.launch_note import LaunchNote, write_note
from pipeline.planning.effects import Effects
from pipeline.planning.no_effect import NoEffect
from pipeline.rendering.counters import EngineCounters
from pipeline.storage.local import LocalStore

REPORT = Report(
    output_uri="out", finalized=Finalized(ok=192, failed=0, parts=1), launch_id="1", planned=192, requested=192, ok=180,
    added_key="_darkroom/added/1.parquet", added_by_manifest={"a": 100, "b": 80}, workers=2, model_loads=2,
    engine=EngineCounters(evaluations=986, padded_rows=14, denoiser_calls=10, denoise_s=1.0),
    worker_rates=(9.0, 10.0, 11.0), elapsed_s=61.0, images_per_s=3.0,
)  # fmt: skip


def test_the_report_is_short_and_the_rest_is_there_when_asked_for() -> None:
    short = [
        "rendered   180 images in 1:01 (3.00 images/s, loading the model included)",
        "committed  192 images in out",
    ]
    assert _as_text(REPORT).splitlines() == short
    assert _as_text(REPORT, verbose=True).splitlines() == [
        *short,
        "workers    2; the model was loaded 2 times",
        "  + 100 of a",
        "  + 80 of b",
        "added      _darkroom/added/1.parquet lists the images of this launch",
        "store      0 requests; 0.0 MB written",
        "engines    prompts 0% denoising 100% decoding 0%; batch fill 98.6%",
        "slowest    worker at 90% of the median worker's rate",
    ]


@pytest.mark.parametrize(
    ("changes", "lines"),
    [
        ({}, ["Nothing to render: all 192 images are there, in out."]),
        ({"planned": 1, "requested": 1}, ["Nothing to render: the image is there, in out."]),
        (
            {"already_failed": 2},
            [
                "Nothing to render: all 192 images have an outcome in out.",
                "failed     2 images in earlier launches; --retry-failed tries them again",
            ],
        ),
        ({"planned": 0, "requested": 0}, ["Nothing to render: the job asks for no image. out is as it was."]),
        (
            {"stopped": "time", "remaining": 9},
            [
                "rendered   0 images in 1:01",
                "committed  192 images in out",
                "remaining  9 images: stopped before they were begun",
            ],
        ),
    ],
)
def test_nothing_to_render_is_one_line(changes: dict[str, Any], lines: list[str]) -> None:
    assert _as_text(replace(REPORT, ok=0, images_per_s=None, **changes)).splitlines() == lines


def test_the_report_says_and_holds_what_had_no_effect() -> None:
    cut = NoEffect(effects=Effects(rows=9, looked_at=9, cut=2), windows={"tokenizer": 77})
    report = replace(REPORT, requested=200, no_effect=cut)
    assert _as_text(report).splitlines()[2:] == [
        "requested  200 images, 192 distinct: 8 requests are answered by an image that another row asks for",
        "no effect  2 prompts cut at 77 tokens",
    ]
    facts = json.loads(report.as_json())
    assert (facts["requested"], facts["planned"], facts["no_effect"]["prompts_cut"]) == (200, 192, 2)


def test_the_plan_speaks_of_images_and_time(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    prompts = ["a red circle", "a red circle", "a blue star", "a green square " * 20]
    pq.write_table(pa.table({"prompt": prompts, "seed": pa.nulls(4, pa.int64())}), "m.parquet")

    def plan(*words: str) -> tuple[list[str], list[str]]:
        job = ("plan", "--manifest", "m.parquet", "--model", "shapes", "--seeds", "0-1", "--steps", "2", "-o", "out")
        done = CliRunner().invoke(app, [*job, *words])
        assert done.exit_code == 0, done.output
        return done.stdout.splitlines(), done.stderr.splitlines()

    lines, warnings = plan("--price-per-hour", "2")
    assert lines[3:] == [
        "output     out",
        "requested  8 images, 6 distinct: 2 requests are answered by an image that another row asks for",
        "no effect  1 prompt cut at 32 tokens, column seed",
        "planned    6 images",
        "committed  none yet",
        "to render  6 images",
        "time       unknown: `darkroom render --sample 16` of this job measures it, or give --rate",
        "storage    about 7 objects, 0.2 MB before compression",
        "cost       unknown, as the time is",
    ]
    assert warnings == [
        "warning: 1 prompt is longer than the model's window of 32 tokens: the text beyond it has no effect",
        "warning: the column seed of the manifest has no effect: it holds no value",
    ]
    facts = json.loads("\n".join(plan("--json")[0]))
    assert (facts["images_requested"], facts["images_distinct"], facts["evaluations"]) == (8, 6, 24)
    assert facts["no_effect"]["prompts_cut_by_tokenizer"] == {"tokenizer": 1}
    note = LaunchNote(launch_id="1", started_at="", finished_at="x", planned=6, to_render=6, workers=1, room=1, ok=6,
                      megapixel_evaluations_per_s=facts["megapixel_evaluations"] / 12)  # fmt: skip
    write_note(LocalStore(tmp_path / "out"), note)
    assert plan("--sample", "6")[0][-2].startswith(
        "time       0:12 on 1 worker, so 0.003 worker hours, at 0.50 images/s, as measured over 6 images of the last"
    )
