"""Float8 layers: which they are, one scale per row of a matrix, small errors, no influence of neighbours."""

import sys
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.config import load_job
from pipeline.errors import JobFileError, ModelError
from pipeline.model.precision import check_installed, check_layers, takes_float8
from pipeline.prepare import prepare
from pipeline.rendering.engine import Engine
from pipeline.rendering.loading import DTYPES, LoadedModel, lay_out_for_gpus, load_model
from pipeline.rendering.precision import check_float8, float8, float8_layers, quantize
from pipeline.rendering.renderer import load_renderer
from tests.rendering.tasks import mixed_tasks, pixels_by_id
from tests.tiny_models import flux, pixart, stable_diffusion, stable_diffusion_3, stable_diffusion_xl

TORCHAO = Path(sys.prefix) / "torchao"
"""Where ``make test`` installs it, apart from all other packages: diffusers would import it in every process."""
E4M3_MAX = 448.0
FEED_FORWARD = {"ff.net.0.proj", "ff.net.2"}
ATTENTION = {f"attn1.{name}" for name in ("to_q", "to_k", "to_v", "to_out.0")}
CROSS = {name.replace("attn1", "attn2") for name in ATTENTION}
JOINT = {"attn.to_q", "attn.to_k", "attn.to_v", "attn.to_out.0", "attn.add_q_proj", "attn.add_k_proj",
         "attn.add_v_proj", "attn.to_add_out", *FEED_FORWARD, "ff_context.net.0.proj", "ff_context.net.2"}  # fmt: skip
LAST_JOINT = JOINT - {"attn.to_add_out", "ff_context.net.0.proj", "ff_context.net.2"}


@pytest.fixture(autouse=True, scope="module")
def torchao_importable() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(TORCHAO)
        yield


def by_hand(x: Tensor) -> tuple[Tensor, Tensor]:
    """Rows in e4m3 and their scales, from the definition; torchao rounds the scales to the dtype of the rows."""
    scale = (x.abs().amax(-1, keepdim=True) / E4M3_MAX).float()
    return (x.float() / scale).clamp(-E4M3_MAX, E4M3_MAX).to(torch.float8_e4m3fn), scale


