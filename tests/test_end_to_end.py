"""The main job as a user runs it: the command, the built-in model, a real Ray, a directory and a real S3 server."""

import io
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Mapping
from hashlib import sha256
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

from pipeline.model.resolve import BUILT_IN
from pipeline.storage.base import ObjectStore
from pipeline.storage.location import open_store
from pipeline.storage.s3_settings import S3Settings
from tests.conftest import Command, aws_environment
from tests.servers.swift import SwiftServer

PROMPTS = [
    f"a {colour} {shape} on a white background" for shape in ("circle", "star") for colour in ("red", "blue", "black")
]
SWEEP = ("--seeds", "0-1", "--guidance-scales", "1,4", "--steps", "2,4")
IMAGES = len(PROMPTS) * 2 * 2 * 2


class Darkroom:
    """Runs the command in a folder of its own."""

    def __init__(self, folder: Path, ray: Mapping[str, str] | None = None) -> None:
        """``ray``: variables with which launches join a Ray (``shared_ray``); without, each starts its own."""
        self.folder = folder
        (folder / "ray-token").write_text("a" * 64)
        self.environment = {
            **os.environ,
            "RAY_AUTH_TOKEN_PATH": str(folder / "ray-token"),
            "XDG_CACHE_HOME": str(folder / "cache"),
        }
        self.environment.pop("RAY_ADDRESS", None)
        self.environment.update(ray or {})

    def start(self, *words: str) -> "subprocess.Popen[str]":
        command = [sys.executable, "-m", "jobs", *words]
        root = Path(__file__).parent.parent
        environment = {**self.environment, "PYTHONPATH": str(root)}
        return subprocess.Popen(
            command,
            cwd=self.folder,
            env=environment,
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            start_new_session=True,
        )

    def run(self, *words: str, code: int = 0) -> str:
        process = self.start(*words)
        out, err = process.communicate(timeout=300)
        assert process.returncode == code, err + out
        return err if code == 2 else out


def write_manifest(path: Path, rows: list[dict[str, Any]]) -> str:
    pq.write_table(pa.Table.from_pylist(rows), path)
    return str(path)


def check_output(store: ObjectStore, images: int) -> dict[str, str]:
    """Every row's file opens and has the digests it should; returns task_id → pixel digest."""
    metadata = pq.read_table(io.BytesIO(store.get("metadata.parquet"))).to_pylist()
    assert len(metadata) == len({row["task_id"] for row in metadata}) == images
    for row in metadata:
        body = store.get(row["file_name"])
        assert sha256(body).hexdigest() == row["file_sha256"]
        picture = np.asarray(Image.open(io.BytesIO(body)))
        assert picture.shape == (row["height"], row["width"], 3)
        assert sha256(picture.tobytes()).hexdigest() == row["pixel_sha256"]
        assert row["status"] == "ok"
    assert {row["file_name"] for row in metadata} <= {info.key for info in store.list("images/")}
    return {row["task_id"]: row["pixel_sha256"] for row in metadata}


@pytest.fixture(scope="module")
def darkroom(tmp_path_factory: pytest.TempPathFactory) -> Darkroom:
    folder = tmp_path_factory.mktemp("user")
    write_manifest(folder / "m.parquet", [{"prompt": p, "theme": p.split()[1]} for p in PROMPTS])
    return Darkroom(folder)


@pytest.fixture(scope="module")
def digests(darkroom: Darkroom) -> Mapping[str, str]:
    """The reference: a local directory, two workers."""
    said = darkroom.run(
        "render", "--manifest", "m.parquet", "--model", "shapes", *SWEEP, "--output", "out",
        "--set", "workers.count=2", "--set", "render.shard_images=8", "--verbose",
    )  # fmt: skip
    assert f"rendered   {IMAGES} images" in said
    loads = int(said.partition("the model was loaded ")[2].split()[0])
    assert loads in (1, 2)  # on a busy machine one worker may be done before the other is there
    return check_output(open_store(str(darkroom.folder / "out")), IMAGES)


def test_metadata_follows_the_manifest(darkroom: Darkroom, digests: Mapping[str, str]) -> None:
    metadata = pq.read_table(darkroom.folder / "out" / "metadata.parquet")
    rows = metadata["manifest_row"].to_pylist()
    assert rows == sorted(rows)
    assert set(zip(metadata["prompt"].to_pylist(), metadata["theme"].to_pylist(), strict=True)) == {
        (prompt, prompt.split()[1]) for prompt in PROMPTS
    }
    assert len(set(digests.values())) == IMAGES


