"""Runs that an earlier version made (``tests/stored``) are continued, checked, shown and exported by today's code."""

import json
import shlex
import shutil
import sys
from collections.abc import Callable, Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow.parquet as pq
import pytest

from jobs import cli
from pipeline.config import load_job
from pipeline.distributed import launch as launching
from pipeline.distributed.binding import find_model
from pipeline.distributed.rerender import rerender
from pipeline.export.formats import export
from pipeline.identity import IdSet
from pipeline.output.finalize import finalize
from pipeline.output.run import read_run
from pipeline.planning.selection import Selection
from pipeline.planning.tasks import Space, plan_batch
from pipeline.prepare import Prepared, numbered_batches, prepare
from pipeline.readable import readable_schema
from pipeline.rendering.renderer import load_renderer
from pipeline.storage.local import LocalStore
from tests.faults.without_ray import Plan, launch_here
from tests.report.reading import cells_of
from tests.test_end_to_end import Darkroom

STORED = Path(__file__).parent / "stored"
TYPES = ("types-files", "types-webdataset", "types-parquet")
FINISHED = {"files": (7, 5), "webdataset": (8, 8), **dict.fromkeys(TYPES, (2, 0))}
"""Images and failures of the runs that came to their end."""
KILLED, PLANNED = "parquet", 84
"""The run that was killed after its first parts, and all its tasks."""
RUNS = {**FINISHED, KILLED: (20, 20)}
OWN = {"model", "strength", "mask"}

Command = Callable[..., tuple[int, str, str]]


