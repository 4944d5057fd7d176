"""Every picture against the stock diffusers pipeline called for it alone, for each family and scheduler."""

import inspect
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.model.facts import read_facts
from pipeline.recipe import Recipe, RenderTask
from pipeline.rendering.engine import Engine
from pipeline.rendering.loading import LoadedModel, load_model
from pipeline.rendering.results import Failed
from pipeline.schedulers import SCHEDULERS, SPACINGS, name_of_class, scheduler_of
from tests import tiny_models
from tests.differences import note_difference
from tests.rendering.tasks import task, tasks_of_turning_schedulers
from tests.tiny_models import SIZE_PX

LARGEST_LATENT_DIFFERENCE = 1e-4
"""Per standard deviation: a trained model's latents have unit variance, those of random models up to fifty."""
LARGEST_WHERE_BITS_GROW = 3e-4
"""Where a scheduler clips the clean latent it predicts, as DDIM of the tiny PixArt does: that multiplies differences of
the network's last bits in a batch of another size. And for ``DIVIDING``."""
DIVIDING = ("heun:beta", "kdpm2_ancestral:beta")
"""With the sigmas of PixArt their steps divide a rounded difference by 0.01. Against float64, with a smooth network,
stock Heun is 8e-5 off and its table 3e-7."""
LARGEST_PIXEL_DIFFERENCE = 1

KINDS: Mapping[str, Callable[[], Any]] = {
    "sd": tiny_models.stable_diffusion,
    "sd-v": partial(tiny_models.stable_diffusion, "v_prediction"),
    "lcm": tiny_models.latent_consistency,
    "sdxl": tiny_models.stable_diffusion_xl,
    "lcm-xl": partial(tiny_models.latent_consistency, xl=True),
    "sd3": tiny_models.stable_diffusion_3,
    "sd3-shifted": partial(tiny_models.stable_diffusion_3, dynamic_shifting=True),
    "flux-dev": tiny_models.flux,
    "flux-schnell": partial(tiny_models.flux, guidance_embeds=False),
    "pixart-alpha": tiny_models.pixart,
    "pixart-sigma": partial(tiny_models.pixart, sigma=True),
}
OWN_SCHEDULER_ONLY = ("sd-v", "lcm", "lcm-xl", "sd3-shifted", "flux-schnell", "pixart-sigma")
"""Siblings of a family that is tested with all."""

SETTINGS: Mapping[str, Mapping[str, Any]] = {
    "unguided": {"guidance_scale": 1.0, "num_inference_steps": 4},
    "guided": {
        "guidance_scale": 7.5,
        "num_inference_steps": 6,
        "negative_prompt": "ugly",
        "seed": 2**64 - 1,
        "width": 2 * SIZE_PX,
    },
    "one step": {"guidance_scale": 2.5, "num_inference_steps": 1, "negative_prompt": " "},
    "many steps": {"guidance_scale": 3.0, "num_inference_steps": 21, "seed": 0, "height": 2 * SIZE_PX},
}
LISTS: Mapping[str, tuple[str, ...]] = {
    "timesteps": ("timesteps=999/850/736/645/545/455",),
    "sigmas": ("sigmas=14.615/6.475/3.861/2.697/0",),
    "flow sigmas": ("sigmas=1/0.7/0.3",),
}

Picture = tuple[NDArray[np.uint8], Tensor]
"""(height, width, 3) 0..255 and the latent it was decoded from, (channels, h, w)"""