def test_again_renders_nothing(darkroom: Darkroom, digests: Mapping[str, str]) -> None:
    words = ("--manifest", "m.parquet", *SWEEP, "--output", "out")
    plan = json.loads(darkroom.run("plan", *words, "--json"))
    assert (plan["images_planned"], plan["images_committed"], plan["images_to_render"]) == (IMAGES, IMAGES, 0)
    said = darkroom.run("plan", *words, "--rate", "10", "--price-per-hour", "2")
    assert "time " not in said
    assert "cost       0.00" in said
    assert f"Nothing to render: all {IMAGES} images are there, in " in darkroom.run("render", *words)
    status = json.loads(darkroom.run("status", "out", "--json"))
    assert (status["ok"], status["failed"], status["remaining"]) == (IMAGES, 0, 0)


def test_what_was_measured_prices_what_is_left_and_stops_it(darkroom: Darkroom, digests: Mapping[str, str]) -> None:
    report = json.loads((darkroom.folder / "out" / "run_report.json").read_text())
    assert (report["added"], report["failed"], report["store_retries"]) == (IMAGES, 0, 0)
    assert 0 < report["real_rows"] <= 1
    assert report["evaluations"] > IMAGES
    words = ("--manifest", "m.parquet", *SWEEP, "--seeds", "100-101", "--output", "out")
    plan = json.loads(darkroom.run("plan", *words, "--price-per-hour", "3600", "--json"))
    seconds = plan["megapixel_evaluations"] / plan["measured_megapixel_evaluations_per_s"]
    assert plan["cost"] == pytest.approx(seconds, abs=0.01)
    for limit, says in (("--max-images", "more to render"), ("--max-cost", "cost more than allowed")):
        said = darkroom.run("render", *words, limit, "0", "--price-per-hour", "3600", code=2)
        assert says in said
    assert len(pq.read_table(darkroom.folder / "out" / "metadata.parquet")) == IMAGES


def test_s3_one_worker_shuffled_and_other_shards_give_the_same_pixels(
    darkroom: Darkroom, digests: Mapping[str, str], s3_server: SwiftServer, s3_bucket: str
) -> None:
    rows = [{"prompt": prompt} for prompt in reversed(PROMPTS)]
    write_manifest(darkroom.folder / "shuffled.parquet", rows)
    darkroom.environment.update(aws_environment(s3_server))
    uri, model = f"s3://{s3_bucket}/runs/one", f"s3://{s3_bucket}/models/shapes"
    models = open_store(model, S3Settings())
    for path in BUILT_IN["shapes"].rglob("*.*"):
        models.put(path.relative_to(BUILT_IN["shapes"]).as_posix(), path.read_bytes())
    try:
        darkroom.run(
            "render", "--manifest", "shuffled.parquet", "--model", model, *SWEEP, "-o", uri,
            "--set", "workers.count=1", "--set", "render.shard_images=20",
        )  # fmt: skip
    finally:
        for name in aws_environment(s3_server):
            darkroom.environment.pop(name)
    assert check_output(open_store(uri, S3Settings()), IMAGES) == digests


