"""The pretend GPU counts exactly, and the engine's steps stay within their budget of launches on it."""

from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch import Tensor

from benchmarks.launches import FAMILIES, TASKS, count
from benchmarks.pretend_gpu import CUDA, OnGpu, PretendGpu
from pipeline.rendering.loading import load_model
from tests import tiny_models


@torch.library.custom_op("darkroom_tests::hidden", mutates_args=())
def hidden(tensor: Tensor) -> Tensor:
    """Two kernels and a value read."""
    doubled = tensor.add(1).mul(2)
    doubled.sum().item()
    return doubled


COUNTED: dict[str, tuple[Callable[[Tensor], object], int, int]] = {
    "two kernels": (lambda x: x.mul(2).sum(), 2, 0),
    "in place": (lambda x: x.add_(1), 1, 0),
    "into a slice": (lambda x: torch.add(x, x, out=torch.empty(2, 4, 4, device=CUDA)[0]), 1, 0),
    "views": (lambda x: x[1:].t().unsqueeze(0).expand(3, -1, -1), 0, 0),
    "a cast": (lambda x: x.bfloat16(), 1, 0),
    "to the same dtype": (lambda x: x.float(), 0, 0),
    "a value read": (lambda x: x[0, 0].item(), 0, 1),
    "a copy that blocks": (lambda x: x.cpu(), 1, 1),
    "a copy that does not": (lambda x: torch.empty(4, 4, pin_memory=True).copy_(x, non_blocking=True), 1, 0),
    "a copy to the device": (lambda x: torch.ones(4).to(CUDA), 1, 1),
    "a pinned one": (lambda x: torch.ones(4).pin_memory().to(CUDA, non_blocking=True), 1, 0),
    "a mask": (lambda x: x[x > 0], 2, 1),
    "a custom operation": (hidden, 3, 1),
    "an event": (lambda x: torch.cuda.Event().synchronize(), 0, 1),  # type: ignore[no-untyped-call]
    "only the host": (lambda x: torch.ones(4).mul(2).sum().item(), 0, 0),
}


@pytest.mark.parametrize("what", COUNTED)
def test_the_pretend_gpu_counts(what: str) -> None:
    work, launches, waits = COUNTED[what]
    with PretendGpu() as gpu:
        tensor = gpu.send(torch.randn(4, 4))
        gpu.reset()
        work(tensor)
        assert (gpu.launches, gpu.waits) == (launches, waits), (gpu.kernels, gpu.copies, gpu.waited)


@pytest.mark.parametrize("what", COUNTED)
def test_every_wait_is_an_error_when_asked_for(what: str) -> None:
    work, _, waits = COUNTED[what]
    with PretendGpu() as gpu:
        tensor = gpu.send(torch.randn(4, 4))
        torch.cuda.set_sync_debug_mode("error")
        with pytest.raises(RuntimeError, match="synchronizing CUDA operation") if waits else nullcontext():
            work(tensor)
        torch.cuda.set_sync_debug_mode("default")
        work(tensor)
        assert gpu.waits == waits


def test_the_pretend_gpu_computes() -> None:
    layer, data = torch.nn.Linear(4, 3), torch.randn(2, 4)
    with torch.no_grad():
        expected = layer(data).relu()
        with PretendGpu() as gpu:
            gpu.send_module(layer)
            found = layer(gpu.send(data)).relu()
            assert isinstance(found, OnGpu)
            assert found.device == CUDA
            assert torch.equal(found.cpu(), expected)


@pytest.mark.parametrize("family", FAMILIES)
def test_a_step_stays_within_its_budget(family: str, tmp_path: Path) -> None:
    model = load_model(tiny_models.save(FAMILIES[family](), tmp_path), dtype="bfloat16", device="cpu")
    schedulers = model.adapter.family.schedulers()
    wanted = schedulers if family == "stable_diffusion" else schedulers[:4:3]
    counted = {one.scheduler: one for one in count(model, wanted, "bfloat16")}
    assert list(counted) == list(wanted)
    assert all(one.within for one in counted.values()), [str(one) for one in counted.values()]
    assert counted[schedulers[0]].full >= 4, "nothing was counted"
    assert {name: one.clips for name, one in counted.items() if family == "stable_diffusion"} == dict.fromkeys(
        wanted if family == "stable_diffusion" else (), False
    )


def test_a_scheduler_that_clips_is_found_to_launch_for_each_task(tmp_path: Path) -> None:
    model = load_model(tiny_models.save(tiny_models.pixart(), tmp_path), dtype="float32", device="cpu")
    (ddim,) = count(model, ["ddim"], "float32")
    assert ddim.clips
    assert ddim.per_task > 5
    assert ddim.full > TASKS


def test_the_size_of_an_image_is_sent_once_for_all_calls_of_a_shape(tmp_path: Path) -> None:
    """PixArt alpha for 1024 px takes it as an input."""
    model = load_model(tiny_models.save(tiny_models.pixart(), tmp_path), dtype="float32", device="cpu")
    with PretendGpu() as gpu:
        adapter = replace(model.adapter, device=CUDA)
        given = []

        def denoise(latents: Tensor, added_cond_kwargs: dict[str, Tensor], **_: object) -> tuple[Tensor]:
            given.append(added_cond_kwargs)
            return (gpu.send(torch.zeros(len(latents), 8, *latents.shape[2:])),)

        object.__setattr__(adapter, "denoiser", denoise)
        copies = []
        for height, width in ((4, 6), (4, 6), (6, 4), (4, 6)):
            gpu.reset()
            adapter.predict(gpu.send(torch.zeros(3, 4, height, width)), gpu.send(torch.zeros(3)), {})
            copies.append(gpu.copies["to"])
        assert copies == [2, 0, 2, 0]
        assert [one["resolution"].cpu()[2].tolist() for one in given] == [[16, 24], [16, 24], [24, 16], [16, 24]]
        assert given[2]["aspect_ratio"].cpu().flatten().tolist() == [1.5] * 3
