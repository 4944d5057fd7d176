"""Darkroom from Python, as docs/python.md shows it."""

import os
import re
import shutil
import subprocess
import sys
from inspect import signature
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import pipeline
from pipeline import draw, job, plan, render
from pipeline.config import PoolSection
from pipeline.errors import InputError, JobFileError, ManifestError, ModelError, RenderError
from tests import tiny_models

ROOT = Path(__file__).parent.parent
KEYS = {"sweep": {"guidance_scales": [1, 4], "num_inference_steps": [2], "sizes": [[32, 32]]}}


def test_the_page_runs_and_draws_what_render_commits(tmp_path: Path) -> None:
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.S)
    script = "\n".join(snippets) + ("\nfor drawn in draw(mine):\n    drawn.image.save(f'{drawn.task_id}.png')\n")
    environment = {
        **os.environ,
        "PYTHONPATH": str(ROOT),
        "OMP_NUM_THREADS": "1",
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
    }
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "4 24"
    rows = pq.read_table(tmp_path / "renders" / "notebook" / "metadata.parquet").to_pylist()
    assert len(rows) == 4
    assert (tmp_path / "cache" / "darkroom" / "digests").is_dir(), "where the command has them too"
    for row in rows:
        ours = np.asarray(Image.open(tmp_path / f"{row['task_id']}.png")).astype(int)
        theirs = np.asarray(Image.open(tmp_path / "renders" / "notebook" / row["file_name"]))
        assert np.abs(ours - theirs).max() <= 1


def test_the_page_names_every_argument() -> None:
    """But for those that the text tells of."""
    page = (ROOT / "docs" / "python.md").read_text()
    rows = re.findall(r"^\| (`.*`) \| (`.*`) \|$", page, re.M)
    named = {(verb, name) for names, verbs in rows for verb in words(verbs) for name in words(names)}
    told = {"job", "device", "address", "tell", "on_progress"}
    assert named == {(f.__name__, name) for f in (plan, draw, render) for name in signature(f).parameters.keys() - told}


def words(cell: str) -> list[str]:
    return re.findall(r"`(\w+)`", cell)


def manifest(folder: Path, **columns: list[object]) -> str:
    pq.write_table(pa.table(columns), folder / "m.parquet")
    return str(folder / "m.parquet")


def test_keys_go_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("manifest: m.parquet\nsweep: {seeds: 0-3, guidance_scales: [2]}\n")
    given = job(tmp_path / "job.yaml", sweep={"seeds": [7]}, model={"dtype": "float32"})
    assert (given.sweep.seeds, given.sweep.guidance_scales, given.model.dtype) == ((7,), (2.0,), "float32")
    with pytest.raises(JobFileError, match="did you mean 'seeds'"):
        job(manifest="m.parquet", sweep={"seds": 1})


def test_a_mapping_that_is_a_value_replaces_the_files(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text(
        "manifest: m.parquet\nmodel: tiny\nmanifest_columns: {text: prompt}\n"
        "sweep: {seeds: {random: 8, from: 42}, guidance_scales: [2]}\nworkers: {count: {min: 2, max: 3}, cpus: 2}\n"
    )
    given = job(
        tmp_path / "job.yaml",
        model={"call": {"clip_skip": 1}},
        manifest_columns={"my.caption": "prompt"},
        sweep={"seeds": {"start": 0, "stop": 3, "step": 1}},
        workers={"count": {"max": 9}},
    )
    assert (given.sweep.seeds, given.sweep.guidance_scales) == ((0, 1, 2, 3), (2.0,))
    assert given.manifest_columns == {"my.caption": "prompt"}
    assert (given.model.id, given.model.call) == ("tiny", {"clip_skip": 1})
    assert (given.workers.count, given.workers.cpus) == (PoolSection(min=1, max=9), 2)


def test_bad_input_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="null prompt"):
        plan(job(manifest=manifest(tmp_path, prompt=["a", None]), output={"uri": str(tmp_path / "out")}, **KEYS))


