"""How models are laid out for GPUs, run on a CPU: the same pictures from as many weights."""

from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from pipeline.rendering.decoding import Decoder
from pipeline.rendering.devices import device_error, out_of_memory
from pipeline.rendering.engine import Engine
from pipeline.rendering.loading import LoadedModel, lay_out_for_gpus, load_model
from pipeline.rendering.results import Rendered
from tests import tiny_models
from tests.rendering.tasks import task
from tests.rendering.test_parity import KINDS

FAMILIES = ("sd", "sdxl", "sd3", "flux-dev", "pixart-sigma")


def pictures(model: LoadedModel) -> list[np.ndarray[Any, np.dtype[np.int_]]]:
    scheduler = model.adapter.family.schedulers()[0]
    guidance = model.adapter.family.effective_guidance(4.0)
    tasks = [task(seed=seed, scheduler=scheduler, guidance_scale=guidance) for seed in range(3)]
    done = {o.task.task_id: o for o in Engine(model, 4).render(tasks) if isinstance(o, Rendered)}
    return [done[own.task_id].pixels.astype(int) for own in tasks]


def weights(model: LoadedModel) -> int:
    return sum(weight.numel() for weight in model.adapter.network.parameters())


@pytest.mark.parametrize("name", FAMILIES)
def test_the_layout_changes_neither_pictures_nor_the_number_of_weights(name: str, tmp_path: Path) -> None:
    model = load_model(tiny_models.save(KINDS[name](), tmp_path), dtype="float32", device="cpu")
    plain, before = pictures(model), weights(model)
    lay_out_for_gpus(model.adapter.stock)
    assert weights(model) == before
    for ours, theirs in zip(pictures(model), plain, strict=True):
        assert np.abs(ours - theirs).max() <= 1


def test_an_autoencoder_of_another_class_is_left_unfused(tmp_path: Path) -> None:
    stock = tiny_models.stable_diffusion()
    stock.vae = diffusers.AutoencoderTiny(
        encoder_block_out_channels=(8, 8), decoder_block_out_channels=(8, 8), num_encoder_blocks=(1, 1),
        num_decoder_blocks=(1, 1),
    )  # fmt: skip
    model = load_model(tiny_models.save(stock, tmp_path), dtype="float32", device="cpu")
    plain = pictures(model)
    lay_out_for_gpus(model.adapter.stock)
    assert all(np.abs(ours - theirs).max() <= 1 for ours, theirs in zip(pictures(model), plain, strict=True))


@pytest.mark.parametrize(
    ("text", "memory", "device"),
    [
        ("CUDA out of memory. Tried to allocate 2.00 GiB", True, True),
        ("CUDA error: CUBLAS_STATUS_ALLOC_FAILED when calling `cublasCreate(handle)`", True, True),
        ("GET was unable to find an engine to execute this computation", True, True),
        ("DefaultCPUAllocator: can't allocate memory", True, True),
        ("CUDA error: an illegal memory access was encountered", False, True),
        ("cuDNN error: CUDNN_STATUS_EXECUTION_FAILED", False, True),
        ("shapes cannot be multiplied", False, False),
    ],
)
def test_what_torch_says_of_devices(text: str, memory: bool, device: bool) -> None:
    assert (out_of_memory(RuntimeError(text)), device_error(RuntimeError(text))) == (memory, device)
    assert not device_error(ValueError(text))


def test_an_autoencoder_that_runs_out_of_memory_keeps_its_dtype(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = load_model(tiny_models.save(tiny_models.stable_diffusion(), tmp_path), dtype="bfloat16", device="cpu")
    adapter, move = model.adapter, torch.nn.Module.to

    def half_way(module: Any, dtype: torch.dtype) -> Any:
        if dtype != torch.float32:
            return move(module, dtype)
        move(module.decoder, dtype)
        raise torch.OutOfMemoryError("no room")

    monkeypatch.setattr(torch.nn.Module, "to", half_way)
    with pytest.raises(torch.OutOfMemoryError):
        Decoder(adapter).start(torch.full((4, 16, 16), torch.nan)).result()
    assert {weight.dtype for weight in adapter.stock.vae.parameters()} == {torch.bfloat16}
