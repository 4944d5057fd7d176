"""Low-rank weights, fused when the model is loaded."""

import json
from collections.abc import Callable
from functools import partial
from hashlib import blake2b
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from peft import LoraConfig
from peft.utils import get_peft_model_state_dict
from safetensors.torch import load_file, save_file

from pipeline.errors import ModelError
from pipeline.model.fingerprint import DigestCache, fingerprint
from pipeline.model.lora import check_loras
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


def keys_of(path: Path) -> dict[str, torch.Tensor]:
    return dict(load_file(path))


def as_kohya(path: Path, folder: Path, *, alpha: float) -> Path:
    """The same LoRA as kohya's scripts save it."""
    written = {}
    for key, tensor in keys_of(path).items():
        layer, _, kind = key.removeprefix("unet.").rpartition(".lora_")
        name = f"lora_unet_{layer.replace('.', '_')}"
        written[f"{name}.lora_{'down' if kind.startswith('A') else 'up'}.weight"] = tensor
        written[f"{name}.alpha"] = torch.tensor(alpha)
    save_file(written, folder / "kohya.safetensors")
    return folder / "kohya.safetensors"


def with_text_encoder(path: Path, folder: Path, *, prefix: str, dora: bool = False) -> Path:
    """The LoRA with weights for the text encoder, as PEFT names them below ``prefix``."""
    encoder = tiny_models.stable_diffusion().text_encoder
    torch.manual_seed(3)
    layers = ["q_proj", "v_proj"]
    encoder.add_adapter(LoraConfig(r=2, target_modules=layers, init_lora_weights=False, use_dora=dora))
    added = {f"{prefix}.{key}": tensor.detach() for key, tensor in get_peft_model_state_dict(encoder).items()}
    save_file(keys_of(path) | added, folder / "encoder.safetensors")
    return folder / "encoder.safetensors"


def as_dora(path: Path, folder: Path) -> Path:
    """A LoRA with magnitudes, as PEFT saves it."""
    unet = tiny_models.stable_diffusion().unet
    torch.manual_seed(4)
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q", "to_k"], init_lora_weights=False, use_dora=True))
    STOCK.save_lora_weights(folder, unet_lora_layers=get_peft_model_state_dict(unet), weight_name="dora.safetensors")
    return folder / "dora.safetensors"


