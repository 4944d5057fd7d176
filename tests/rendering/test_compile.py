"""The compiled denoiser and decoder on the CPU. Code that was compiled before is found again."""

import shutil
from dataclasses import replace
from functools import partial
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from pipeline.rendering import compiled
from pipeline.rendering.engine import Engine
from pipeline.rendering.loading import LoadedModel
from tests.rendering.tasks import pixels_by_id, task
from tests.rendering.test_half_precision import NO_WORSE, compare, kind_in, overall
from tests.tiny_models import SIZE_PX

pytestmark = pytest.mark.filterwarnings(
    "ignore::DeprecationWarning:torch", "ignore:Dynamo detected a call to a `functools.lru_cache`"
)


@pytest.mark.skipif(shutil.which("g++") is None, reason="torch.compile on the CPU needs a C++ compiler, g++")
def test_we_are_as_near_to_float32_as_stock(tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """In bfloat16, where fused operations would round less often than separate ones."""
    kind = kind_in("bfloat16", "sd", tmp_path / "half", compiled=True)
    exact = kind_in("float32", "sd", tmp_path / "float32")
    cases = [
        task(prompt=f"cat {seed}", seed=seed, scheduler=scheduler, guidance_scale=scale, num_inference_steps=2 + seed)
        for scheduler in ("ddim", "euler_ancestral")
        for seed, scale in enumerate((1.0, 2.5, 7.5))
    ]
    means = compare(kind, exact, "bfloat16, compiled", cases, pytestconfig)
    ours, stock = overall(means)
    assert ours <= NO_WORSE * stock, means


def test_each_size_is_compiled_once_until_there_are_too_many(
    epsilon_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Traced, but run by torch as it is: so the pictures are those of the uncompiled model, byte for byte."""
    monkeypatch.setattr(torch, "compile", partial(torch.compile, backend="eager"))
    model = replace(epsilon_model, adapter=replace(epsilon_model.adapter, compiled=True))
    mixed = [
        task(width=SIZE_PX * (1 + n // 2 % 2), seed=n, guidance_scale=(1.0, 4.0)[n % 2], num_inference_steps=2 + n % 3)
        for n in range(8)
    ]
    expected = pixels_by_id(Engine(epsilon_model, 6), mixed)
    for kept, graphs in ((2, 4), (1, 8)):
        monkeypatch.setattr(compiled, "MAX_SHAPES", kept)
        torch.compiler.reset()
        counters.clear()
        assert pixels_by_id(Engine(replace(model, adapter=replace(model.adapter)), 6), mixed) == expected
        assert counters["stats"]["unique_graphs"] == graphs
