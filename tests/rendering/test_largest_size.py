"""Transformers with a table of positions draw no picture beyond it."""

from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import load_job
from pipeline.errors import JobFileError, ManifestError
from pipeline.model.facts import read_facts
from pipeline.model.family import FAMILIES
from pipeline.prepare import Prepared, prepare
from pipeline.rendering.renderer import load_renderer
from pipeline.rendering.results import Failed, Rendered
from tests import tiny_models
from tests.rendering.tasks import task


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Stable Diffusion 3 with 16 positions per side, of 2 latent pixels each."""
    return tiny_models.save(tiny_models.stable_diffusion_3(), tmp_path_factory.mktemp("sd3"))


def prepared(folder: Path, tmp_path: Path, width: int | None, sizes: list[list[int]]) -> Prepared:
    row = {"prompt": ["a cat"], "width": [width], "height": [width]}
    pq.write_table(pa.table(row), tmp_path / "m.parquet")
    settings = [("manifest", str(tmp_path / "m.parquet")), ("model.id", str(folder)), ("sweep.sizes", sizes)]
    return prepare(load_job(None, settings, date(2026, 1, 1)))


def test_larger_pictures_are_refused_before_anything_is_rendered(folder: Path, tmp_path: Path) -> None:
    most = read_facts(folder).max_side_px
    factor = read_facts(folder).size_factor
    assert most == 16 * factor
    prepared(folder, tmp_path, most, [[most, factor]])
    with pytest.raises(JobFileError, match=rf"too large for the model(.|\n)*sides up to {most} px"):
        prepared(folder, tmp_path, None, [[factor, most + factor]])
    with pytest.raises(ManifestError, match=rf"from 1 to {most}|up to {most}"):
        prepared(folder, tmp_path, most + factor, [[factor, factor]])


def test_one_that_is_not_fails_alone(folder: Path) -> None:
    most = read_facts(folder).max_side_px
    renderer = load_renderer(folder, dtype="float32", device="cpu", rows=4)
    flow = {"scheduler": "flow_match_euler", "num_inference_steps": 2}
    good, large = task(width=32, **flow), task(width=2 * most, **flow)
    first, second = sorted(renderer.render([large, good]), key=lambda outcome: outcome.task.recipe.width)
    assert isinstance(first, Rendered)
    assert isinstance(second, Failed)
    assert f"{most} px at most" in second.error


def test_auraflow_counts_the_positions_of_a_square() -> None:
    assert FAMILIES["AuraFlowPipeline"].max_side_px({"pos_embed_max_size": 1024}, 8) == 32 * 2 * 8
