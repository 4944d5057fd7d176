"""Every picture against the stock diffusers pipeline called for it alone."""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from itertools import product
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.recipe import Recipe, RenderTask
from pipeline.rendering.engine import Engine
from pipeline.rendering.loading import LoadedModel
from pipeline.rendering.results import Rendered
from pipeline.rendering.stable_diffusion import StableDiffusion
from pipeline.schedulers import SCHEDULERS, name_of_class
from tests.rendering.tasks import task
from tests.rendering.test_schedulers import DIFFUSION
from tests.tiny_models import SIZE_PX

LARGEST_LATENT_DIFFERENCE = 1e-4
"""Per standard deviation: a trained model's latents have unit variance, those of this epsilon model up to fifty."""
LARGEST_PIXEL_DIFFERENCE = 1

SETTINGS: dict[str, dict[str, Any]] = {
    "unguided": {"guidance_scale": 1.0, "num_inference_steps": 4},
    "guided": {
        "guidance_scale": 7.5,
        "num_inference_steps": 6,
        "negative_prompt": "ugly",
        "seed": 2**64 - 1,
        "width": 2 * SIZE_PX,
    },
    "one step": {"guidance_scale": 2.5, "num_inference_steps": 1, "negative_prompt": " "},
}
CASES = {
    (scheduler, setting): task(scheduler=scheduler, **SETTINGS[setting])
    for scheduler, setting in product(DIFFUSION, SETTINGS)
}

Picture = tuple[NDArray[np.uint8], Tensor]
"""(height, width, 3) 0..255 and the latent it was decoded from, (4, height/4, width/4)"""


@dataclass(frozen=True, kw_only=True)
class Recording(StableDiffusion):
    """Keeps what it is given to decode, so that latents can be compared too."""

    decoded: list[Tensor] = field(default_factory=list)

    def decode(self, latents: Tensor) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        self.decoded.extend(latents)
        return super().decode(latents)


def render(model: LoadedModel, tasks: Iterable[RenderTask]) -> dict[str, Picture]:
    """Pictures by task id, all tasks in one mixed backlog."""
    own = model.adapter
    adapter = Recording(stock=own.stock, device=own.device, dtype=own.dtype, scheduler_config=own.scheduler_config)
    engine = Engine(replace(model, adapter=adapter), rows=6)
    engine.add(tasks)
    pictures = {}
    while engine.busy:
        adapter.decoded.clear()
        for index, outcome in enumerate(engine.step()):
            assert isinstance(outcome, Rendered), outcome
            pictures[outcome.task.task_id] = (outcome.pixels, adapter.decoded[index])  # padding comes last
    return pictures


def load_stock(folder: Path) -> Any:
    stock_class: Any = diffusers.StableDiffusionPipeline
    stock = stock_class.from_pretrained(folder)
    stock.set_progress_bar_config(disable=True)
    return stock


class Stock:
    """The reference: the real pipeline, batch 1, one CPU generator, its own defaults."""

    def __init__(self, folder: Path) -> None:
        self._stock = load_stock(folder)
        self._config = self._stock.scheduler.config

    def picture(self, recipe: Recipe) -> Picture:
        kind = SCHEDULERS[recipe.scheduler]
        self._stock.scheduler = getattr(diffusers, kind.class_name).from_config(self._config, **kind.settings)
        latents = []

        def keep(_stock: Any, _step: int, _timestep: Any, values: dict[str, Any]) -> dict[str, Any]:
            latents.append(values["latents"])
            return {}

        blank = not (recipe.negative_prompt or "").strip()
        picture = self._stock(
            recipe.prompt,
            negative_prompt=None if blank else recipe.negative_prompt,
            guidance_scale=recipe.guidance_scale,
            num_inference_steps=recipe.num_inference_steps,
            width=recipe.width,
            height=recipe.height,
            generator=torch.Generator("cpu").manual_seed(recipe.seed),
            callback_on_step_end=keep,
        ).images[0]
        return np.asarray(picture), latents[-1][0]


@pytest.fixture(scope="module")
def epsilon(epsilon_model: LoadedModel, epsilon_folder: Path) -> tuple[dict[str, Picture], Stock]:
    return render(epsilon_model, CASES.values()), Stock(epsilon_folder)


@pytest.fixture(scope="module")
def velocity(velocity_model: LoadedModel, velocity_folder: Path) -> tuple[dict[str, Picture], Stock]:
    guided = [case for (_, setting), case in CASES.items() if setting == "guided"]
    return render(velocity_model, guided), Stock(velocity_folder)


@pytest.mark.parametrize(("kind", "setting"), [*(("epsilon", setting) for setting in SETTINGS), ("velocity", "guided")])
@pytest.mark.parametrize("scheduler", DIFFUSION)
def test_stock_draws_the_same(scheduler: str, kind: str, setting: str, request: pytest.FixtureRequest) -> None:
    rendered, stock = request.getfixturevalue(kind)
    case = CASES[scheduler, setting]
    pixels, latent = rendered[case.task_id]
    expected_pixels, expected_latent = stock.picture(case.recipe)
    deviation = max(1.0, expected_latent.std().item())
    assert (latent - expected_latent).abs().max().item() <= LARGEST_LATENT_DIFFERENCE * deviation
    assert np.abs(pixels.astype(int) - expected_pixels).max() <= LARGEST_PIXEL_DIFFERENCE


@pytest.mark.parametrize("kind", ["epsilon", "velocity"])
def test_the_models_own_scheduler_is_stock_without_a_choice(kind: str, request: pytest.FixtureRequest) -> None:
    model: LoadedModel = request.getfixturevalue(f"{kind}_model")
    stock = load_stock(request.getfixturevalue(f"{kind}_folder"))
    config = model.scheduler_config
    own = task(scheduler=name_of_class(config["_class_name"], config), num_inference_steps=5)
    expected = stock("a red cat", num_inference_steps=5, generator=torch.Generator("cpu").manual_seed(1)).images[0]
    pixels, _ = render(model, [own])[own.task_id]
    assert np.abs(pixels.astype(int) - np.asarray(expected)).max() <= LARGEST_PIXEL_DIFFERENCE