def test_bad_rows_are_skipped_when_asked(tmp_path: Path) -> None:
    bad = job(manifest=manifest(tmp_path, prompt=["a", None]), output={"uri": str(tmp_path / "out")}, **KEYS)
    counts = plan(bad, skip_bad_rows=True)
    assert (counts["rejected_rows"], counts["images_to_render"]) == (1, 2)
    assert {picture.recipe.prompt for picture in draw(bad, skip_bad_rows=True)} == {"a"}
    said: list[str] = []
    with pytest.raises(InputError, match="more to render than allowed"):
        render(bad, skip_bad_rows=True, max_images=1, tell=said.append)
    assert "row 1 (from 0), column prompt: null prompt" in said[0]


@pytest.mark.parametrize(
    ("given", "says"),
    [
        ({"limit": 1, "sample": 1}, "exclude each other"),
        ({"max_images": 1}, "more to render than allowed"),
        ({"max_cost": 1.0}, "a cost needs a price"),
        ({"max_cost": 1.0, "price_per_hour": 2.0}, "nobody knows yet"),
        ({"max_cost": 1.0, "price_per_hour": 7200.0, "rate": 2.0}, "cost more than allowed"),
        ({"rate": -1.0}, "nothing is rendered at this rate"),
        ({"price_per_hour": float("nan")}, "this is no price"),
    ],
)
def test_a_launch_is_held_to_what_it_may_spend(tmp_path: Path, given: dict[str, Any], says: str) -> None:
    two = job(manifest=manifest(tmp_path, prompt=["a"]), output={"uri": str(tmp_path / "out")}, **KEYS)
    with pytest.raises(InputError, match=says):
        render(two, **given)
    assert not list(tmp_path.rglob("*.png"))


def test_limit_and_sample_exclude_each_other(tmp_path: Path) -> None:
    two = job(manifest=manifest(tmp_path, prompt=["a"]), output={"uri": str(tmp_path / "out")}, **KEYS)
    with pytest.raises(InputError, match="exclude each other"):
        plan(two, limit=1, sample=1)
    with pytest.raises(InputError, match="exclude each other"):
        next(draw(two, limit=1, sample=1))


@pytest.fixture(scope="module")
def checked_model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Its checker flags every picture."""
    model = tiny_models.with_checker(tiny_models.stable_diffusion(), threshold=-1.5)
    return tiny_models.save(model, tmp_path_factory.mktemp("model"))


def test_the_safety_checker_counts_as_in_a_launch(tmp_path: Path, checked_model: Path) -> None:
    def drawn(policy: str) -> list[str]:
        given = {"manifest": manifest(tmp_path, prompt=["a star"]), "model": str(checked_model), **KEYS}
        return [picture.verdict for picture in draw(job(**given, render={"safety_checker": policy}))]

    assert drawn("flag") == ["flagged", "flagged"]
    assert drawn("off") == ["ok", "ok"]
    with pytest.raises(RenderError, match="'a star': Flagged: the model's safety checker flagged it"):
        drawn("drop")


def test_a_checker_that_is_not_to_be_trusted_is_refused(tmp_path: Path, checked_model: Path) -> None:
    model = shutil.copytree(checked_model, tmp_path / "model")
    weights = model / "safety_checker" / "model.safetensors"
    weights.rename(weights.with_name("pytorch_model.bin"))
    given = job(manifest=manifest(tmp_path, prompt=["a star"]), model=str(model), **KEYS)
    with pytest.raises(ModelError, match="pickled weights are refused") as caught:
        next(draw(given))
    assert "render.safety_checker: off" in (caught.value.allowed or "")


def test_an_image_that_cannot_be_drawn_says_so(tmp_path: Path) -> None:
    path = manifest(tmp_path, prompt=["a red star"], scheduler=["ddpm:timesteps=2000/5"])
    bad = job(manifest=path, output={"uri": str(tmp_path / "out")}, **KEYS)
    with pytest.raises(RenderError, match="'a red star'"):
        list(draw(bad))
    assert not (tmp_path / "out").exists()


def test_only_what_is_public_is_there() -> None:
    assert {"draw", "job", "plan", "render"} <= set(dir(pipeline))
    with pytest.raises(AttributeError):
        pipeline.nothing  # noqa: B018


def test_planning_loads_neither_torch_nor_ray(tmp_path: Path) -> None:
    code = (
        "import sys; from pipeline import job, plan; "
        f"plan(job(manifest={manifest(tmp_path, prompt=['a'])!r}, output={{'uri': 'out'}})); "
        "print({'torch', 'ray'} & sys.modules.keys())"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True).stdout
    assert said.strip() == "set()"
