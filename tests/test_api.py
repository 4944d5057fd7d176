"""Darkroom from Python, as docs/python.md shows it."""

import os
import re
import subprocess
import sys
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from PIL import Image

import pipeline
from pipeline import draw, job, plan
from pipeline.errors import JobFileError, ManifestError, RenderError

ROOT = Path(__file__).parent.parent
KEYS = {"sweep": {"guidance_scales": [1, 4], "num_inference_steps": [2], "sizes": [[32, 32]]}}


def test_the_page_runs_and_draws_what_render_commits(tmp_path: Path) -> None:
    snippets = re.findall(r"```python\n(.*?)```", (ROOT / "docs" / "python.md").read_text(), re.S)
    script = "\n".join(snippets) + ("\nfor drawn in draw(mine):\n    drawn.image.save(f'{drawn.task_id}.png')\n")
    environment = {**os.environ, "PYTHONPATH": str(ROOT), "HOME": str(tmp_path), "OMP_NUM_THREADS": "1"}
    done = subprocess.run(
        [sys.executable, "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[0] == "4 24"
    rows = pq.read_table(tmp_path / "renders" / "notebook" / "metadata.parquet").to_pylist()
    assert len(rows) == 4
    for row in rows:
        ours = np.asarray(Image.open(tmp_path / f"{row['task_id']}.png")).astype(int)
        theirs = np.asarray(Image.open(tmp_path / "renders" / "notebook" / row["file_name"]))
        assert np.abs(ours - theirs).max() <= 1


def manifest(folder: Path, **columns: list[object]) -> str:
    pq.write_table(pa.table(columns), folder / "m.parquet")
    return str(folder / "m.parquet")


def test_keys_go_over_the_file(tmp_path: Path) -> None:
    (tmp_path / "job.yaml").write_text("manifest: m.parquet\nsweep: {seeds: 0-3, guidance_scales: [2]}\n")
    given = job(tmp_path / "job.yaml", sweep={"seeds": [7]}, model={"dtype": "float32"})
    assert (given.sweep.seeds, given.sweep.guidance_scales, given.model.dtype) == ((7,), (2.0,), "float32")
    with pytest.raises(JobFileError, match="did you mean 'seeds'"):
        job(manifest="m.parquet", sweep={"seds": 1})


def test_bad_input_is_an_error_of_ours(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="null prompt"):
        plan(job(manifest=manifest(tmp_path, prompt=["a", None]), output={"uri": str(tmp_path / "out")}, **KEYS))


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
