"""The sweep as people write it."""

from datetime import date
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.config import load_job, parse_setting
from pipeline.errors import InputError, JobFileError
from pipeline.sweep import parse_guidance_scales, parse_num_inference_steps, parse_seeds, parse_sizes


@pytest.mark.parametrize(
    ("given", "expected"),
    [
        (5, (5,)),
        ([3, 1], (3, 1)),
        ("0-3", (0, 1, 2, 3)),
        ("7", (7,)),
        ("1,5, 9", (1, 5, 9)),
        ("0-100 (+50)", (0, 50, 100)),
        ("0-99 (+50)", (0, 50)),
        ({"start": 0, "stop": 6, "step": 3}, (0, 3, 6)),
        ({"start": 0, "stop": 10, "num": 3}, (0, 5, 10)),
        (2**64 - 1, (2**64 - 1,)),
        (f"{2**53}-{2**53 + 3}", tuple(range(2**53, 2**53 + 4))),
        (f"{2**64 - 3}-{2**64 - 1} (+2)", (2**64 - 3, 2**64 - 1)),
        ({"start": 1, "stop": 2**63 + 1, "num": 3}, (1, 2**62 + 1, 2**63 + 1)),
        ({"start": 1234567890123.0, "stop": 1234567890125.0, "step": 1}, tuple(range(1234567890123, 1234567890126))),
    ],
)
def test_seeds(given: Any, expected: tuple[int, ...]) -> None:
    assert parse_seeds(given) == expected


@given(st.integers(1, 50), st.integers(0, 1000))
def test_random_seeds_are_distinct_and_repeatable(count: int, origin: int) -> None:
    seeds = parse_seeds({"random": count, "from": origin})
    assert len(set(seeds)) == count
    assert parse_seeds({"random": count, "from": origin}) == seeds
    assert parse_seeds({"random": count + 5, "from": origin})[:count] == seeds


def test_numbers_do_not_drift() -> None:
    scales = parse_guidance_scales({"start": 1, "stop": 2, "step": 0.1})
    assert scales == (1.0, 1.1, 1.2, 1.3, 1.4, 1.5, 1.6, 1.7, 1.8, 1.9, 2.0)


@pytest.mark.parametrize(
    ("parse", "bad"),
    [
        (parse_seeds, -1),
        (parse_seeds, 2**64),
        (parse_seeds, {"start": 1e13 + 0.5, "stop": 1e13 + 3, "step": 0.5}),
        (parse_seeds, 1.5),
        (parse_seeds, True),
        (parse_seeds, []),
        (parse_seeds, "a-b"),
        (parse_seeds, {"start": 3, "stop": 1, "step": 1}),
        (parse_seeds, {"start": 0, "stop": 1}),
        (parse_seeds, {"random": 0}),
        (parse_seeds, {"random": True}),
        (parse_seeds, {"random": 2, "from": True}),
        (parse_seeds, {"start": 0, "stop": 2, "num": True}),
        (parse_seeds, {"start": 0, "stop": 10**400, "step": 1}),
        (parse_seeds, {"start": 0, "stop": float("inf"), "num": 3}),
        (parse_seeds, f"0-{'9' * 400}"),
        (parse_seeds, "0-99999999"),
        (parse_guidance_scales, float("nan")),
        (parse_guidance_scales, -0.5),
        (parse_guidance_scales, "high"),
        (parse_num_inference_steps, 0),
        (parse_num_inference_steps, 10.5),
        (parse_sizes, [[0, 64]]),
        (parse_sizes, [[64]]),
        (parse_sizes, "big"),
        (parse_sizes, "²x8"),
        (parse_sizes, f"{'9' * 5000}x8"),
        (parse_sizes, [True, 128]),
    ],
)
def test_bad_axes_say_what_is_allowed(parse: Any, bad: Any) -> None:
    with pytest.raises(JobFileError) as caught:
        parse(bad)
    assert caught.value.where
    assert caught.value.allowed


def test_sizes() -> None:
    assert parse_sizes([64, 128]) == ((64, 128),)
    assert parse_sizes([[64, 128], "8x16"]) == ((64, 128), (8, 16))


def test_settings_are_yaml_and_win_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "nightly.yaml").write_text("manifest: a\nmodel: shapes\nsweep: {steps: 10}\n")
    settings = [
        parse_setting("sweep.steps=[5, 6]"),
        parse_setting("model.dtype=float16"),
        parse_setting("workers.count=3"),
    ]
    job = load_job(tmp_path / "nightly.yaml", settings, date(2026, 1, 2))
    assert job.sweep.num_inference_steps == (5, 6)
    assert (job.model.id, job.model.dtype, job.workers.count) == ("shapes", "float16", 3)
    assert job.output.uri == "renders/nightly"


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("manifest: a\nmanifest: b\n", "stands twice"),
        ("manifest: [\n", "not plain YAML"),
        ("- a\n", "not a mapping"),
        ("model: {}\n", "no manifest"),
        ("manifest: a\nworker: {}\n", "did you mean 'workers'"),
        ("manifest: a\nrender: {rows: 1}\n", "render.rows"),
        ("manifest: a\noutput: {format: gif}\n", "png"),
    ],
)
def test_bad_job_files(tmp_path: Path, text: str, says: str) -> None:
    (tmp_path / "job.yaml").write_text(text)
    with pytest.raises(InputError) as caught:
        load_job(tmp_path / "job.yaml", [], date(2026, 1, 2))
    assert says in str(caught.value)
    assert "job.yaml" in str(caught.value)
