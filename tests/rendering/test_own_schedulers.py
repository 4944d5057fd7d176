"""Models with every scheduler as their own, as diffusers saves them, against the stock pipeline as it is loaded."""

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.model.facts import read_facts
from pipeline.rendering.engine import Engine
from pipeline.rendering.loading import LoadedModel, load_model
from pipeline.rendering.renderer import Renderer, load_renderer
from pipeline.rendering.results import Rendered
from pipeline.rendering.timetables import ModelSchedulers
from pipeline.scheduler_classes import DEFAULTS, class_settings
from pipeline.schedulers import SCHEDULERS, scheduler_of
from tests import tiny_models
from tests.rendering.tasks import task

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # the stock pipeline's, of the keys it corrects

STEPS = 4
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "num_train_timesteps": 200}
"""Some constructors walk over all trained steps, so there are few."""
PUBLISHED = {**BETAS, "clip_sample": False, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1}
"""Keys that every published Stable Diffusion has, whatever its class."""


@dataclass(frozen=True)
class Model:
    """A saved model whose scheduler can be replaced."""

    saved: Path
    stock: Any
    loaded: LoadedModel
    scratch: Path

    def renderer(self, schedulers: ModelSchedulers) -> Renderer:
        """Return Darkroom's renderer with other schedulers, without loading the weights again."""
        return Engine(replace(self.loaded, adapter=replace(self.loaded.adapter, schedulers=schedulers)), 2)

    def with_scheduler(self, class_name: str, config: Mapping[str, Any], written_class: str | None = None) -> Path:
        """Return a folder with the same weights, the class in its index and the file with these keys."""
        folder = self.scratch / str(len(list(self.scratch.iterdir())))
        shutil.copytree(self.saved, folder, copy_function=os.link)
        index = json.loads((folder / "model_index.json").read_text())
        for path, content in (
            (folder / "model_index.json", {**index, "scheduler": ["diffusers", class_name]}),
            (folder / "scheduler" / "scheduler_config.json", {"_class_name": written_class or class_name, **config}),
        ):
            path.unlink()
            path.write_text(json.dumps(content))
        return folder

    def reference(self, folder: Path) -> Any:
        """Return what ``from_pretrained`` makes of a folder, without loading the weights again."""
        class_name = json.loads((folder / "model_index.json").read_text())["scheduler"][1]
        own = getattr(diffusers, class_name).from_pretrained(folder, subfolder="scheduler")
        parts = {**self.stock.components, "scheduler": own}
        checker = {"requires_safety_checker": False} if "safety_checker" in parts else {}
        made = type(self.stock)(**parts, **checker)
        made.set_progress_bar_config(disable=True)
        return made