def reference(x: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """The layer in float32, of values that were quantized and dequantized by row."""
    (left, left_scale), (right, right_scale) = by_hand(x), by_hand(weight)
    return functional.linear(left.float() * left_scale, right.float() * right_scale, bias.float())


@pytest.fixture(scope="module")
def numbers() -> tuple[Tensor, Tensor, Tensor]:
    """Rows of very unlike magnitude, a weight and a bias."""
    random = torch.Generator().manual_seed(0)
    x, weight, bias = (torch.randn(shape, generator=random) for shape in ((12, 64), (48, 64), (48,)))
    x *= torch.logspace(-3, 3, 12)[:, None]
    return x.bfloat16(), weight.bfloat16(), bias.bfloat16()


def test_a_layer_computes_what_rows_with_a_scale_each_give(numbers: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias = numbers
    ours, expected = functional.linear(x, float8(weight), bias).float(), reference(x, weight, bias)
    errors = (ours - expected).norm(dim=1) / expected.norm(dim=1)
    assert errors.max() < 2**-8, "no more than the rounding to bfloat16"


def test_a_row_of_zeros_gives_the_bias(numbers: tuple[Tensor, Tensor, Tensor]) -> None:
    """Texts of an absent negative prompt are zeros; some layers are trained from zero."""
    x, weight, bias = numbers
    x, weight = x.clone(), weight.clone()
    x[2], weight[7] = 0, 0
    ours = functional.linear(x, float8(weight), bias)
    assert torch.equal(ours[2], bias)
    assert torch.equal(ours[:, 7], bias[7].expand(len(x)))


def test_the_error_of_each_row_is_bounded(numbers: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias = numbers
    exact = functional.linear(x.float(), weight.float())
    error = functional.linear(x, float8(weight), torch.zeros_like(bias)).float() - exact
    assert (error.norm(dim=1) / exact.norm(dim=1)).max() < 0.06, "e4m3 has 3 bits: 2**-4 of each factor at most"


def test_a_row_does_not_change_with_its_neighbours(numbers: tuple[Tensor, Tensor, Tensor]) -> None:
    x, weight, bias = numbers
    quantized = float8(weight)
    before = functional.linear(x, quantized, bias)
    for strange in (0.0, 1e4, float("nan"), float("inf")):
        among = x.clone()
        among[3] = strange
        rest = [row for row in range(len(x)) if row != 3]
        assert torch.equal(functional.linear(among, quantized, bias)[rest], before[rest])
        alone = torch.full_like(x, strange)
        alone[3] = x[3]
        assert torch.equal(functional.linear(alone, quantized, bias)[3], before[3])


def test_scales_are_of_single_rows(numbers: tuple[Tensor, Tensor, Tensor]) -> None:
    """A louder row changes its own scale, and no value of another row; of weights and of activations."""
    x, weight, _ = numbers
    for matrix in (x, weight):
        louder = matrix.clone()
        louder[5] *= 64
        quiet, loud = float8(matrix), float8(louder)
        assert quiet.scale.shape == (len(matrix), 1)
        assert torch.equal(quiet.qdata.view(torch.uint8), loud.qdata.view(torch.uint8))
        assert torch.equal(loud.scale[5], quiet.scale[5] * 64)
        rest = torch.arange(len(matrix)) != 5
        assert torch.equal(loud.scale[rest], quiet.scale[rest])
        values, scales = by_hand(matrix)
        assert torch.equal(quiet.scale, scales)
        assert torch.equal(quiet.qdata.float(), values.float())


BASIC = ATTENTION | CROSS | FEED_FORWARD
RULE: dict[str, tuple[Callable[[], Any], dict[str, set[str]]]] = {
    "stable_diffusion": (stable_diffusion, {"transformer_blocks.0": BASIC}),
    "stable_diffusion_xl": (stable_diffusion_xl, {"transformer_blocks.0": BASIC}),
    "stable_diffusion_3": (stable_diffusion_3, {"transformer_blocks.0": JOINT, "transformer_blocks.1": LAST_JOINT}),
    "flux": (
        flux,
        {
            "transformer_blocks.0": JOINT,
            "single_transformer_blocks.0": {"attn.to_q", "attn.to_k", "attn.to_v", "proj_mlp", "proj_out"},
        },
    ),
    "pixart": (pixart, {"transformer_blocks.0": BASIC, "transformer_blocks.1": BASIC}),
}


def denoiser(model: Any) -> Any:
    return model.unet if getattr(model, "unet", None) is not None else model.transformer


@pytest.mark.parametrize("family", RULE)
def test_which_layers(family: str) -> None:
    make, expected = RULE[family]
    found: dict[str, set[str]] = {}
    for name, _ in float8_layers(denoiser(make())):
        start = name.rfind("single_transformer_blocks") if "single_" in name else name.rfind("transformer_blocks")
        block, number, layer = name[start:].split(".", 2)
        found.setdefault(f"{block}.{number}", set()).add(layer)
    assert found == expected


def test_layers_that_stay() -> None:
    for name, shape in [
        ("time_embedding.linear_1", (64, 16)), ("proj_out", (64, 64)), ("context_embedder", (64, 64)),
        ("down_blocks.0.resnets.0.time_emb_proj", (64, 64)), ("down_blocks.0.attentions.0.proj_in", (64, 64)),
        ("transformer_blocks.0.norm1.linear", (64, 64)), ("single_transformer_blocks.0.norm.linear", (64, 64)),
        ("transformer_blocks.0.ff.net.2", (64, 24)), ("transformer_blocks.0.ff.net.2", (24, 64)),
        ("transformer_blocks.0.attn.norm_q", (64,)), ("transformer_blocks.0.conv", (64, 64, 1, 1)),
    ]:  # fmt: skip
        assert not takes_float8(name, shape), name
    assert takes_float8("transformer_blocks.0.ff.net.2", (64, 16))


@pytest.mark.parametrize("make", [stable_diffusion_3, stable_diffusion])
def test_projections_that_were_fused_for_a_gpu_are_quantized_too(make: Callable[[], Any]) -> None:
    model = make()
    lay_out_for_gpus(model)
    names = {name.rpartition("attn")[2] for name, _ in float8_layers(denoiser(model))}
    assert any(name.endswith("to_qkv") for name in names)
    assert not any(name.endswith("to_q") for name in names if make is stable_diffusion_3)


@pytest.fixture(scope="module")
def quantized(epsilon_folder: Path) -> LoadedModel:
    model = load_model(epsilon_folder, dtype="bfloat16", device="cpu")
    quantize(model.adapter.network)
    return model


def test_images_do_not_change_with_their_neighbours(quantized: LoadedModel, epsilon_folder: Path) -> None:
    tasks = mixed_tasks()[:12]
    together = pixels_by_id(Engine(quantized, 6), tasks)
    assert pixels_by_id(Engine(quantized, 6), tasks[::-1]) == together
    for alone in tasks[::5]:
        assert pixels_by_id(Engine(quantized, 6), [alone])[alone.task_id] == together[alone.task_id]
    plain = load_model(epsilon_folder, dtype="bfloat16", device="cpu")
    assert pixels_by_id(Engine(plain, 6), tasks[:1]) != {tasks[0].task_id: together[tasks[0].task_id]}


def test_what_cannot_compute_float8_is_refused(epsilon_folder: Path) -> None:
    with pytest.raises(JobFileError, match=r"compute capability 8\.9"):
        load_renderer(epsilon_folder, dtype="bfloat16", device="cpu", rows=4, precision="fp8")
    with pytest.raises(JobFileError, match="one call per image"):
        load_renderer(epsilon_folder, dtype="bfloat16", device="cpu", rows=4, precision="fp8", call={"clip_skip": 1})
    for dtype in DTYPES.keys() - {"bfloat16"}:
        with pytest.raises(JobFileError, match="cannot be combined with this dtype"):
            check_float8(dtype, "cuda")


def test_a_denoiser_without_such_layers_is_refused(tmp_path: Path, epsilon_folder: Path) -> None:
    check_layers(epsilon_folder)
    with pytest.raises(ModelError, match="no layer of this denoiser"):
        quantize(nn.ModuleDict({"transformer_blocks": nn.Linear(24, 24)}))


def plan(folder: Path, **model: Any) -> Any:
    manifest = folder / "m.parquet"
    pq.write_table(pa.table({"prompt": ["a cat"]}), manifest)
    told = {"manifest": str(manifest), "output.uri": str(folder / "out"), "model.precision": "fp8", **model}
    return prepare(load_job(None, list(told.items()), date(2026, 1, 1)))


def test_what_is_not_installed_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("sys.path", [place for place in sys.path if place != str(TORCHAO)])
    monkeypatch.delitem(sys.modules, "torchao", raising=False)
    with pytest.raises(JobFileError, match=r"pip install -c constraints\.txt torchao"):
        check_installed()


def test_planning_has_float8_in_its_ids_and_refuses_what_cannot_be(tmp_path: Path, epsilon_folder: Path) -> None:
    prepared = plan(tmp_path, **{"model.id": str(epsilon_folder)})
    constants = prepared.constants("f", "bfloat16")
    assert constants.precision == "fp8"
    assert constants.digest() != replace(constants, precision=None).digest()
    refused: dict[str, tuple[Any, str]] = {
        "workers.gpus": (0, "compute capability"),
        "model.dtype": ("float32", "cannot be combined with this dtype"),
        "model.call": ({"clip_skip": 1}, "one call per image"),
    }
    for key, (value, says) in refused.items():
        with pytest.raises(JobFileError, match=says):
            plan(tmp_path, **{"model.id": str(epsilon_folder), key: value})