@dataclass(frozen=True, kw_only=True)
class Kind:
    """A tiny model of a family, ours and stock."""

    name: str
    folder: Path
    model: LoadedModel
    stock: Any
    config: Mapping[str, Any]

    def schedulers(self) -> list[str]:
        """The schedulers of the family, or of a sibling its own alone."""
        own = name_of_class(self.config["_class_name"], self.config)
        return [own] if self.name in OWN_SCHEDULER_ONLY else list(self.model.adapter.family.schedulers())

    def with_options(self) -> list[str]:
        """Each scheduler with each of its options, and with two of them."""
        texts = [f"{name}:{option}" for name in self.schedulers() for option in options_of(name)]
        return [] if self.name in OWN_SCHEDULER_ONLY else [text for text in texts if self._takes(text)]

    def _takes(self, text: str) -> bool:
        """Whether the stock pipeline's call takes the lists of a scheduler."""
        listed = scheduler_of(text).listed
        return listed is None or listed in inspect.signature(type(self.stock).__call__).parameters

    def every_case(self) -> list[RenderTask]:
        """Every scheduler, without and with every option, in every setting."""
        return self._possible(product([*self.schedulers(), *self.with_options()], SETTINGS.values()))

    def cases(self) -> list[RenderTask]:
        """Some of them: of kind, scheduler, option and setting each pair that can be, at least once over all kinds."""
        turn, settings = list(KINDS).index(self.name), list(SETTINGS.values())
        schedulers = self.schedulers()
        plain = [(name, settings[(turn + n) % len(settings)]) for n, name in enumerate(schedulers)]
        if len(schedulers) == 1:
            plain = [(schedulers[0], setting) for setting in settings]
        options = self.with_options()[turn % 4 :: 4]
        return self._possible(
            [*plain, *((text, settings[(turn + n) % len(settings)]) for n, text in enumerate(options))]
        )

    def _possible(self, wanted: Iterable[tuple[str, Mapping[str, Any]]]) -> list[RenderTask]:
        """Effective recipes, as planning makes them, without those that stock cannot draw."""
        family = self.model.adapter.family
        recipes = [family.effective(task(scheduler=text, **setting).recipe) for text, setting in wanted]
        # Stock divides by zero or reads past its list with one step of these.
        listed = [
            replace(r, num_inference_steps=scheduler_of(r.scheduler).listed_steps or r.num_inference_steps)
            for r in recipes
        ]
        possible = [r for r in listed if r.num_inference_steps > 1 or self._takes_one_step(r.scheduler)]
        return [replace(task(), recipe=recipe, task_id=str(number)) for number, recipe in enumerate(possible)]

    def _takes_one_step(self, scheduler: str) -> bool:
        """PixArt's pipeline wants two outputs of the only step, which not every scheduler has."""
        return not self.name.startswith("pixart") or scheduler in ("ddim", "ddpm", "euler", "euler_ancestral", "lcm")

    def render(self, tasks: Iterable[RenderTask]) -> dict[str, Picture]:
        """Images by task id, all tasks in one mixed backlog; without those that are not finite."""
        adapter = replace(self.model.adapter)
        decoded: list[Tensor] = []

        def recorded(latents: Tensor) -> tuple[Tensor, Tensor]:
            decoded.extend(latents)
            return self.model.adapter.decode(latents)

        object.__setattr__(adapter, "decode", recorded)
        engine = Engine(replace(self.model, adapter=adapter), rows=6)
        pictures: dict[str, Picture] = {}
        engine.add(tasks)
        while engine.busy:
            decoded.clear()
            for index, outcome in enumerate(engine.step()):
                if isinstance(outcome, Failed):
                    assert outcome.verdict == "nan_latents", outcome
                else:
                    pictures[outcome.task.task_id] = (outcome.pixels, decoded[index])  # padding comes last
        return pictures

    def differences(self, cases: Sequence[RenderTask]) -> Iterator[tuple[RenderTask, int, float]]:
        """Each case with its largest difference from stock: pixels 0..255, latents in standard deviations."""
        rendered = self.render(cases)
        for case in cases:
            expected_pixels, expected = self.reference(case.recipe)
            if case.task_id not in rendered:
                assert not expected.isfinite().all(), f"stock can draw {case.recipe}"
                yield case, 0, 0.0
                continue
            pixels, raw = rendered[case.task_id]
            latent = self.model.adapter.unscaled(raw)
            of_pixels = int(np.abs(pixels.astype(int) - expected_pixels).max())
            of_latents = (latent - expected).abs().max().item() / max(1e-6, expected.std().item())
            yield case, of_pixels, of_latents

    def within(self, recipe: Recipe, of_pixels: int, of_latents: float) -> bool:
        """Whether a difference is allowed; one that is not a number is not."""
        told = recipe.scheduler, recipe.num_inference_steps, recipe.width, recipe.height
        grows = self.model.adapter.trajectory(*told).alone is not None or recipe.scheduler.startswith(DIVIDING)
        most = LARGEST_WHERE_BITS_GROW if grows else LARGEST_LATENT_DIFFERENCE
        return of_pixels <= LARGEST_PIXEL_DIFFERENCE and of_latents <= most

    def reference(self, recipe: Recipe) -> Picture:
        """The real pipeline, batch 1, one CPU generator, its own defaults but for what ``engine.md`` excepts."""
        found = scheduler_of(recipe.scheduler)
        self.stock.scheduler = getattr(diffusers, found.kind.class_name).from_config(self.config, **found.settings)
        latents: list[Tensor] = []
        decode = self.stock.vae.decode

        def keep(latent: Tensor, **options: Any) -> Any:
            latents.append(latent)
            return decode(latent, **options)

        self.stock.vae.decode = keep
        try:
            picture = self.stock(
                recipe.prompt,
                width=recipe.width,
                height=recipe.height,
                generator=torch.Generator("cpu").manual_seed(recipe.seed),
                **self._options(recipe),
            ).images[0]
        finally:
            self.stock.vae.decode = decode
        return np.asarray(picture), latents[0][0]

    def _options(self, recipe: Recipe) -> dict[str, Any]:
        found = scheduler_of(recipe.scheduler)
        options: dict[str, Any] = {"num_inference_steps": recipe.num_inference_steps}
        for name, numbers in (("timesteps", found.timesteps), ("sigmas", found.sigmas)):
            if numbers is not None:
                options[name] = list(numbers)
        if recipe.guidance_scale is not None:
            options["guidance_scale"] = recipe.guidance_scale
        if (recipe.negative_prompt or "").strip():
            options["negative_prompt"] = recipe.negative_prompt
        if self.name.startswith("pixart"):
            options |= {"use_resolution_binning": False, "clean_caption": False}
        return options