@pytest.fixture
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Return a copy of everything stored, which is the working directory."""
    copied = tmp_path / "stored"
    shutil.copytree(STORED, copied)
    monkeypatch.chdir(copied)
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path / "cache"))
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    return copied


@pytest.fixture
def darkroom(folder: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run the command in this process; return exit code, output and errors."""

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["darkroom", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(str(ended.value.code)), said.out, said.err

    return run


def committed(name: str) -> dict[str, dict[str, Any]]:
    """Return every row of every part by its task."""
    parts = Path("runs", name, "metadata").glob("*/*.parquet")
    return {row["task_id"]: row for part in parts for row in pq.read_table(part, partitioning=None).to_pylist()}


def table(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = pq.read_table(f"runs/{name}/metadata.parquet").to_pylist()
    return rows


def continued(name: str, cache: Path, **settings: Any) -> int:
    """Render what is missing with the real model, without Ray; return how many images were missing."""
    wanted = [(key.replace("__", "."), value) for key, value in settings.items()]
    prepared = prepare(load_job(Path(f"{name}.yaml"), wanted, date(2026, 1, 1)))
    store = LocalStore(Path("runs", name))
    run = read_run(store)
    assert run is not None
    model = find_model(prepared, run, cache, lambda _: None)
    renderer = load_renderer(
        model.folder,
        dtype=run.constants.dtype,
        device="cpu",
        rows=run.batch_rows(prepared.model.family),
        loras=model.source.lora_files(),
    )
    return launch_here(store, Plan(prepared=prepared, model=model), renderer)


@pytest.mark.parametrize("name", FINISHED)
def test_the_same_command_renders_nothing_more(name: str, darkroom: Command) -> None:
    before = Path("runs", name, "metadata.parquet").read_bytes()
    code, said, _ = darkroom("render", f"{name}.yaml")
    assert (code, f"Nothing to render: all {sum(FINISHED[name])} images" in said) == (0, True)
    assert Path("runs", name, "metadata.parquet").read_bytes() == before


@pytest.mark.parametrize("name", RUNS)
def test_everything_that_reads_a_run(name: str, darkroom: Command, tmp_path: Path) -> None:
    images, failures = RUNS[name]
    code, said, _ = darkroom("finalize", f"runs/{name}", "--json")
    assert (code, [json.loads(said)[key] for key in ("ok", "failed")]) == (0, [images, failures])
    assert table(name) == [row for row in committed_in_order(name) if row["status"] == "ok"]
    assert darkroom("verify", f"runs/{name}")[1].endswith("intact     everything is as it was written\n")
    found = json.loads(darkroom("status", f"runs/{name}", "--json")[1])
    remaining = PLANNED - images - failures if name == KILLED else 0
    assert [found[key] for key in ("ok", "failed", "remaining")] == [images, failures, remaining]
    assert darkroom("contact-sheet", f"runs/{name}", "--to", str(tmp_path / "sheet"))[0] == 0
    cells = cells_of(tmp_path / "sheet")
    assert len(cells) == images + failures
    if name not in TYPES:
        assert {column for cell in cells for column in cell["metadata"]} >= OWN


def committed_in_order(name: str) -> list[dict[str, Any]]:
    order = {row["task_id"]: number for number, row in enumerate(table(name))}
    return sorted(committed(name).values(), key=lambda row: order.get(row["task_id"], -1))


@pytest.mark.parametrize("name", FINISHED)
@pytest.mark.parametrize("form", ["imagefolder", "webdataset", "diffusiondb", "geneval"])
def test_every_export(name: str, form: str, darkroom: Command) -> None:
    code, said, errors = darkroom("export", f"runs/{name}", "out", "--to", form)
    assert (code, errors) == (0, "")
    assert f"exported   {FINISHED[name][0]} images" in said
    assert len([path for path in Path("out").rglob("*") if path.is_file()]) >= 2


@pytest.mark.parametrize("name", RUNS)
def test_explain_prints_a_command_for_the_same_task(
    name: str, darkroom: Command, monkeypatch: pytest.MonkeyPatch
) -> None:
    caught: list[Prepared] = []

    def caught_launch(prepared: Prepared, *_: object) -> None:
        caught.append(prepared)
        raise KeyboardInterrupt

    monkeypatch.setattr(launching, "launch", caught_launch)
    run = read_run(LocalStore(Path("runs", name)))
    assert run is not None
    row = [row for row in committed(name).values() if row["status"] == "ok"][-1]
    facts = json.loads(darkroom("explain", row["task_id"], "--output", f"runs/{name}", "--json")[1])
    assert darkroom(*shlex.split(facts["again"])[1:])[0] == 130
    space = Space(axes=caught[0].axes, family=caught[0].model.family, run_digest=run.constants.digest())
    (batch,) = numbered_batches(caught[0].manifest)
    (made,) = (task for tasks in plan_batch(batch, space, Selection(), IdSet()) for task in tasks.to_pylist())
    assert made["task_id"].hex() == row["task_id"]


@pytest.mark.parametrize("name", ["files", "webdataset", KILLED])
def test_images_are_drawn_again(name: str, folder: Path) -> None:
    """Another processor may round otherwise, so a few units of 255 are allowed, more in bfloat16 and JPEG."""
    made = rerender(LocalStore(folder / "runs" / name), 4, folder / "cache", lambda _: None)
    assert [one.error for one in made.compared] == [None] * 4
    allowed = 2 if name == "files" else 24
    assert all(one.equal or (one.difference or 0) <= allowed for one in made.compared)


@pytest.mark.parametrize(
    ("name", "wider", "new"),
    [
        ("files", {"sweep__seeds": "0-2"}, 4),
        ("webdataset", {"sweep__guidance_scales": [1, 4, 2.5]}, 8),
        ("types-files", {"sweep__seeds": "0-1", "render__shard_images": 2}, 2),
        ("types-webdataset", {"sweep__seeds": "0-1", "render__shard_images": 2}, 2),
        ("types-parquet", {"sweep__seeds": "0-1", "render__shard_images": 2}, 2),
    ],
)
def test_a_wider_sweep_renders_what_is_new(
    name: str, wider: dict[str, Any], new: int, folder: Path, darkroom: Command
) -> None:
    before, rows, schema = committed(name), table(name), pq.read_schema(f"runs/{name}/metadata.parquet")
    assert continued(name, folder / "cache", **wider) == new
    after = committed(name)
    assert len(after) == len(before) + new
    assert {task: after[task] for task in before} == before
    assert [row for row in table(name) if row["task_id"] in before] == rows
    assert pq.read_schema(f"runs/{name}/metadata.parquet") == schema
    assert darkroom("verify", f"runs/{name}")[0] == 0


def test_columns_of_a_run_that_began_before_keep_their_types(folder: Path) -> None:
    """A new run keeps the same manifest's columns in types that ``datasets`` reads, and exports always have those."""
    prepared = prepare(load_job(Path("types-files.yaml"), [], date(2026, 1, 1)))
    named = [sentence.split("'")[1] for sentence in prepared.warnings if "is stored as" in sentence]
    assert named == ["json", "uuid", "map"]
    assert prepared.packing.columns == "readable"
    store = LocalStore(folder / "runs" / "types-files")
    run = read_run(store)
    assert run is not None
    assert run.packing.columns is None
    stored = pq.read_schema(folder / "runs" / "types-files" / "metadata.parquet")
    assert [str(stored.field(name).type) for name in ("json", "uuid", "map")] == [
        "extension<arrow.json>",
        "extension<arrow.uuid>",
        "map<string, int32 ('map')>",
    ]
    export(store, LocalStore(folder / "out"), "imagefolder", lambda done, total: None)
    exported = pq.read_schema(folder / "out" / "metadata.parquet")
    assert exported.types == readable_schema(exported).types


def test_failures_are_tried_again_when_asked(folder: Path) -> None:
    store = LocalStore(folder / "runs" / "files")
    prepared = prepare(load_job(Path("files.yaml"), [], date(2026, 1, 1)))
    model = find_model(prepared, read_run(store), folder / "cache", lambda _: None)
    renderer = load_renderer(model.folder, dtype="float32", device="cpu", rows=8)
    assert launch_here(store, Plan(prepared=prepared, model=model), renderer, retry_failed=True) == 5
    assert finalize(store).failed == 5
    attempts = {row["attempt"] for row in pq.read_table("runs/files/failures.parquet").to_pylist()}
    assert attempts == {1}


def test_the_killed_run_goes_on(folder: Path, tmp_path: Path, shared_ray: Mapping[str, str]) -> None:
    """The one launch with Ray: the very command that was killed."""
    before = committed(KILLED)
    user = Darkroom(tmp_path, shared_ray)
    user.folder = folder
    said = user.run("render", f"{KILLED}.yaml")
    assert "rendered   23 images" in said
    after = committed(KILLED)
    assert len(after) == PLANNED
    assert {task: after[task] for task in before} == before
    assert "everything is as it was written" in user.run("verify", f"runs/{KILLED}")
