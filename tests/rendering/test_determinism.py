"""What decides last bits is set in every process that renders, and given back to programs that use the library."""

import os
from pathlib import Path

import pytest
import torch

from pipeline.output.run import NumericsProfile
from pipeline.rendering.determinism import COMPILE_OPTIONS, SETTINGS, settings_restored
from pipeline.rendering.renderer import load_renderer


def settings() -> dict[str, object]:
    return {
        "matmul_tf32": torch.backends.cuda.matmul.allow_tf32,
        "cudnn_tf32": torch.backends.cudnn.allow_tf32,
        "cudnn_benchmark": torch.backends.cudnn.benchmark,
        "cublas_workspace": os.environ.get("CUBLAS_WORKSPACE_CONFIG"),
        "allocator": os.environ.get("PYTORCH_ALLOC_CONF"),
    }


def test_a_loaded_renderer_has_set_up_its_process(epsilon_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("CUBLAS_WORKSPACE_CONFIG", "PYTORCH_ALLOC_CONF"):
        monkeypatch.delenv(name, raising=False)
    before = settings()
    with settings_restored():
        torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.benchmark = True
        load_renderer(epsilon_folder, dtype="float32", device="cpu", rows=2)
        assert settings() == SETTINGS
    assert settings() == before


def test_every_setting_is_kept_with_the_run() -> None:
    profile = NumericsProfile(rows="auto", compiled=False, threads=1, device="cpu", versions={})
    assert all(hasattr(profile, name) for name in SETTINGS)


def test_inductor_knows_the_options() -> None:
    assert all(hasattr(torch._inductor.config, name) for name in COMPILE_OPTIONS)
