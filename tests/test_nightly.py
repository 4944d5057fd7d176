"""A job over dated manifests, night after night: only what is new is rendered, and each launch says what it added."""

import csv
import io
import json
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from pipeline.config import load_job
from pipeline.output.finalize import finalize
from pipeline.output.verify import verify
from pipeline.storage.local import LocalStore
from pipeline.storage.location import open_store
from tests.faults.without_ray import Painter, launch_here, plan_of
from tests.test_end_to_end import Darkroom, check_output

ROOT = Path(__file__).parent.parent
DAYS = ("2026-11-20", "2026-11-21")
POINTS = 2
"""Of the sweep in ``manifests/nightly.yaml``."""


@pytest.fixture
def darkroom(tmp_path: Path, shared_ray: Mapping[str, str]) -> Darkroom:
    """A checkout of which only the nightly job is there."""
    (tmp_path / "manifests" / "nightly").mkdir(parents=True)
    (tmp_path / "manifests" / "nightly.yaml").write_text((ROOT / "manifests" / "nightly.yaml").read_text())
    return Darkroom(tmp_path, shared_ray)


def arrive(darkroom: Darkroom, day: str) -> None:
    """A manifest of that day, as the head of the job file says."""
    source = ROOT / "manifests" / "nightly" / f"{day}.csv"
    darkroom.run("manifest", "build", str(source), f"manifests/nightly/{day}.parquet")


def summary(out: str) -> dict[str, Any]:
    """The last line, for programs."""
    found: dict[str, Any] = json.loads(out.splitlines()[-1])
    return found


def added(darkroom: Darkroom, told: dict[str, Any]) -> list[dict[str, Any]]:
    store = open_store(str(darkroom.folder / "renders" / "nightly"))
    return list(pq.read_table(io.BytesIO(store.get(told["added_list"]))).to_pylist())


def test_new_new_and_nothing(darkroom: Darkroom) -> None:
    night = ("render", "manifests/nightly.yaml", "--json", "--set", "workers.count=1")
    arrive(darkroom, DAYS[0])
    first = summary(darkroom.run(*night))
    assert (first["added"], first["committed"], first["failed"], first["remaining"]) == (3 * POINTS, 3 * POINTS, 0, 0)
    assert first["added_by_manifest"] == {f"{DAYS[0]}.parquet": 3 * POINTS}

    arrive(darkroom, DAYS[1])
    second = summary(darkroom.run(*night))
    assert (second["added"], second["committed"]) == (2 * POINTS, 5 * POINTS), "one of the three prompts is there"
    assert second["added_by_manifest"] == {f"{DAYS[1]}.parquet": 2 * POINTS}
    rows = added(darkroom, second)
    assert {(row["status"], row["manifest_file"]) for row in rows} == {("ok", f"{DAYS[1]}.parquet")}
    assert {row["prompt_id"] for row in rows} == {"21-a", "21-c"}
    assert all((darkroom.folder / "renders" / "nightly" / row["file_name"]).exists() for row in rows)
    assert not {row["task_id"] for row in rows} & {row["task_id"] for row in added(darkroom, first)}

    third = summary(darkroom.run(*night))
    assert (third["added"], third["committed"], third["launch"], third["added_list"]) == (0, 5 * POINTS, None, None)
    check_output(open_store(str(darkroom.folder / "renders" / "nightly")), 5 * POINTS)


def prompts_of(*days: str) -> list[str]:
    files = (ROOT / "manifests" / "nightly" / f"{day}.csv" for day in days)
    return [row["prompt"] for file in files for row in csv.DictReader(file.read_text().splitlines())]


@pytest.mark.parametrize("turn", range(5))
def test_two_nights_at_once(tmp_path: Path, turn: int) -> None:
    """Work may be done twice, on devices whose pixels differ; nothing is lost or listed twice. Without Ray."""
    store, plans = LocalStore(tmp_path / "out"), []
    for number, days in enumerate((DAYS[:1], DAYS)):
        folder = tmp_path / str(number)
        folder.mkdir()
        plans.append(plan_of(folder, prompts_of(*days), "files", "0-1"))
    with ThreadPoolExecutor(2) as pool:
        nights = [pool.submit(launch_here, store, plan, Painter(shade=turn + n)) for n, plan in enumerate(plans)]
    rendered = sum(night.result() for night in nights)
    assert 5 * POINTS <= rendered <= 8 * POINTS
    assert not verify(store).faults
    assert finalize(store).ok == 5 * POINTS
    check_output(store, 5 * POINTS)


def test_an_empty_manifest_ends_with_a_summary_too(darkroom: Darkroom) -> None:
    (darkroom.folder / "none.txt").write_text("")
    darkroom.run("manifest", "build", "none.txt", "manifests/nightly/none.parquet")
    told = summary(darkroom.run("render", "manifests/nightly.yaml", "--json"))
    assert (told["added"], told["committed"], told["launch"]) == (0, 0, None)


def test_the_sample_manifests_are_of_the_jobs_pattern() -> None:
    job = load_job(ROOT / "manifests" / "nightly.yaml", [], date.today())
    assert job.manifest == "manifests/nightly/*.parquet"
    assert {path.stem for path in (ROOT / "manifests" / "nightly").glob("*.csv")} == set(DAYS)