def options_of(name: str) -> list[str]:
    """Options of a scheduler: spacings, schedules of sigmas, both at once, lists."""
    kind = SCHEDULERS[name]
    spacings = SPACINGS if kind.spacing else ()
    both = [f"{schedule}:{spacings[n % len(spacings)]}" for n, schedule in enumerate(kind.sigma_schedules) if spacings]
    lists = [text for listed in kind.lists for text in LISTS[f"flow {listed}" if kind.flow else listed]]
    return [*spacings, *kind.sigma_schedules, *both, *lists]


def load_kind(name: str, folder: Path) -> Kind:
    """A kind of model, saved into a folder and loaded both ways."""
    tiny_models.save(KINDS[name](), folder)
    stock = diffusers.DiffusionPipeline.from_pretrained(folder)
    stock.set_progress_bar_config(disable=True)
    model = load_model(folder, dtype="float32", device="cpu")
    return Kind(name=name, folder=folder, model=model, stock=stock, config=stock.scheduler.config)


@pytest.fixture(scope="module", params=KINDS)
def kind(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Kind:
    return load_kind(request.param, tmp_path_factory.mktemp(request.param))


def test_stock_draws_the_same(kind: Kind, pytestconfig: pytest.Config) -> None:
    cases, wrong = kind.cases(), []
    for case, of_pixels, of_latents in kind.differences(cases):
        note_difference(pytestconfig, kind.name, case.recipe.scheduler, of_pixels, of_latents)
        if not kind.within(case.recipe, of_pixels, of_latents):
            wrong.append((case.recipe, of_pixels, of_latents))
    assert not wrong


def test_stock_draws_the_same_where_multistep_schedulers_threshold(tmp_path: Path) -> None:
    """They keep latents and predictions from step to step, in a batch whose other slots overwrite its tensors."""
    kind = load_kind("pixart-sigma", tmp_path)
    config = {**kind.config, "thresholding": True}
    schedulers = replace(kind.model.adapter.schedulers, config=config)
    model = replace(kind.model, adapter=replace(kind.model.adapter, schedulers=schedulers))
    tasks = [replace(one, task_id=str(number)) for number, one in enumerate(tasks_of_turning_schedulers())]
    for case, of_pixels, of_latents in replace(kind, config=config, model=model).differences(tasks):
        assert kind.within(case.recipe, of_pixels, of_latents), (case.recipe, of_pixels, of_latents)


def test_prompts_and_guidance_can_be_seen(kind: Kind) -> None:
    """The other tests would pass on a model that draws the same whatever it is told."""
    family = kind.model.adapter.family
    plain = task(guidance_scale=family.effective_guidance(7.5), scheduler=kind.schedulers()[0])
    others = [replace(plain.recipe, prompt="two blue dogs"), replace(plain.recipe, seed=9)]
    if family.effective_guidance(7.5) is not None:
        others.append(replace(plain.recipe, guidance_scale=2.0))
    if family.uses_negative_prompt(7.5):
        others.append(replace(plain.recipe, negative_prompt="ugly"))
    tasks = [replace(plain, recipe=recipe, task_id=str(n)) for n, recipe in enumerate([plain.recipe, *others])]
    pictures = {pixels.tobytes() for pixels, _ in kind.render(tasks).values()}
    assert len(pictures) == len(tasks)


def test_facts_agree_with_the_loaded_model(kind: Kind) -> None:
    facts = read_facts(kind.folder)
    assert facts.size_factor == kind.model.adapter.latent_factor * kind.model.adapter.family.patch
    assert facts.scheduler in facts.family.schedulers()
    call = {name: own.default for name, own in call_parameters(kind.stock).items()}
    assert call["num_inference_steps"] == facts.family.num_inference_steps
    if facts.family.effective_guidance(3.0) is not None:
        assert call["guidance_scale"] == facts.family.guidance_scale


def call_parameters(stock: Any) -> Mapping[str, Any]:
    return inspect.signature(type(stock).__call__).parameters
