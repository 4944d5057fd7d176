"""The compiled denoiser and decoder on the CPU. Code that was compiled before is found again."""

import shutil
from dataclasses import replace
from pathlib import Path

import pytest
import torch
from torch._dynamo.utils import counters

from pipeline.rendering import compiled
from pipeline.rendering.engine import Engine
from pipeline.rendering.loading import load_model
from tests import tiny_models
from tests.rendering.tasks import pixels_by_id, task
from tests.rendering.test_gpu_layout import FAMILIES
from tests.rendering.test_half_precision import NO_WORSE, compare, kind_in, overall
from tests.rendering.test_parity import KINDS

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


def graphs_of(name: str, folder: Path, backend: str) -> tuple[int, int, int]:
    """Render mixed tasks of one size with a compiled model: its graphs, recompilations and breaks within graphs."""
    model = load_model(tiny_models.save(KINDS[name](), folder), dtype="float32", device="cpu", compiled=True)
    family, schedulers = model.adapter.family, model.adapter.family.schedulers()
    tasks = [
        replace(
            own := task(seed=n, scheduler=schedulers[n % len(schedulers)], num_inference_steps=2 + n % 3,
                        guidance_scale=(1.0, 4.0, 2.5)[n % 3], prompt=f"cat {n % 2}"),
            recipe=family.effective(own.recipe),
        )
        for n in range(9)
    ]  # fmt: skip
    torch.compiler.reset()
    counters.clear()
    with pytest.MonkeyPatch.context() as patch:
        if backend != "inductor":
            patch.setattr(torch, "compile", lambda network, **_: COMPILE(network, backend=backend, dynamic=False))
        assert len(pixels_by_id(Engine(model, 6), tasks)) == len(tasks)
    stats = counters["stats"]
    return stats["unique_graphs"], counters["recompiles"].total(), counters["graph_break"].total()


COMPILE = torch.compile


@pytest.mark.parametrize("name", FAMILIES)
def test_a_mixed_run_is_one_graph_for_the_denoiser_and_one_for_the_decoder(name: str, tmp_path: Path) -> None:
    """Traced, but run by torch as it is; ``make compiled`` does it with inductor."""
    assert graphs_of(name, tmp_path, "eager") == (2, 0, 0)


def test_each_shape_is_compiled_once_until_there_are_too_many(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch, "compile", lambda network, **_: COMPILE(network, backend="eager", dynamic=False))
    for kept, graphs in ((2, 2), (1, 4)):
        monkeypatch.setattr(compiled, "MAX_SHAPES", kept)
        torch.compiler.reset()
        counters.clear()
        network = compiled.Compiled(torch.nn.Linear(4, 4))
        for rows in (2, 3, 2, 3):
            network(torch.zeros(rows, 4))
        assert counters["stats"]["unique_graphs"] == graphs
