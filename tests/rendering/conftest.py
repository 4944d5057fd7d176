"""Tiny models, built and loaded once per session."""

from pathlib import Path

import pytest

from pipeline.rendering.loading import LoadedModel, load_model
from tests.tiny_models import save, stable_diffusion


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
