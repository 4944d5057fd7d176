"""What decides last bits is set in every process that renders, and given back to programs that use the library."""

import os
from pathlib import Path
from typing import Any

import pytest
import torch

from pipeline.output.run import NumericsProfile
from pipeline.rendering.determinism import COMPILE_OPTIONS, SETTINGS, borrowed_settings
from pipeline.rendering.engine import Engine
from pipeline.rendering.loading import LoadedModel
from pipeline.rendering.renderer import load_renderer
from tests.rendering.tasks import pixels_by_id, task


def settings() -> dict[str, object]:
    return {
        "matmul_tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cublas_workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        "allocator": os.environ.get("PYTORCH_ALLOC_CONF"),
    }


@pytest.fixture(autouse=True)
def of_the_program(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("CUBLAS_WORKSPACE_CONFIG", ":16:8")
    monkeypatch.setenv("NVIDIA_TF32_OVERRIDE", "1")
    monkeypatch.delenv("PYTORCH_ALLOC_CONF", raising=False)


def test_a_loaded_renderer_has_set_up_its_process(epsilon_folder: Path) -> None:
    before = settings()
    with borrowed_settings():
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.benchmark = True
        load_renderer(epsilon_folder, dtype="float32", device="cpu", rows=2)
        assert settings() == SETTINGS, "whatever the environment said"
        assert "NVIDIA_TF32_OVERRIDE" not in os.environ
    assert settings() == before
    assert os.environ["NVIDIA_TF32_OVERRIDE"] == "1"


def test_a_program_that_draws_two_jobs_at_once_gets_its_own_settings_back() -> None:
    before, threads = settings(), torch.get_num_threads()
    first, second = borrowed_settings(), borrowed_settings()
    first.__enter__()
    torch.set_num_threads(threads + 1)
    second.__enter__()
    first.__exit__(None, None, None)
    assert settings() == SETTINGS, "the second one still draws"
    second.__exit__(None, None, None)
    assert (settings(), torch.get_num_threads()) == (before, threads)


def test_every_setting_is_kept_with_the_run() -> None:
    profile = NumericsProfile(rows="auto", compiled=False, threads=1, device="cpu", versions={})
    assert all(hasattr(profile, name) for name in SETTINGS)


def test_inductor_knows_the_options() -> None:
    assert all(hasattr(torch._inductor.config, name) for name in COMPILE_OPTIONS)


def test_whichever_way_a_program_says_how_precise_products_are_it_gets_that_back() -> None:
    """Torch refuses to read the old way after the new one was used."""
    on_cpu: Any = torch.backends.mkldnn
    matmul, on_cpu = torch.backends.cuda.matmul, on_cpu.matmul
    try:
        for new_way in (False, True):
            torch.set_float32_matmul_precision("medium")
            if new_way:
                matmul.fp32_precision = "ieee"
            before = matmul.fp32_precision, on_cpu.fp32_precision
            with borrowed_settings():
                assert (matmul.fp32_precision, on_cpu.fp32_precision) == ("ieee", "ieee")
                assert torch.get_float32_matmul_precision() == "highest", "inductor reads it"
            assert (matmul.fp32_precision, on_cpu.fp32_precision) == before
            assert new_way or torch.get_float32_matmul_precision() == "medium"
    finally:
        torch.set_float32_matmul_precision("highest")


def test_what_a_program_has_set_around_it_changes_no_pixel(epsilon_model: LoadedModel) -> None:
    wanted = [task(seed=1), task(seed=2, scheduler="euler_ancestral")]
    alone = pixels_by_id(Engine(epsilon_model, 4), wanted)
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert pixels_by_id(Engine(epsilon_model, 4), wanted) == alone
    torch.set_default_dtype(torch.float64)
    try:
        with borrowed_settings():
            assert pixels_by_id(Engine(epsilon_model, 4), wanted) == alone
        assert torch.get_default_dtype() == torch.float64
    finally:
        torch.set_default_dtype(torch.float32)
