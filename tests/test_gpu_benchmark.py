"""``benchmarks.gpu`` on a CPU: every section with a tiny model, and what it needs installed."""

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any
from unittest.mock import patch

import pytest
import torch
from torch import Tensor

from benchmarks import device_sections
from benchmarks.architectures import ARCHITECTURES, build, byte_tokenizer, networks
from benchmarks.figures import Figures, Row
from benchmarks.launches import on_pretend_gpu
from benchmarks.subject import Subject
from pipeline.rendering.batch import Batch
from pipeline.rendering.loading import load_model

ROOT = Path(__file__).parent.parent
NOT_NEEDED = ("ray", "boto3", "pyarrow", "pydantic", "scipy", "accelerate", "peft", "torchvision")
SMALLEST = "--architecture tiny --device cpu --rows 4 --seconds 0 --steps 2 3 4 --tasks 4 --loop-tasks 1 --compile"


@pytest.fixture(scope="module")
def measured(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """What one run says, as JSON, with ``stdout`` beside it; compilers take minutes here, so nothing is compiled."""
    file = tmp_path_factory.mktemp("figures") / "figures.json"
    command = [sys.executable, "-m", "benchmarks.gpu", *SMALLEST.split(), "--json", str(file)]
    environment = {**os.environ, "TORCHDYNAMO_DISABLE": "1"}
    ran = subprocess.run(command, capture_output=True, text=True, cwd=ROOT, env=environment, check=False)
    assert ran.returncode == 0, ran.stderr
    return {**json.loads(file.read_text()), "stdout": ran.stdout}


def test_every_section_is_printed_and_kept(measured: dict[str, Any]) -> None:
    assert list(measured["tables"]) == [
        f"tiny {name}"
        for name in ("denoiser", "attention", "decoder", "work", "waits", "processes", "stages", "parity", "invariance")
    ]
    for title, rows in measured["tables"].items():
        assert f"\n{title}\n" in measured["stdout"]
        assert rows
        # A CPU has not all kernels for attention.
        assert title == "tiny attention" or not [row for row in rows if "note" in row]
    assert {"machine", "torch", "diffusers", "transformers", "seed"} <= measured["about"].keys()
    assert measured["left_out"] == []


def test_the_times_make_sense(measured: dict[str, Any]) -> None:
    for row in measured["tables"]["tiny denoiser"]:
        assert row["evaluations/s"] == pytest.approx(4e3 / row["ms/call"])
    for row in measured["tables"]["tiny stages"]:
        assert row["images/s"] > 0
        assert min(row["encode s"], row["denoise s"], row["decode s"]) > 0
        assert row["real rows"] == 1
    works = measured["tables"]["tiny work"]
    assert {row["contestant"] for row in works} == {"B0", "B1", "B2", "engine", "compiled"}
    for row in works:
        assert row["images/s"] > 0
        assert row["x B1"] == pytest.approx(row["images/s"] / next(
            rival["images/s"] for rival in works if (rival["work"], rival["contestant"]) == (row["work"], "B1")
        ))  # fmt: skip


def test_pictures_are_those_of_the_stock_pipeline(measured: dict[str, Any]) -> None:
    rows = {row["contestant"]: row for row in measured["tables"]["tiny parity"]}
    for name in ("engine", "compiled"):
        assert rows[name]["as required"]
        assert rows[name]["largest /255"] <= 1
    assert rows["B0"]["contrast /255"] > 10


def test_two_processes_give_the_same_bytes(measured: dict[str, Any]) -> None:
    (row,) = measured["tables"]["tiny processes"]
    assert row["images"] == 5
    assert row["byte-equal"]


def test_the_decoder_and_the_steps_are_timed(measured: dict[str, Any]) -> None:
    assert [row["rows"] for row in measured["tables"]["tiny decoder"]] == [1, 2, 4, 8] * 2
    assert all(row["host ms/step"] > 0 for row in measured["tables"]["tiny waits"])


@pytest.fixture(scope="module")
def built(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return build(ARCHITECTURES["tiny"], tmp_path_factory.mktemp("built") / "tiny", dtype="float32", device="cpu")


def waits_on_a_pretend_gpu(built: Path) -> list[Row]:
    """The rows of the section with the tiny model's own networks on a GPU where every wait can be an error."""
    figures = Figures(None, 600)
    with on_pretend_gpu(load_model(built, dtype="float32", device="cpu")) as (gpu, model):
        subject = Subject.of_folder("tiny", built, dtype="float32", device="cuda", rows=4)
        with patch.object(subject, "model", lambda _: model):
            device_sections.waits(subject, figures)
        assert gpu.sync_debug_mode == "default"
    return figures.rows("tiny waits")


def test_thirty_steps_never_wait_for_a_gpu(built: Path) -> None:
    rows = waits_on_a_pretend_gpu(built)
    assert [row["scheduler"] for row in rows] == ["euler", "unipc", "euler_ancestral"]
    for row in rows:
        assert "note" not in row
        assert (row["steps"], row["waited"]) == (30, False)


def test_a_step_that_waits_for_a_gpu_is_reported(built: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    advance = Batch.advance

    def waiting(batch: Batch, predicted: Tensor) -> None:
        advance(batch, predicted)
        float(predicted[0, 0, 0, 0])

    monkeypatch.setattr(Batch, "advance", waiting)
    monkeypatch.setattr(device_sections, "SCHEDULERS_WITHOUT_WAITS", ("euler",))
    (row,) = waits_on_a_pretend_gpu(built)
    assert "synchronizing CUDA operation" in str(row["note"])


def test_neighbours_change_no_byte(measured: dict[str, Any]) -> None:
    rows = measured["tables"]["tiny invariance"]
    assert len(rows) == 4
    assert all(row["byte-equal"] and row["largest /255"] == 0 for row in rows)


def test_it_needs_neither_ray_nor_arrow() -> None:
    code = f"import sys; sys.modules.update(dict.fromkeys({NOT_NEEDED})); import benchmarks.gpu"
    ran = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, cwd=ROOT, check=False)
    assert ran.returncode == 0, ran.stderr


def test_the_architectures_have_the_published_sizes() -> None:
    """Parameters, as the published weights' files have them."""
    sizes = {}
    for name in ("sd15", "sdxl"):
        with torch.device("meta"):
            parts = networks(ARCHITECTURES[name], byte_tokenizer())
        sizes[name] = {part: sum(weights.numel() for weights in net.parameters()) for part, net in parts.items()}
    assert sizes["sd15"] == {"unet": 859_520_964, "vae": 83_653_863, "text_encoder": 123_060_480}
    assert sizes["sdxl"] == {
        "unet": 2_567_463_684, "vae": 83_653_863, "text_encoder": 123_060_480, "text_encoder_2": 694_659_840,
    }  # fmt: skip


def test_what_breaks_becomes_a_row_and_time_ends(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    now = 0.0
    figures = Figures(tmp_path / "figures.json", 10, clock=lambda: now)
    figures.table("calls", ("rows", "ms"))
    for rows, error in ((64, torch.OutOfMemoryError("CUDA out of memory")), (32, RuntimeError("no compiler\nhere"))):
        with figures.surviving({"rows": rows}):
            raise error
    assert figures.may_start("stages")
    now = 10.0
    assert not figures.may_start("work")
    figures.close([])
    kept = json.loads((tmp_path / "figures.json").read_text())
    assert kept["tables"]["calls"] == [
        {"rows": 64, "note": "out of memory"},
        {"rows": 32, "note": "RuntimeError: no compiler"},
    ]
    said = capsys.readouterr().out
    assert "out of memory" in said
    assert said.endswith("left out, the time is used up: work\n")