def saved_model(made: Any, folder: Path) -> Model:
    tiny_models.save(made, folder / "saved")
    stock = diffusers.DiffusionPipeline.from_pretrained(folder / "saved")
    loaded = load_model(folder / "saved", dtype="float32", device="cpu")
    (folder / "scratch").mkdir()
    return Model(saved=folder / "saved", stock=stock, loaded=loaded, scratch=folder / "scratch")


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return saved_model(tiny_models.stable_diffusion(), tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return saved_model(tiny_models.stable_diffusion_3(), tmp_path_factory.mktemp("sd3"))


LOADED: Mapping[str, Any] = {"dtype": "float32", "device": "cpu", "rows": 2}


def drawn(folder: Path, scheduler: str | None = None) -> NDArray[np.uint8]:
    """Return Darkroom's image, with the model's own scheduler unless one is named."""
    return image_of(load_renderer(folder, **LOADED), scheduler or own_name(folder))


def image_of(renderer: Renderer, scheduler: str) -> NDArray[np.uint8]:
    (outcome,) = renderer.render([task(scheduler=scheduler, num_inference_steps=STEPS, guidance_scale=3.0)])
    assert isinstance(outcome, Rendered), outcome
    return outcome.pixels


def own_name(folder: Path) -> str:
    name = read_facts(folder).scheduler
    assert name is not None
    return name


def stock_image(pipeline: Any) -> NDArray[np.int64]:
    own = task().recipe
    generator = torch.Generator("cpu").manual_seed(own.seed)
    size = {"width": own.width, "height": own.height}
    made = pipeline(own.prompt, generator=generator, guidance_scale=3.0, num_inference_steps=STEPS, **size)
    return np.asarray(made.images[0]).astype(int)


def largest_difference(pixels: NDArray[np.uint8], reference: NDArray[np.int64]) -> int:
    return int(np.abs(pixels.astype(int) - reference).max())


def replaced(pipeline: Any, name: str) -> Any:
    """Return the scheduler of a name that a user of diffusers puts over a loaded pipeline's."""
    found = scheduler_of(name)
    return getattr(diffusers, found.kind.class_name).from_config(pipeline.scheduler.config, **found.settings)


def public(config: Mapping[str, Any]) -> dict[str, Any]:
    return {key: value for key, value in config.items() if not key.startswith("_")}


def kept_defaults(config: Mapping[str, Any]) -> dict[str, Any]:
    """Return a configuration without the note of absent keys."""
    return {key: value for key, value in config.items() if key != "_use_default_values"}


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_as_the_models_own(name: str, diffusion: Model, flow: Model) -> None:
    """The file is what diffusers saves, with ``-Infinity`` where it writes that."""
    kind = SCHEDULERS[name]
    model, settings = (flow, {}) if kind.flow else (diffusion, BETAS)
    made = getattr(diffusers, kind.class_name)(**settings, **kind.settings)
    folder = model.with_scheduler(kind.class_name, json.loads(made.to_json_string()))
    assert own_name(folder) == name
    own = read_facts(folder).own_scheduler
    assert (own.warnings, own.reading) == ((), {})
    assert largest_difference(drawn(folder), stock_image(model.reference(folder))) <= 1


VARIANTS: Mapping[str, Mapping[str, Any]] = {
    "ddim": {"prediction_type": "v_prediction", "rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    "ddpm": {"variance_type": "fixed_large", "thresholding": True, "sample_max_value": 3.0},
    "euler": {"final_sigmas_type": "sigma_min", "use_karras_sigmas": True, "timestep_spacing": "leading"},
    "euler_ancestral": {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing"},
    "dpmsolver++": {"euler_at_final": True, "solver_order": 3, "use_karras_sigmas": True, "lambda_min_clipped": -5.1},
    "dpmsolver++_sde": {"final_sigmas_type": "sigma_min", "solver_type": "heun", "timestep_spacing": "leading"},
    "deis": {"solver_type": "midpoint", "lower_order_final": False, "use_exponential_sigmas": True},
    "unipc": {"prediction_type": "flow_prediction", "use_flow_sigmas": True, "flow_shift": 3.0},
    "pndm": {"set_alpha_to_one": True, "timestep_spacing": "linspace"},
    "heun": {"use_beta_sigmas": True, "clip_sample": True, "clip_sample_range": 2.0},
    "lms": {"beta_schedule": "squaredcos_cap_v2", "timestep_spacing": "leading"},
    "sasolver": {"predictor_order": 3, "corrector_order": 1, "thresholding": True},
    "lcm": {"original_inference_steps": 40, "timestep_scaling": 5.0},
    "flow_match_euler": {"shift": 5.0, "use_karras_sigmas": True, "shift_terminal": 0.1},
    "flow_match_heun": {"shift": 2.0},
}
"""Settings of models' own schedulers, mixed."""


@pytest.mark.parametrize("name", VARIANTS)
def test_settings_of_the_models_own_scheduler(name: str, diffusion: Model, flow: Model) -> None:
    kind = SCHEDULERS[name]
    model, settings = (flow, {}) if kind.flow else (diffusion, {**PUBLISHED, "skip_prk_steps": True})
    folder = model.with_scheduler(kind.class_name, {**settings, **kind.settings, **VARIANTS[name]})
    assert own_name(folder) == name
    reference = model.reference(folder)
    schedulers = ModelSchedulers(config=dict(reference.scheduler.config), own=name)
    assert kept_defaults(schedulers.make(scheduler_of(name), STEPS).config) == kept_defaults(reference.scheduler.config)
    renderer = model.renderer(schedulers)
    assert largest_difference(image_of(renderer, name), stock_image(reference)) <= 1


def test_a_shift_by_size_of_the_models_own_scheduler(flow: Model) -> None:
    """The linear form, and keys that say how the shift follows from the size."""
    config = {"use_dynamic_shifting": True, "time_shift_type": "linear", "base_shift": 0.4, "max_image_seq_len": 64}
    folder = flow.with_scheduler("FlowMatchEulerDiscreteScheduler", config)
    assert largest_difference(drawn(folder), stock_image(flow.reference(folder))) <= 1


CORRECTED = {
    "DDIMScheduler": {"steps_offset": 1, "clip_sample": False},
    "DDPMScheduler": {"steps_offset": 1, "clip_sample": False},
    "PNDMScheduler": {"steps_offset": 1},
}
"""What the pipeline of Stable Diffusion sets of the keys that are absent, where images depend on it."""


@pytest.mark.parametrize("class_name", [name for name in DEFAULTS if not name.startswith("Flow")])
def test_absent_keys_enter_the_digest_where_the_image_is_another(class_name: str, diffusion: Model) -> None:
    """Earlier versions made the own scheduler ``from_config``, which leaves absent keys out."""
    kept = {"skip_prk_steps": True} if class_name == "PNDMScheduler" else {}
    folder = diffusion.with_scheduler(class_name, {**BETAS, **kept})
    own, reference = own_name(folder), diffusion.reference(folder)
    schedulers = ModelSchedulers(config=dict(reference.scheduler.config), own=own)
    now, before = (
        schedulers.make(scheduler_of(own), STEPS),
        replace(schedulers, own=None).make(scheduler_of(own), STEPS),
    )
    assert kept_defaults(now.config) == kept_defaults(reference.scheduler.config)
    corrected, reading = CORRECTED.get(class_name, {}), read_facts(folder).own_scheduler.reading
    assert reading == ({"_class_name": class_name, **corrected} if corrected else {})
    if corrected:
        pixels, stock = drawn(folder), stock_image(reference)
        reference.scheduler = before
        former = stock_image(reference)
        assert largest_difference(pixels, stock) <= 1 < largest_difference(pixels, former)
        for more, wanted in (({"as_once_read": True}, former), ({"call": {"eta": 0.0}}, stock)):
            assert largest_difference(image_of(load_renderer(folder, **LOADED, **more), own), wanted) <= 1
        return
    for made in (now, before):
        made.set_timesteps(STEPS)
    assert torch.equal(now.timesteps, before.timesteps)
    assert torch.equal(getattr(now, "sigmas", now.timesteps), getattr(before, "sigmas", before.timesteps))
    assert {key for key in now.config if now.config[key] != before.config[key]} <= {
        "steps_offset",
        "_use_default_values",
    }


def test_keys_that_change_nothing_leave_the_digest_alone(diffusion: Model) -> None:
    for class_name, config in (
        ("DDIMScheduler", PUBLISHED),
        ("PNDMScheduler", PUBLISHED),
        ("DDIMScheduler", {**BETAS, "clip_sample": False, "timestep_spacing": "trailing"}),
        ("DDPMScheduler", {**BETAS, "steps_offset": 1, "thresholding": True}),
        ("EulerDiscreteScheduler", {**BETAS, "steps_offset": 0, "timestep_spacing": "leading"}),
    ):
        assert read_facts(diffusion.with_scheduler(class_name, config)).own_scheduler.reading == {}


def test_the_class_is_that_of_the_index(diffusion: Model) -> None:
    """Only what is drawn with the default scheduler is another image than before."""
    folder = diffusion.with_scheduler("DDIMScheduler", PUBLISHED, written_class="EulerDiscreteScheduler")
    facts, reference = read_facts(folder), diffusion.reference(folder)
    assert (facts.scheduler, facts.own_scheduler.former_name) == ("ddim", "euler")
    assert facts.own_scheduler.reading == {"_class_name": "DDIMScheduler"}
    assert "the index counts" in facts.own_scheduler.warnings[0]
    assert largest_difference(drawn(folder), stock_image(reference)) <= 1
    reference.scheduler = replaced(reference, "euler")
    assert largest_difference(drawn(folder, "euler"), stock_image(reference)) <= 1


UNNAMED: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "tcd": ("TCDScheduler", {**BETAS, "timestep_scaling": 7.0}),
    "edm": ("EDMEulerScheduler", {"sigma_min": 0.01, "sigma_max": 70.0, "prediction_type": "v_prediction"}),
    "singlestep": ("DPMSolverSinglestepScheduler", {**PUBLISHED, "solver_type": "heun", "use_karras_sigmas": True}),
    "cogvideox": ("CogVideoXDDIMScheduler", {**BETAS, "snr_shift_scale": 3.0, "steps_offset": 0, "clip_sample": True}),
    "runge-kutta": ("PNDMScheduler", {**BETAS, "steps_offset": 1}),
    "dpmsolver": (
        "DPMSolverMultistepScheduler",
        {**PUBLISHED, "algorithm_type": "dpmsolver", "final_sigmas_type": "sigma_min", "timestep_spacing": "trailing"},
    ),
}
"""Schedulers without a name of ours that diffusers can load."""


@pytest.mark.parametrize("unnamed", UNNAMED)
def test_a_model_whose_scheduler_has_no_name_takes_the_others(unnamed: str, diffusion: Model) -> None:
    folder = diffusion.with_scheduler(*UNNAMED[unnamed])
    assert read_facts(folder).scheduler is None
    loaded = load_model(folder, dtype="float32", device="cpu")
    reference = diffusion.reference(folder)
    for name, kind in SCHEDULERS.items():
        if not kind.flow:
            made, wanted = loaded.adapter.schedulers.make(scheduler_of(name), STEPS), replaced(reference, name)
            settings = DEFAULTS[kind.class_name]
            assert {key: made.config[key] for key in settings} == {key: wanted.config[key] for key in settings}, name
    reference.scheduler = replaced(reference, "euler")
    assert largest_difference(image_of(Engine(loaded, 2), "euler"), stock_image(reference)) <= 1


BROKEN: Mapping[str, tuple[str, Mapping[str, Any]]] = {
    "dpmsolver": ("DPMSolverMultistepScheduler", {**PUBLISHED, "algorithm_type": "dpmsolver"}),
    "karras and beta": ("LMSDiscreteScheduler", {**PUBLISHED, "use_karras_sigmas": True, "use_beta_sigmas": True}),
    "solver type": ("UniPCMultistepScheduler", {**PUBLISHED, "solver_type": "bh3"}),
}
"""Schedulers that diffusers cannot make."""


@pytest.mark.parametrize("broken", BROKEN)
def test_a_model_whose_scheduler_cannot_be_made_takes_the_others(broken: str, diffusion: Model) -> None:
    class_name, config = BROKEN[broken]
    with pytest.raises((ValueError, NotImplementedError)):
        getattr(diffusers, class_name).from_config(config)
    folder = diffusion.with_scheduler(class_name, config)
    assert read_facts(folder).scheduler is None
    plain = diffusion.with_scheduler("DDIMScheduler", config)
    assert (drawn(folder, "ddim") == drawn(plain, "ddim")).all()


@pytest.mark.parametrize("own_class", DEFAULTS)
def test_the_keys_that_travel_are_those_of_from_config(own_class: str) -> None:
    """From the own scheduler to every other of its kind: keys in the file, and no default of the own class."""
    is_flow = own_class.startswith("Flow")
    config = {"shift": 2.0, "use_karras_sigmas": True} if is_flow else TRAVELLING
    own = getattr(diffusers, own_class).from_config(config)
    for class_name in DEFAULTS:
        if class_name.startswith("Flow") == is_flow:
            made = getattr(diffusers, class_name).from_config(own.config)
            expected = {key: made.config[key] for key in DEFAULTS[class_name]}
            assert class_settings(class_name, config) == expected, class_name
            assert class_settings(class_name, own.config) == expected, class_name


TRAVELLING = {
    **PUBLISHED,
    "prediction_type": "v_prediction",
    "timestep_spacing": "trailing",
    "rescale_betas_zero_snr": True,
    "use_karras_sigmas": True,
    "lower_order_final": False,
    "original_inference_steps": 40,
    "final_sigmas_type": "sigma_min",
}
