"""Tiny models, built and loaded once per session; one CPU thread."""

from collections.abc import Iterator
from pathlib import Path

import pytest
import torch

from pipeline.rendering.loading import LoadedModel, load_model
from tests.tiny_models import save, stable_diffusion

_DIFFERENCES = pytest.StashKey[dict[tuple[str, str], tuple[int, float]]]()


def note_difference(config: pytest.Config, model: str, scheduler: str, of_pixels: int, of_latents: float) -> None:
    """Keep the largest difference from stock, of pixels 0..255 and of latents in standard deviations."""
    noted = config.stash.setdefault(_DIFFERENCES, {})
    before = noted.get((model, scheduler), (0, 0.0))
    noted[model, scheduler] = (max(before[0], of_pixels), max(before[1], of_latents))


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    noted = config.stash.get(_DIFFERENCES, {})
    if not noted:
        return
    terminalreporter.section("largest differences from stock diffusers: pixels (of 255), latents (of their deviation)")
    for (model, scheduler), (of_pixels, of_latents) in sorted(noted.items()):
        terminalreporter.write_line(f"{model:14} {scheduler:56} {of_pixels:3d}  {of_latents:.1e}")


@pytest.fixture(scope="session", autouse=True)
def _one_thread() -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(scope="session")
def epsilon_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(stable_diffusion("epsilon"), tmp_path_factory.mktemp("epsilon"))


@pytest.fixture(scope="session")
def velocity_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return save(stable_diffusion("v_prediction"), tmp_path_factory.mktemp("velocity"))


@pytest.fixture(scope="session")
def epsilon_model(epsilon_folder: Path) -> LoadedModel:
    return load_model(epsilon_folder, dtype="float32", device="cpu")


@pytest.fixture(scope="session")
def velocity_model(velocity_folder: Path) -> LoadedModel:
    return load_model(velocity_folder, dtype="float32", device="cpu")
