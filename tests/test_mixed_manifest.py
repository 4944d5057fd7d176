"""A manifest whose rows agree in nothing: one command, one pass, each picture as stock diffusers draws it alone."""

import io
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pyarrow.parquet as pq
import pytest
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.schedulers import scheduler_of
from pipeline.storage.local import LocalStore
from tests import tiny_models
from tests.rendering.test_parity import LARGEST_PIXEL_DIFFERENCE
from tests.test_end_to_end import Darkroom, check_output, write_manifest

SIZES = ((32, 32), (64, 32), (32, 48))
SCHEDULERS = ("ddim", "euler_ancestral", "dpmsolver++:karras", "heun", None)
"""None is the model's own: DPM-Solver++, saved with an infinite number in its configuration."""
GUIDANCE = (0.0, 7.5, 1.0, 2.5)
STEPS = (1, 2, 3, 4, 5, 6, 7)
IMAGES = 30
"""Each of the fifteen pairs of a size and a scheduler twice."""


def row(number: int) -> dict[str, Any]:
    width, height = SIZES[number % len(SIZES)]
    return {
        "prompt": f"cat {number}",
        "negative_prompt": "ugly" if number % 3 else None,
        "seed": 1000 + number,
        "guidance_scale": GUIDANCE[number % len(GUIDANCE)],
        "num_inference_steps": STEPS[number % len(STEPS)],
        "scheduler": SCHEDULERS[number % len(SCHEDULERS)],
        "width": width,
        "height": height,
    }


def drawn_alone(stock: Any, own: Any, row: dict[str, Any]) -> NDArray[np.int_]:
    """By stock diffusers, called as the manifest says."""
    stock.scheduler = own
    if row["scheduler"] is not None:
        found = scheduler_of(row["scheduler"])
        stock.scheduler = getattr(diffusers, found.kind.class_name).from_config(own.config, **found.settings)
    options = {name: value for name, value in row.items() if name not in ("seed", "scheduler")}
    generator = torch.Generator("cpu").manual_seed(row["seed"])
    return np.asarray(stock(**options, generator=generator).images[0]).astype(int)


def test_each_picture_is_what_stock_draws_alone(tmp_path: Path, shared_ray: Mapping[str, str]) -> None:
    model = tiny_models.stable_diffusion()
    model.scheduler = diffusers.DPMSolverMultistepScheduler.from_config(model.scheduler.config)
    folder = tiny_models.save(model, tmp_path / "model")
    assert "-Infinity" in (folder / "scheduler" / "scheduler_config.json").read_text()
    rows = [row(number) for number in range(IMAGES)]
    write_manifest(tmp_path / "m.parquet", rows)
    darkroom, words = (
        Darkroom(tmp_path, shared_ray),
        ("render", "--manifest", "m.parquet", "--model", "model", "-o", "out"),
    )
    said = darkroom.run(*words, "--set", "workers.count=1", "--verbose")
    assert f"rendered   {IMAGES} images" in said
    assert "the model was loaded once" in said
    store = LocalStore(tmp_path / "out")
    digests = check_output(store, IMAGES)
    json.loads(store.get("_darkroom/run.json"), parse_constant=pytest.fail)
    assert len(set(digests.values())) == IMAGES

    stock = diffusers.DiffusionPipeline.from_pretrained(folder)
    stock.set_progress_bar_config(disable=True)
    own = stock.scheduler
    for made in pq.read_table(tmp_path / "out" / "metadata.parquet").to_pylist():
        asked = rows[made["manifest_row"]]
        picture = np.asarray(Image.open(io.BytesIO(store.get(made["file_name"])))).astype(int)
        assert np.abs(picture - drawn_alone(stock, own, asked)).max() <= LARGEST_PIXEL_DIFFERENCE, asked

    assert f"Nothing to render: all {IMAGES} images are there, in " in darkroom.run(*words)
    assert check_output(store, IMAGES) == digests
