"""Low-rank weights, fused when the model is loaded."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import save_file

from pipeline.errors import ModelError
from pipeline.model.fingerprint import DigestCache, fingerprint
from pipeline.model.resolve import LoraSource
from pipeline.rendering.renderer import load_renderer
from pipeline.rendering.results import Rendered
from tests import tiny_models
from tests.rendering.tasks import task

STOCK: Any = diffusers.StableDiffusionPipeline


def make_lora(folder: Path, seed: int) -> Path:
    unet = tiny_models.stable_diffusion().unet
    torch.manual_seed(seed)
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k", "to_v", "to_out.0"], init_lora_weights=False))
    STOCK.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(unet), weight_name=f"{seed}.safetensors")
    return folder / f"{seed}.safetensors"


@pytest.fixture(scope="module")
def loras(tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    return [make_lora(tmp_path_factory.mktemp("lora"), seed) for seed in (1, 2)]


def picture(folder: Path, loras: list[tuple[Path, float]]) -> NDArray[np.uint8]:
    renderer = load_renderer(folder, dtype="float32", device="cpu", rows=4, loras=loras)
    (outcome,) = renderer.render([task(scheduler="pndm", num_inference_steps=4)])
    assert isinstance(outcome, Rendered)
    return outcome.pixels


@pytest.mark.filterwarnings("ignore:Already found a `peft_config`")
def test_fused_loras_draw_what_stock_draws_with_them(epsilon_folder: Path, loras: list[Path]) -> None:
    weighted = list(zip(loras, (0.8, -0.5), strict=True))
    stock = STOCK.from_pretrained(epsilon_folder)
    for name, path in zip(("first", "second"), loras, strict=True):
        stock.load_lora_weights(path.parent, weight_name=path.name, adapter_name=name)
    stock.set_adapters(["first", "second"], [0.8, -0.5])
    options = {"width": 32, "height": 32, "num_inference_steps": 4, "generator": torch.Generator().manual_seed(1)}
    expected = np.asarray(stock("a red cat", **options).images[0]).astype(int)
    assert np.abs(picture(epsilon_folder, weighted) - expected).max() <= 1
    assert np.abs(picture(epsilon_folder, []) - expected).max() > 1


def test_file_and_weight_are_part_of_the_fingerprint(epsilon_folder: Path, loras: list[Path], tmp_path: Path) -> None:
    cache = DigestCache(tmp_path)
    variants = [(), ((loras[0], 1.0),), ((loras[0], 0.5),), ((loras[1], 1.0),), ((loras[0], 1.0), (loras[1], 1.0))]
    assert len({fingerprint(epsilon_folder, cache, variant) for variant in variants}) == len(variants)


def test_a_lora_is_a_file_or_a_folder_with_one(loras: list[Path], tmp_path: Path) -> None:
    assert LoraSource(lora_id=str(loras[0])).file() == LoraSource(lora_id=str(loras[0].parent)).file() == loras[0]
    for named in (str(tmp_path), "./nowhere", "/nowhere.safetensors"):
        with pytest.raises(ModelError, match=r"(?s)model\.loras.*allowed"):
            LoraSource(lora_id=named).file()


def test_what_is_no_lora_of_this_model_is_refused(epsilon_folder: Path, tmp_path: Path) -> None:
    strange = tmp_path / "strange.safetensors"
    save_file({"weight": torch.zeros(2, 2)}, strange)
    with pytest.raises(ModelError, match=r"LoRA.*"):
        picture(epsilon_folder, [(strange, 1.0)])
    strange.write_bytes(b"no safetensors")
    with pytest.raises(ModelError, match=r"LoRA cannot be loaded"):
        picture(epsilon_folder, [(strange, 1.0)])