FORMS: dict[str, Callable[[Path, Path], Path]] = {
    "kohya": partial(as_kohya, alpha=1.0),
    "text encoder": partial(with_text_encoder, prefix="text_encoder"),
    "dora": as_dora,
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("form", FORMS)
def test_every_form_draws_what_stock_draws(epsilon_folder: Path, loras: list[Path], tmp_path: Path, form: str) -> None:
    path = FORMS[form](loras[0], tmp_path)
    check_loras([path], epsilon_folder)
    stock = STOCK.from_pretrained(epsilon_folder)
    stock.load_lora_weights(path.parent, weight_name=path.name)
    options = {"width": 32, "height": 32, "num_inference_steps": 4, "generator": torch.Generator().manual_seed(1)}
    expected = np.asarray(stock("a red cat", **options).images[0]).astype(int)
    assert np.abs(picture(epsilon_folder, [(path, 1.0)]) - expected).max() <= 1
    assert np.abs(picture(epsilon_folder, []) - expected).max() > 1


def refused(path: Path, folder: Path, *, by_header: bool = True) -> list[str]:
    """What is said of a LoRA before Ray starts, where its header tells, and by the loader."""
    said = []
    for look in ((lambda: check_loras([path], folder)), lambda: picture(folder, [(path, 1.0)])):
        try:
            look()
        except ModelError as error:
            said.append(str(error))
    assert len(said) == 1 + by_header, said
    return said


def renamed(path: Path, folder: Path, change: Callable[[int, str], str]) -> Path:
    """A LoRA whose keys have other names."""
    keys = {change(number, key): tensor for number, (key, tensor) in enumerate(sorted(keys_of(path).items()))}
    save_file(keys, folder / "renamed.safetensors")
    return folder / "renamed.safetensors"


@pytest.mark.parametrize("kept", [2, 0])
def test_keys_that_fit_nothing_are_counted(epsilon_folder: Path, loras: list[Path], tmp_path: Path, kept: int) -> None:
    path = renamed(loras[0], tmp_path, lambda number, key: key if number < kept else key.replace("attn", "attnx"))
    total = len(keys_of(loras[0]))
    for said in refused(path, epsilon_folder):
        assert said.startswith(f"{kept} of {total} keys of this LoRA fit this model")
        assert "attnx" in said


@pytest.mark.filterwarnings("ignore")
def test_keys_in_other_forms_are_counted_too(epsilon_folder: Path, loras: list[Path], tmp_path: Path) -> None:
    kohya = as_kohya(loras[0], tmp_path, alpha=1.0)
    foreign = renamed(kohya, tmp_path, lambda _, key: key.replace("attn2", "attn3"))
    by_header, by_loader = refused(foreign, epsilon_folder)
    total = len(keys_of(kohya))
    assert by_header.startswith(f"{total // 2} of {total} keys of this LoRA fit this model")
    assert "attn3" in by_loader
    second = with_text_encoder(loras[0], tmp_path, prefix="text_encoder_2")
    (said,) = refused(second, epsilon_folder, by_header=False)
    assert said.startswith(f"{len(keys_of(loras[0]))} of {len(keys_of(second))} keys of this LoRA fit this model")
    (said,) = refused(renamed(loras[0], tmp_path, lambda _, key: f"prior.{key}"), epsilon_folder, by_header=False)
    assert said.startswith(f"0 of {len(keys_of(loras[0]))} keys of this LoRA fit this model")


def test_weights_of_another_shape_are_refused(epsilon_folder: Path, loras: list[Path], tmp_path: Path) -> None:
    wide = {key: torch.cat([tensor, tensor], 1 if "lora_A" in key else 0) for key, tensor in keys_of(loras[0]).items()}
    save_file(wide, tmp_path / "wide.safetensors")
    assert all("another shape" in said for said in refused(tmp_path / "wide.safetensors", epsilon_folder))


@pytest.mark.parametrize(
    ("key", "says"),
    [
        ("lora_unet_x.hada_w1_a", "this file is a LoHa"),
        ("lora_unet_x.lokr_w1", "this file is a LoKr"),
        ("lora_unet_x.oft_blocks", "this file is an OFT"),
        ("lora_unet_x.dora_scale", "this file is a DoRA in kohya's form"),
        ("lora_unet_x.lora_mid.weight", "this file is a LoCon with Tucker"),
        ("weight", "this file holds no LoRA: 0 of 1 keys"),
    ],
)
def test_what_diffusers_cannot_load_is_named(epsilon_folder: Path, tmp_path: Path, key: str, says: str) -> None:
    save_file({key: torch.zeros(2, 2)}, tmp_path / "strange.safetensors")
    for said in refused(tmp_path / "strange.safetensors", epsilon_folder):
        assert says in said


@pytest.mark.parametrize(
    ("body", "says"),
    [
        (b"no safetensors", "not a safetensors file"),
        (b"version https://git-lfs.github.com/spec/v1\noid", "git-lfs pointer"),
        (b"\x40" + b"\0" * 7 + b"{", "incomplete"),
    ],
)
def test_a_file_that_is_no_lora_is_refused(epsilon_folder: Path, tmp_path: Path, body: bytes, says: str) -> None:
    (tmp_path / "strange.safetensors").write_bytes(body)
    for said in refused(tmp_path / "strange.safetensors", epsilon_folder):
        assert says in said


def test_a_class_that_takes_no_loras_says_so(loras: list[Path], tmp_path: Path) -> None:
    folder = tiny_models.save(tiny_models.pixart(), tmp_path / "pixart")
    change = json.loads((folder / "scheduler/scheduler_config.json").read_text()) | {"lambda_min_clipped": -5.1}
    (folder / "scheduler/scheduler_config.json").write_text(json.dumps(change))
    for said in refused(loras[0], folder):
        assert said.startswith("a PixArtAlphaPipeline takes no LoRAs")


def without(path: Path, folder: Path, lost: Callable[[str], bool]) -> Path:
    save_file({key: tensor for key, tensor in keys_of(path).items() if not lost(key)}, folder / "partial.safetensors")
    return folder / "partial.safetensors"


def test_weights_that_belong_to_others_and_are_missing(epsilon_folder: Path, loras: list[Path], tmp_path: Path) -> None:
    """PEFT makes them all the same, and fills them with whatever lies in memory."""
    last = max(keys_of(loras[0]))
    assert last.endswith("lora_B.weight")
    for said in refused(without(loras[0], tmp_path, lambda key: key == last), epsilon_folder):
        assert said.startswith("this LoRA is incomplete: 1 of the weights that belong together are missing")
        assert last in said
    dora = as_dora(loras[0], tmp_path)
    few = without(dora, tmp_path, lambda key: "magnitude" in key and "mid_block" not in key)
    (said,) = refused(few, epsilon_folder, by_header=False)
    assert said.startswith("this LoRA is incomplete: ")
    assert "lora_magnitude_vector" in said


@pytest.mark.filterwarnings("ignore")
def test_biases_that_cannot_be_fused_are_an_error_of_the_lora(epsilon_folder: Path, tmp_path: Path) -> None:
    unet = tiny_models.stable_diffusion().unet
    unet.add_adapter(LoraConfig(r=2, target_modules=["to_q"], init_lora_weights=False, lora_bias=True))
    layers = get_peft_model_state_dict(unet)
    STOCK.save_lora_weights(tmp_path, unet_lora_layers=layers, weight_name="biased.safetensors")
    (said,) = refused(tmp_path / "biased.safetensors", epsilon_folder, by_header=False)
    assert said.startswith("the LoRAs cannot be fused into this model: ")


@pytest.mark.filterwarnings("ignore")
def test_the_text_encoders_weights_of_a_lora_for_flux_are_fused(tmp_path: Path) -> None:
    """By default diffusers fuses the transformer's alone; earlier versions left the others out."""
    folder = tiny_models.save(tiny_models.flux(), tmp_path / "flux")
    encoder = tiny_models.flux().text_encoder
    torch.manual_seed(5)
    encoder.add_adapter(LoraConfig(r=2, target_modules=["q_proj", "v_proj"], init_lora_weights=False))
    keys = {f"text_encoder.{key}": tensor.detach() for key, tensor in get_peft_model_state_dict(encoder).items()}
    path = tmp_path / "flux.safetensors"
    save_file(keys, path)
    renderer = load_renderer(folder, dtype="float32", device="cpu", rows=2, loras=[(path, 1.0)])
    (outcome,) = renderer.render([task(scheduler="flow_match_euler", num_inference_steps=2)])
    assert isinstance(outcome, Rendered), outcome
    stock: Any = diffusers.FluxPipeline.from_pretrained(folder)
    options = {"width": 32, "height": 32, "num_inference_steps": 2, "guidance_scale": task().recipe.guidance_scale}
    without_lora = stock("a red cat", generator=torch.Generator().manual_seed(1), **options).images[0]
    stock.load_lora_weights(path.parent, weight_name=path.name)
    expected = stock("a red cat", generator=torch.Generator().manual_seed(1), **options).images[0]
    assert np.abs(outcome.pixels - np.asarray(expected).astype(int)).max() <= 1
    assert np.abs(outcome.pixels - np.asarray(without_lora).astype(int)).max() > 1


def test_a_run_made_without_those_weights_is_of_another_model(loras: list[Path], tmp_path: Path) -> None:
    text = tmp_path / "text.safetensors"
    save_file({"lora_te1_x.lora_down.weight": torch.zeros(2, 2)}, text)
    for class_name, other in (("FluxPipeline", True), ("StableDiffusionPipeline", False)):
        (tmp_path / "model_index.json").write_text(json.dumps({"_class_name": class_name}))
        cache = DigestCache(tmp_path / "digests")
        index = f"model_index.json\0{cache.sha256(tmp_path / 'model_index.json')}\n"
        for path, marked in ((loras[0], False), (text, other)):
            content = index + f"lora\0{cache.sha256(path)}\0{1.0!r}\n" + "text encoder\n" * marked
            digest = blake2b(content.encode(), digest_size=16, person=b"darkroom.model.1").hexdigest()
            assert fingerprint(tmp_path, cache, [(path, 1.0)]) == digest