def test_stopped_by_ctrl_c_killed_twice_and_widened(darkroom: Darkroom, digests: Mapping[str, str]) -> None:
    words = (
        "render", "--manifest", "m.parquet", *SWEEP, "-o", "stopped", "--set", "render.shard_images=2",
        "--set", "workers.count=1",
    )  # fmt: skip
    store = open_store(str(darkroom.folder / "stopped"))
    for how, wanted in ((signal.SIGINT, 2), (signal.SIGKILL, 12), (signal.SIGKILL, 20)):
        process = darkroom.start(*words)
        until = time.monotonic() + 120
        while len(list(store.list("metadata/"))) * 2 < wanted and process.poll() is None and time.monotonic() < until:
            time.sleep(0.05)
        assert process.poll() is None, process.communicate()
        if how == signal.SIGINT:
            process.send_signal(how)
            _, err = process.communicate(timeout=300)
            assert process.returncode == 130, err
            assert "interrupted: what is committed stands" in err
        else:
            os.killpg(process.pid, how)
            process.communicate()
    committed = len(list(store.list("metadata/"))) * 2
    assert 20 <= committed < IMAGES
    wider = [word if word != "1,4" else "1,4,8" for word in words]
    said = darkroom.run(*wider)
    # Workers may outlive a killed driver by the moment it takes them to notice, and commit meanwhile.
    rendered = int(said.split()[1])
    assert IMAGES // 2 <= rendered <= IMAGES * 3 // 2 - committed
    found = check_output(store, IMAGES * 3 // 2)
    assert {task: found[task] for task in digests} == digests


def test_another_dtype_is_refused(darkroom: Darkroom, digests: Mapping[str, str]) -> None:
    said = darkroom.run(
        "render", "--manifest", "m.parquet", *SWEEP, "-o", "out", "--set", "model.dtype=bfloat16", code=2
    )
    assert "dtype: the run has 'float32', this job 'bfloat16'" in said


def test_bad_rows_are_skipped_and_a_failing_task_is_a_failed_row(tmp_path: Path, shared_ray: Mapping[str, str]) -> None:
    darkroom = Darkroom(tmp_path, shared_ray)
    rows = [{"prompt": f"a red circle {n}", "scheduler": None} for n in range(6)]
    rows[1]["prompt"] = rows[4]["prompt"] = None
    rows[2]["scheduler"] = "ddpm:timesteps=2000/5"  # more than the model was trained with, says diffusers
    write_manifest(darkroom.folder / "bad.parquet", rows)
    words = ("render", "--manifest", "bad.parquet", "--steps", "2", "-o", "bad-out")
    assert "2 of 6 manifest rows cannot be used" in darkroom.run(*words, code=2)
    assert not (darkroom.folder / "bad-out").exists()
    said = darkroom.run(*words, "--skip-bad-rows", code=3)
    assert "rendered   3 images" in said
    assert "skipped    2 manifest rows" in said
    assert "bad:2" in said
    assert "must start before" in said
    failures = pq.read_table(darkroom.folder / "bad-out" / "failures.parquet").to_pylist()
    assert [row["manifest_row"] for row in failures] == [2]
    status = json.loads(darkroom.run("status", "bad-out", "--json"))
    assert (status["ok"], status["failed"], status["remaining"]) == (3, 1, 0)


def bad_job(folder: Path, text: str) -> str:
    path = folder / "job.yaml"
    path.write_text(text)
    return str(path)


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--manifest", "none.parquet"], "no such manifest"),
        (["--manifest", "job.yaml"], "not a Parquet file"),
        (["--manifest", "nocolumn.parquet"], "no prompt column"),
        (["--manifest", "null.parquet"], "null prompt"),
        (["--manifest", "reserved.parquet"], "Darkroom's own metadata"),
        (["--manifest", "m.parquet", "--sizes", "98x96"], "does not fit the model"),
        (["--manifest", "m.parquet", "--set", "sweep.guidance_scals=3"], "did you mean 'guidance_scales'"),
        (["--manifest", "m.parquet", "--model", "./nowhere"], "no such model"),
        (["--manifest", "m.parquet", "--seeds", "x"], "--seeds"),
        (["--manifest", "m.parquet", "--set", "model.scheduler=magic"], "no such scheduler"),
        (["--manifest", "m.parquet", "-o", "m.parquet/inside"], "output cannot be written"),
        (["--manifest", "m.parquet", "-o", "gs://bucket/x"], "gs:// is not supported"),
        (["--manifest", "m.parquet", "--limit", "1", "--sample", "1"], "exclude each other"),
        (["--nonsense"], "No such option"),
        ([], "no manifest"),
        (["job.yaml"], "not plain YAML"),
        (["none.yaml"], "no such job file"),
    ],
)
def test_bad_input_exits_with_2_before_anything_is_rendered(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, command: Command, words: list[str], says: str
) -> None:
    monkeypatch.chdir(tmp_path)
    bad_job(tmp_path, "manifest: !!python/object/apply:os.system ['true']\n")
    write_manifest(tmp_path / "m.parquet", [{"prompt": "a"}])
    write_manifest(tmp_path / "nocolumn.parquet", [{"text": "a"}])
    write_manifest(tmp_path / "null.parquet", [{"prompt": "a"}, {"prompt": None}])
    write_manifest(tmp_path / "reserved.parquet", [{"prompt": "a", "file_name": "x"}])
    code, _, said = command("render", *words)
    assert code == 2
    assert says in said
    assert "Traceback" not in said
    assert not list(tmp_path.rglob("*.png"))


def test_unreachable_bucket_exits_with_2(tmp_path: Path, s3_server: SwiftServer) -> None:
    darkroom = Darkroom(tmp_path)
    darkroom.environment.update(aws_environment(s3_server))
    write_manifest(tmp_path / "m.parquet", [{"prompt": "a"}])
    said = darkroom.run("render", "--manifest", "m.parquet", "-o", "s3://no-such-bucket/x", code=2)
    assert "NoSuchBucket" in said
    assert "testing" not in said
