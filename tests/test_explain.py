"""``darkroom explain``: what it finds of an image, and that the command it prints renders the same pixels again."""

import json
import shlex
import shutil
import subprocess
import sys
from collections.abc import Callable, Mapping
from dataclasses import replace
from itertools import pairwise
from pathlib import Path
from typing import Any, get_args

import pyarrow.parquet as pq
import pytest

from jobs import cli
from pipeline.distributed import launch as launching
from pipeline.identity import IdSet, RunConstants
from pipeline.output.again import command_of, words_of
from pipeline.output.finalize import finalize
from pipeline.output.layout import Layout, Packing
from pipeline.output.lookup import find_row, task_id_of
from pipeline.output.run import Run, write_run
from pipeline.planning.selection import Selection
from pipeline.planning.tasks import Space, plan_batch
from pipeline.prepare import Prepared, numbered_batches
from pipeline.storage.local import LocalStore
from tests.test_end_to_end import Darkroom, write_manifest
from tests.test_output import FACTS, RUN, commit, failed, rendered, task

ID = task(1).task_id
Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def darkroom(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Runs the command in this process; gives exit code, output and errors."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["darkroom", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(str(ended.value.code)), said.out, said.err

    return run


def write_output(folder: Path, layout: Layout = "files") -> str:
    """A run with an image and a failure; returns where the image is."""
    packing = Packing(layout=layout, provenance="full")
    store = LocalStore(folder)
    write_run(store, replace(RUN, packing=packing))
    rows = commit(store, rendered(1), failed(2), facts=replace(FACTS, packing=packing))
    return f"{folder}/{rows['file_name'][0].as_py()}"


@pytest.mark.parametrize(
    ("name", "found"),
    [
        (ID, ID), (f"out/images/01/{ID}-0123abcd.png", ID), (f"s3://b/out/shards/x.tar/{ID}.webp", ID),
        (f"{ID}.jpg", ID), (f"{ID}0", None), ("holiday.png", None), (f"{ID}-0123.png", None), ("", None),
    ],
)  # fmt: skip
def test_names(name: str, found: str | None) -> None:
    assert task_id_of(name) == found


@pytest.mark.parametrize("layout", get_args(Layout))
@pytest.mark.parametrize("finalized", [False, True])
def test_by_path_and_by_id(layout: Layout, finalized: bool, tmp_path: Path, darkroom: Command) -> None:
    image = write_output(tmp_path / "out", layout)
    if finalized:
        finalize(LocalStore(tmp_path / "out"))
    for words in ([image], [ID, "--output", str(tmp_path / "out")]):
        code, said, _ = darkroom("explain", *words)
        assert code == 0
        for fact in (
            f"task       {ID}", "prompt     p1", "seed 1, guidance 2, 5 steps, ddim, 8x8 px", "m.parquet, row 1",
            "cpu in 16 rows", "torch 2", 'columns    {"theme": "x"}', "again      darkroom render --prompt p1 ",
        ):  # fmt: skip
            assert fact in said
    facts = json.loads(darkroom("explain", image, "--json")[1])
    assert (facts["task_id"], facts["status"], facts["extra"]) == (ID, "ok", {"theme": "x"})
    assert facts["same_bytes"] is (True if layout == "files" else None)
    code, said, _ = darkroom("explain", task(2).task_id, "-o", str(tmp_path / "out"))
    assert "image      none: nan_latents, decode: NaN: no" in said
    assert "again      darkroom render" in said


def test_an_image_that_went_its_own_way(tmp_path: Path, darkroom: Command) -> None:
    image = write_output(tmp_path / "out")
    inside, outside = tmp_path / "out" / "best.png", tmp_path / "holiday.png"
    for copy in (inside, outside):
        shutil.copy(image, copy)
    assert f"task       {ID}" in darkroom("explain", str(inside))[1]
    code, said, errors = darkroom("explain", str(outside))
    assert (code, said.splitlines()[:2]) == (0, [f"task       {ID}", "p1"])
    assert "Steps: 5, Sampler: DDIM" in said
    assert "--output" in errors
    assert json.loads(darkroom("explain", str(outside), "--json")[1])["infotext"].startswith("p1\nSteps: 5")
    assert "run        " in darkroom("explain", str(outside), "--output", str(tmp_path / "out"))[1]
    Path(image).write_bytes(Path(image).read_bytes() + b"x")
    assert "does not have the bytes" in darkroom("explain", image)[1]


def test_what_names_nothing(tmp_path: Path, darkroom: Command) -> None:
    write_output(tmp_path / "out")
    (tmp_path / "text.png").write_text("no image")
    for words, says in (
        ([str(tmp_path / "text.png")], "this is no image of a run"),
        ([str(tmp_path / "none.png")], "there is no such file"),
        ([str(tmp_path)], "this is a folder"),
        ([ID], "there is no run above this image"),
        (["f" * 32, "-o", str(tmp_path / "out")], "the run has no image"),
        ([ID, "-o", str(tmp_path)], "there is no run at this output"),
        (["gs://x/y"], "this is no image of a run"),
        (["s3://"], "this is no image of a run"),
    ):
        code, _, errors = darkroom("explain", *words)
        assert code == 2, words
        assert errors.startswith(f"error: {says}")
        assert "  value:   " in errors


def test_a_later_image_counts_before_an_earlier_failure(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    write_run(store, RUN)
    commit(store, failed(1), rendered(2))
    finalize(store)
    assert (find_row(store, ID) or {})["status"] == "failed"
    commit(store, rendered(1), rendered(3))
    assert (find_row(store, ID) or {})["status"] == "ok"
    assert (find_row(store, task(3).task_id) or {})["theme"] == "x"
    assert find_row(store, "f" * 32) is None


NASTY = 'it\'s "a star"\n--seeds 3 $(rm) `x` \\ 🌟 #, {a: b} '


@pytest.mark.parametrize("prompt", [NASTY, "-a star", "--model x", "= *&!%@"])
@pytest.mark.parametrize(("guidance_scale", "negative"), [(1.00001, None), (7.5, "-ugly: 'very'"), (3.0, None)])
def test_the_command_is_about_the_same_task(
    prompt: str,
    guidance_scale: float,
    negative: str | None,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    darkroom: Command,
) -> None:
    """The job that the printed command makes has one task, with the recipe and the settings of the row."""
    caught: list[Prepared] = []

    def caught_launch(prepared: Prepared, *_: object) -> None:
        caught.append(prepared)
        raise KeyboardInterrupt

    monkeypatch.setattr(launching, "launch", caught_launch)
    monkeypatch.chdir(tmp_path)
    numerics = replace(RUN.numerics, compiled=True, threads=2)
    constants = replace(RUN.constants, dtype="bfloat16")
    packing = Packing(format="jpeg", jpeg_quality=80, provenance="no_prompt")
    run = replace(RUN, model_id="shapes", numerics=numerics, constants=constants, packing=packing)
    row: dict[str, Any] = {
        "prompt": prompt, "negative_prompt": negative, "seed": 2**32 - 1, "guidance_scale": guidance_scale,
        "num_inference_steps": 7, "scheduler": "dpmsolver++:karras:trailing", "width": 96, "height": 128, "rows": 8,
    }  # fmt: skip
    _, *words = shlex.split(command_of(run, row, "again"))
    assert darkroom(*words)[0] == 130
    (prepared,) = caught
    space = Space(axes=prepared.axes, family=prepared.model.family, run_digest=b"\0" * 16)
    (tasks,) = (
        table
        for batch in numbered_batches(prepared.manifest)
        for table in plan_batch(batch, space, Selection(), IdSet())
    )
    (made,) = tasks.to_pylist()
    assert {name: made[name] for name in row if name != "rows"} == {k: v for k, v in row.items() if k != "rows"}
    job = prepared.job
    assert (job.render.rows, job.render.compile, job.workers.cpus, job.workers.gpus) == (8, True, 2, 0)
    assert (job.model.dtype, prepared.packing) == ("bfloat16", replace(packing, columns="readable"))


def test_models_are_named_whole() -> None:
    constants = RunConstants(model_fingerprint="a", dtype="float16", scheduler_config={}, call={"clip_skip": 1})
    loras = [{"id": "my style.safetensors", "weight": 0.8}]
    run: Run = replace(RUN, model_revision="abc", constants=constants, job={"model": {"loras": loras}})
    row = {
        "prompt": "a", "negative_prompt": None, "seed": 1, "guidance_scale": None, "num_inference_steps": 2,
        "scheduler": "ddim", "width": 8, "height": 8, "rows": 1,
    }  # fmt: skip
    words = shlex.split(command_of(run, row, "again"))
    assert "--guidance-scales" not in words
    settings = [word for before, word in pairwise(words) if before == "--set"]
    assert f"model.loras={json.dumps(loras)}" in settings
    assert {"model.revision=abc", 'model.call={"clip_skip": 1}', "model.dtype=float16"} <= set(settings)
    assert not any("render.rows" in setting for setting in settings), "one call per image has no rows"


def test_a_model_is_reached_and_loaded_as_it_was() -> None:
    job = {"render": {"safety_checker": "off"}, "s3": {"endpoint_url": "http://minio:9000", "addressing_style": "auto"}}
    words = words_of(replace(RUN, model_id="s3://models/sd", job=job))
    assert {"render.safety_checker=off", "s3.endpoint_url=http://minio:9000"} <= set(words)
    assert not any("addressing_style" in word or "s3.region" in word for word in words)
    assert not any("s3.endpoint_url" in word for word in words_of(replace(RUN, job=job))), "of a model on disk"


def test_prompts_that_are_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, darkroom: Command) -> None:
    monkeypatch.chdir(tmp_path)
    for words in (
        ["--prompt", " "], ["--prompt", ""], ["--negative-prompt", "x"], ["--prompt", "a", "--manifest", "b"],
        ["--prompt", "\udcff"],
    ):  # fmt: skip
        assert darkroom("render", *words, "-o", "out")[0] == 2, words
    assert list(tmp_path.iterdir()) == []


def test_the_printed_command_renders_the_same_file(tmp_path: Path, shared_ray: Mapping[str, str]) -> None:
    user = Darkroom(tmp_path, shared_ray)
    prompts = [NASTY, "a red star"]
    write_manifest(tmp_path / "m.parquet", [{"prompt": prompt, "negative_prompt": "ugly\nthing"} for prompt in prompts])
    user.run(
        "render", "--manifest", "m.parquet", "--seeds", "3,5", "--guidance-scales", "1,4.5", "--steps", "2",
        "--schedulers", "dpmsolver++:karras", "-o", "out", "--set", "workers.count=1", "--set", "output.format=webp",
    )  # fmt: skip
    rows = pq.read_table(tmp_path / "out" / "metadata.parquet").to_pylist()
    row = next(row for row in rows if row["prompt"] == NASTY and row["seed"] == 5 and row["guidance_scale"] == 4.5)
    facts = json.loads(user.run("explain", f"out/{row['file_name']}", "--json"))
    command = facts["again"].replace("darkroom", f"{shlex.quote(sys.executable)} -m jobs", 1)
    environment = {**user.environment, "PYTHONPATH": str(Path(__file__).parent.parent)}
    subprocess.run(["bash", "-c", command], cwd=tmp_path, env=environment, check=True, capture_output=True)
    (again,) = pq.read_table(tmp_path / "renders" / f"again-{row['task_id'][:8]}" / "metadata.parquet").to_pylist()
    for name in ("task_id", "pixel_sha256", "file_sha256"):
        assert again[name] == row[name]
