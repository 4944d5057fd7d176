"""What is loaded, what is refused, and that neither is noisy."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline.errors import ModelError
from pipeline.rendering.loading import load_model

UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def copied(epsilon_folder: Path, tmp_path: Path) -> Path:
    return shutil.copytree(epsilon_folder, tmp_path / "model")


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


@pytest.mark.parametrize("dtype", ["float32", "float16", "bfloat16"])
def test_a_model_is_loaded_in_its_dtype_without_gradients(velocity_folder: Path, dtype: str) -> None:
    model = load_model(velocity_folder, dtype=dtype, device="cpu")
    stock = model.adapter.stock
    for module in (stock.unet, stock.vae, stock.text_encoder):
        assert not module.training
        assert {(p.dtype, p.requires_grad) for p in module.parameters()} == {(getattr(torch, dtype), False)}
    assert (model.device, model.dtype, model.adapter.latent_factor) == ("cpu", dtype, 4)
    config = model.adapter.schedulers.config
    assert (config["_class_name"], config["prediction_type"]) == ("DDIMScheduler", "v_prediction")
    assert stock.safety_checker is None


def pickle_unet(folder: Path) -> None:
    weights = folder / UNET_WEIGHTS
    torch.save(load_file(weights), weights.with_suffix(".bin"))
    weights.unlink()


def drop_a_weight(folder: Path) -> None:
    weights = load_file(folder / UNET_WEIGHTS)
    del weights["conv_in.weight"]
    save_file(weights, folder / UNET_WEIGHTS, metadata={"format": "pt"})


DAMAGE: dict[str, tuple[Callable[[Path], object], str]] = {
    "other class": (
        lambda folder: edit_json(folder / "model_index.json", _class_name="KolorsPipeline"),
        "not supported.*model_index.json.*KolorsPipeline.*allowed: StableDiffusionPipeline",
    ),
    "no index": (
        lambda folder: (folder / "model_index.json").unlink(),
        "file of the model is missing.*diffusers format",
    ),
    "broken index": (lambda folder: (folder / "model_index.json").write_text("{"), "file of the model cannot be read"),
    "list as index": (lambda folder: (folder / "model_index.json").write_text("[]"), "not a JSON object"),
    "own code": (
        lambda folder: edit_json(folder / "model_index.json", unet=["my_unet", "Mine"]),
        "not a module Darkroom loads.*model_index.json: unet.*my_unet",
    ),
    "pickle": (pickle_unet, "pickled weights are refused.*unet.*diffusion_pytorch_model.bin.*safetensors"),
    "no weights": (lambda folder: (folder / UNET_WEIGHTS).unlink(), "no weights"),
    "cut file": (lambda folder: (folder / UNET_WEIGHTS).write_bytes(b"x" * 20), "unet cannot be loaded"),
    "missing weight": (drop_a_weight, "1 weights are missing or of another shape.*unet.*conv_in.weight"),
    "other shape": (
        lambda folder: edit_json(folder / "unet/config.json", cross_attention_dim=8),
        "missing or of another shape.*unet|unet cannot be loaded",
    ),
    "no tokenizer": (lambda folder: shutil.rmtree(folder / "tokenizer"), "the tokenizer has no vocabulary"),
}


@pytest.mark.parametrize("damage", DAMAGE)
def test_what_cannot_be_rendered_is_refused(copied: Path, damage: str) -> None:
    harm, message = DAMAGE[damage]
    harm(copied)
    with pytest.raises(ModelError, match=f"(?s){message}"):
        load_model(copied, dtype="float32", device="cpu")


def test_an_unknown_dtype_is_refused(epsilon_folder: Path) -> None:
    with pytest.raises(ModelError, match=r"(?s)float8.*allowed: float32, float16, bfloat16"):
        load_model(epsilon_folder, dtype="float8", device="cpu")


def test_loading_says_nothing_and_leaves_no_setting_changed(epsilon_folder: Path) -> None:
    code = f"""
import logging, sys
from pathlib import Path
import diffusers, transformers
from pipeline.rendering.loading import load_model
load_model(Path({str(epsilon_folder)!r}), dtype="float16", device="cpu")
assert transformers.utils.logging.is_progress_bar_enabled() and diffusers.utils.logging.is_progress_bar_enabled()
assert not [f for n in ("diffusers", "transformers") for h in logging.getLogger(n).handlers for f in h.filters]
import pipeline.rendering.engine
assert not {{"ray", "pipeline.storage"}} & set(sys.modules)
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
