"""Half precision, ours and that of the stock pipelines, against float32 with the same noise, for each family."""

import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from diffusers.utils.torch_utils import randn_tensor

from pipeline.recipe import Recipe, RenderTask
from pipeline.rendering.loading import DTYPES, load_model
from pipeline.schedulers import scheduler_of
from tests import tiny_models
from tests.rendering.test_parity import KINDS, Kind

Means = dict[str, tuple[float, float]]
"""By scheduler: the mean difference from float32 over the pixels (of 255) of its cases, ours and stock's."""
NO_WORSE, NO_WORSE_OF_FEW = 1.05, 1.25
"""The largest ratio of our mean difference, over all schedulers, to stock's; and with fewer than ten cases, where
chance decides more."""
MOST_STEPS = 9
"""The largest number of steps of a case."""


class Differences:
    """From float32; a plugin of pytest, to be printed after the tests."""

    def __init__(self) -> None:
        self._noted: dict[tuple[str, str], Means] = {}

    def note(self, model: str, how: str, means: Means) -> None:
        """Keep what was found for one model."""
        self._noted[model, how] = means

    def pytest_terminal_summary(self, terminalreporter: pytest.TerminalReporter) -> None:
        terminalreporter.section("half precision: mean differences of pixels (of 255) from float32")
        terminalreporter.write_line(f"{'':38} ours  stock  the scheduler where we are worst beside stock")
        for (model, how), means in sorted(self._noted.items()):
            ours, stock = overall(means)
            name, (worst, beside) = max(means.items(), key=lambda pair: pair[1][0] - pair[1][1])
            terminalreporter.write_line(
                f"{model:16}{how:22} {ours:.2f}   {stock:.2f}  {name} {worst:.2f}, {beside:.2f}"
            )


def overall(means: Means) -> tuple[float, float]:
    """The means over all schedulers, ours and stock's."""
    ours, stock = (float(np.mean([pair[index] for pair in means.values()])) for index in range(2))
    return ours, stock


_DIFFERENCES = pytest.StashKey[Differences]()


def compare(kind: Kind, exact: Kind, how: str, cases: Sequence[RenderTask], config: pytest.Config) -> Means:
    """Render all in one mixed backlog, each with stock in the same precision and each with stock in float32."""
    if _DIFFERENCES not in config.stash:
        config.stash[_DIFFERENCES] = Differences()
        config.pluginmanager.register(config.stash[_DIFFERENCES])
    rendered, found = kind.render(cases), dict[str, list[tuple[float, float]]]()
    for case in cases:
        with drawing_in(kind.model.adapter.dtype, exact.stock, case.recipe.scheduler):
            truth = exact.reference(case.recipe)[0].astype(int)
        ours, stock = rendered[case.task_id][0], kind.reference(case.recipe)[0]
        pair = float(np.abs(ours - truth).mean()), float(np.abs(stock - truth).mean())
        found.setdefault(case.recipe.scheduler, []).append(pair)
    means = {name: overall({str(n): pair for n, pair in enumerate(pairs)}) for name, pairs in found.items()}
    config.stash[_DIFFERENCES].note(kind.name, how, means)
    return means


@contextmanager
def drawing_in(dtype: torch.dtype, stock: Any, scheduler: str) -> Iterator[None]:
    """Let a float32 pipeline draw the noise that one in half precision draws: the dtype decides the numbers."""
    kit: Any = diffusers
    steps = sys.modules[getattr(kit, scheduler_of(scheduler).kind.class_name).__module__]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(sys.modules[type(stock).__module__], "randn_tensor", partial(drawn, dtype))
        if scheduler_of(scheduler).name != "dpmsolver++_sde":  # it draws in float32 always
            patch.setattr(steps, "randn_tensor", partial(drawn, dtype), raising=False)
        yield


def drawn(own: torch.dtype, shape: Any, *, dtype: torch.dtype, **options: Any) -> torch.Tensor:
    """Noise as a pipeline in ``own`` draws it, in the dtype that is asked for."""
    noise: torch.Tensor = randn_tensor(shape, dtype=own, **options)
    return noise.to(dtype)


def kind_in(dtype: str, name: str, folder: Path, *, compiled: bool = False) -> Kind:
    """A tiny model in a precision; stock is eager."""
    tiny_models.save(KINDS[name](), folder)
    stock = diffusers.DiffusionPipeline.from_pretrained(folder, dtype=DTYPES[dtype])
    stock.set_progress_bar_config(disable=True)
    model = load_model(folder, dtype=dtype, device="cpu", compiled=compiled)
    return Kind(name=name, folder=folder, model=model, stock=stock, config=stock.scheduler.config)


@pytest.mark.filterwarnings("ignore:`upcast_vae` is deprecated:FutureWarning")  # stock's own call of it
@pytest.mark.parametrize("name", KINDS)
@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_we_are_as_near_to_float32_as_stock(name: str, dtype: str, tmp_path: Path, pytestconfig: pytest.Config) -> None:
    """The parity test's cases with fewer steps; where there are many, half of them in bfloat16, a third in float16."""
    kind, exact = kind_in(dtype, name, tmp_path / "half"), kind_in("float32", name, tmp_path / "float32")
    cases = [shortened(case) for case in kind.cases() if stock_can(name, case.recipe)]
    # CPUs are slow in float16.
    some = cases if len(cases) < 20 else cases[1::2] if dtype == "bfloat16" else cases[::3]
    means = compare(kind, exact, dtype, some, pytestconfig)
    ours, stock = overall(means)
    assert ours <= (NO_WORSE if len(some) >= 10 else NO_WORSE_OF_FEW) * stock, means


def shortened(case: RenderTask) -> RenderTask:
    """A case with at most ``MOST_STEPS`` steps: more of them cost time, and each rounds as the others do."""
    steps = min(case.recipe.num_inference_steps, MOST_STEPS)
    return replace(case, recipe=replace(case.recipe, num_inference_steps=steps))


def stock_can(name: str, recipe: Recipe) -> bool:
    """PixArt with one Euler step hands float32 latents to the autoencoder, which stops in half precision."""
    return not (name.startswith("pixart") and recipe.scheduler.startswith("euler") and recipe.num_inference_steps == 1)
