"""The pure scheduler table against the real diffusers schedulers."""

import inspect
import math
import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import diffusers
import pytest
import torch
from diffusers.utils import DummyObject

from pipeline.errors import InputError, ModelError
from pipeline.model.family import FAMILIES
from pipeline.rendering.timetables import ModelSchedulers, build_scheduler
from pipeline.scheduler_classes import DEFAULTS, PACKAGES
from pipeline.schedulers import (
    SCHEDULERS,
    allowed_steps,
    evaluations,
    name_of_class,
    scheduler_of,
    unusable_setting,
)

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
DIFFUSION = [name for name, kind in SCHEDULERS.items() if not kind.flow]
WORKING = [*DIFFUSION, *(name for name, kind in SCHEDULERS.items() if kind.flow)]


def scheduler(name: str, config: Mapping[str, Any]) -> Any:
    kind = SCHEDULERS[name]
    cls = getattr(diffusers, kind.class_name)
    known = cls._get_init_keys(cls)
    return cls.from_config({key: value for key, value in config.items() if key in known}, **kind.settings)


@pytest.mark.parametrize("name", WORKING)
def test_evaluations_are_the_timesteps_of_diffusers(name: str) -> None:
    real = scheduler(name, BETAS)
    for steps in range(1, 61):
        if steps in allowed_steps(name, BETAS):
            real.set_timesteps(steps)
            assert len(real.timesteps) == evaluations(name, steps), steps


@pytest.mark.parametrize("spacing", ["leading", "trailing", "linspace"])
@pytest.mark.parametrize("name", WORKING)
def test_evaluations_do_not_depend_on_the_spacing(name: str, spacing: str) -> None:
    config = {**BETAS, "timestep_spacing": spacing}
    real = scheduler(name, config)
    for steps in (1, 2, 3, 7, 30, 49):
        real.set_timesteps(steps)
        assert len(real.timesteps) == evaluations(name, steps), steps


def test_steps_beyond_the_distilled_ones_are_not_allowed() -> None:
    with pytest.raises(ValueError, match="smaller than"):
        scheduler("lcm", BETAS).set_timesteps(allowed_steps("lcm", BETAS)[-1] + 1)


@pytest.mark.parametrize("spacing", ["leading", "linspace"])
@pytest.mark.parametrize("name", DIFFUSION)
def test_the_largest_allowed_step_count_works(name: str, spacing: str) -> None:
    config = {**BETAS, "num_train_timesteps": 60, "timestep_spacing": spacing}
    real = scheduler(name, config)
    real.set_timesteps(allowed_steps(name, config)[-1])
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(1, 4, 2, 2, generator=generator) * real.init_noise_sigma
    for timestep in real.timesteps:
        real.scale_model_input(latent, timestep)
        latent = real.step(torch.randn(1, 4, 2, 2, generator=generator), timestep, latent, return_dict=False)[0]
    assert latent.isfinite().all()


@pytest.mark.parametrize("name", WORKING)
def test_a_scheduler_is_named_by_its_own_configuration(name: str) -> None:
    real = scheduler(name, BETAS)
    assert name_of_class(type(real).__name__, real.config) == name


def test_absent_keys_are_the_class_defaults() -> None:
    assert name_of_class("DPMSolverMultistepScheduler", {}) == "dpmsolver++"
    assert name_of_class("DPMSolverMultistepScheduler", {"algorithm_type": "sde-dpmsolver++"}) == "dpmsolver++_sde"


@pytest.mark.parametrize("class_name", DEFAULTS)
def test_defaults_of_a_class_are_those_of_diffusers(class_name: str) -> None:
    parameters = inspect.signature(getattr(diffusers, class_name).__init__).parameters
    wanted = {name: parameter.default for name, parameter in parameters.items() if name != "self"}
    assert DEFAULTS[class_name] == {name: [] if value == () else value for name, value in wanted.items()}


def test_every_named_class_has_defaults_and_others_their_package() -> None:
    assert DEFAULTS.keys() == {kind.class_name for kind in SCHEDULERS.values()}
    classes = {name: getattr(diffusers, name) for name in dir(diffusers) if name.endswith("Scheduler")}
    absent = {name for name, found in classes.items() if isinstance(found, DummyObject)}
    assert absent <= PACKAGES.keys() <= classes.keys()


TRIED: Mapping[str, tuple[Any, ...]] = {
    "beta_schedule": ("linear", "scaled_linear", "squaredcos_cap_v2", "sigmoid", "laplace", "cosine", None),
    "prediction_type": ("epsilon", "sample", "v_prediction", "flow_prediction", "x", None),
    "timestep_spacing": ("leading", "trailing", "linspace", "x", None),
    "algorithm_type": ("dpmsolver++", "deis", "data_prediction", "noise_prediction", "x", None),
    "solver_type": ("midpoint", "heun", "logrho", "bh1", "bh2", "x", None),
    "final_sigmas_type": ("zero", "sigma_min", "x", None),
    "interpolation_type": ("linear", "log_linear", "x", None),
    "time_shift_type": ("exponential", "linear", "x", None),
    "num_train_timesteps": (100, 100.0, "100", True, 0, None),
    "beta_start": (0.001, "0.001", None),
    "shift": (2.0, 3, "3", None),
    "lambda_min_clipped": (-math.inf, -5.1, math.inf, math.nan, None),
    "trained_betas": (None, [0.001] * 100),
    "shift_terminal": (None, 0.1),
    "tau_func": (None, "tau"),
    "use_karras_sigmas": (True,),
    "use_dynamic_shifting": (True,),
}
"""Values of settings, some of which no scheduler works with."""


@pytest.mark.parametrize("name", WORKING)
@pytest.mark.filterwarnings("ignore:.*")  # diffusers' own, of values that it deprecates
def test_settings_that_cannot_be_used_are_those_of_diffusers(name: str) -> None:
    """Make the scheduler, set it to a few steps and step it: an error, or none, as ``unusable_setting`` says."""
    kind = SCHEDULERS[name]
    plain = {"num_train_timesteps": 100, "final_sigmas_type": "sigma_min"}
    for key in TRIED.keys() & DEFAULTS[kind.class_name].keys() - kind.settings.keys():
        for value in TRIED[key]:
            config = {**plain, key: value}
            if key == "use_dynamic_shifting" and kind.flow:
                continue  # the pipelines give these a shift
            assert (unusable_setting(name, config) is None) == works(name, config), (key, value)


def test_heun_by_flow_matching_takes_no_shift_by_size() -> None:
    """The pipeline of Stable Diffusion 3 gives one wherever the configuration asks for it."""
    config = {"shift": 3.0, "use_dynamic_shifting": True}
    found = unusable_setting("flow_match_heun", config)
    assert found is not None
    assert found.key == "use_dynamic_shifting"
    assert unusable_setting("flow_match_euler", config) is None
    with pytest.raises(TypeError, match="mu"):
        diffusers.FlowMatchHeunDiscreteScheduler.from_config(config).set_timesteps(4, mu=0.5)


def test_pipelines_that_give_a_shift_by_size_take_no_heun() -> None:
    """Stable Diffusion 3 gives one only where the configuration asks for it."""
    for name, family in FAMILIES.items():
        if family.flow and name != "StableDiffusion3Pipeline":
            source = inspect.getsource(getattr(diffusers, name).__call__)
            assert ("mu=mu" in source or '"mu": mu' in source) == ("flow_match_heun" not in family.schedulers()), name


def works(name: str, config: Mapping[str, Any]) -> bool:
    try:
        step_through(getattr(diffusers, SCHEDULERS[name].class_name).from_config(config, **SCHEDULERS[name].settings))
    except Exception:  # noqa: BLE001  # diffusers raises whatever comes of it
        return False
    return True


def step_through(real: Any) -> None:
    real.set_timesteps(4)
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(1, 4, 2, 2, generator=generator)
    for timestep in real.timesteps:
        if hasattr(real, "scale_model_input"):
            real.scale_model_input(latent, timestep)
        latent = real.step(torch.randn(1, 4, 2, 2, generator=generator), timestep, latent, return_dict=False)[0]


def test_unknown_schedulers_are_refused() -> None:
    with pytest.raises(ModelError, match=r"(?s)RePaintScheduler.*DDIMScheduler"):
        name_of_class("RePaintScheduler", {})
    with pytest.raises(ModelError, match=r"(?s)algorithm_type.*'dpmsolver'.*sde-dpmsolver"):
        name_of_class("DPMSolverMultistepScheduler", {"algorithm_type": "dpmsolver"})
    for config in ({"skip_prk_steps": False}, {}):  # false is the class's default
        with pytest.raises(ModelError, match=r"(?s)skip_prk_steps.*False.*True"):
            name_of_class("PNDMScheduler", config)


OPTIONS = [
    ":".join([name, *option])
    for name, kind in SCHEDULERS.items()
    if name in WORKING
    for option in [
        *([spacing] for spacing in ("leading", "trailing", "linspace") if kind.spacing),
        *([schedule] for schedule in kind.sigma_schedules),
        *([schedule, "trailing"] for schedule in kind.sigma_schedules if kind.spacing),
        *(["timesteps=999/600/300/19"] for listed in kind.lists if listed == "timesteps"),
        *(["sigmas=1/0.6/0.3/0.1"] for listed in kind.lists if listed == "sigmas" and kind.flow),
        *(["sigmas=14.6/6/3.5/0.1/0"] for listed in kind.lists if listed == "sigmas" and not kind.flow),
    ]
]


@pytest.mark.parametrize("text", OPTIONS)
def test_options_reach_the_real_scheduler(text: str) -> None:
    found = scheduler_of(text)
    steps = found.listed_steps or 4
    config = {} if found.kind.flow else BETAS
    built = build_scheduler(ModelSchedulers(config=config), found, steps)
    assert len(built.timesteps) == evaluations(text, steps)
    for key, value in found.settings.items():
        assert built.config[key] == value
    if found.timesteps is not None:
        assert dict.fromkeys(built.timesteps.tolist()) == dict.fromkeys(map(float, found.timesteps))
    if found.sigmas is not None:
        assert built.sigmas[:4].tolist() == pytest.approx(found.sigmas[:4])
    plain = build_scheduler(ModelSchedulers(config=config), scheduler_of(found.name), steps)
    differs = [*built.timesteps.tolist(), *getattr(built, "sigmas", [])] != [
        *plain.timesteps.tolist(),
        *getattr(plain, "sigmas", []),
    ]
    assert differs or text.endswith(("leading", "linspace"))


def test_equal_schedulers_are_equal_texts() -> None:
    assert scheduler_of(" dpmsolver++:trailing:karras").text == "dpmsolver++:karras:trailing"
    assert scheduler_of("euler:sigmas=14.60/1.0/0").text == scheduler_of("euler:sigmas=14.6/1/0.0").text
    assert scheduler_of("ddpm:timesteps=900/5").listed_steps == 2
    assert scheduler_of("euler:sigmas=9/5/0").listed_steps == 2
    assert allowed_steps("heun:timesteps=9/5/1", BETAS) == range(3, 4)


@pytest.mark.parametrize(
    ("text", "says"),
    [
        ("magic", "no such scheduler"),
        ("", "no such scheduler"),
        ("ddim:karras", "ddim has no such option"),
        ("lcm:trailing", "no such option"),
        ("euler:karras:exponential", "no such option"),
        ("euler:trailing:leading", "no such option"),
        ("euler:karras:timesteps=9/5", "no such option"),
        ("euler:timesteps=5/9", "no such option"),
        ("euler:timesteps=9.5/1", "no such option"),
        ("euler:timesteps=", "no such option"),
        ("euler:sigmas=3", "no such option"),
        ("euler:sigmas=3/x", "no such option"),
    ],
)
def test_schedulers_that_are_none(text: str, says: str) -> None:
    with pytest.raises(InputError, match=says):
        scheduler_of(text)


def test_the_table_loads_no_torch() -> None:
    code = "import sys, pipeline.schedulers; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0


@pytest.mark.parametrize("name", [name for name, kind in SCHEDULERS.items() if kind.sigma_schedules])
def test_a_named_schedule_of_sigmas_replaces_the_models_own(name: str) -> None:
    for own, wanted in (("use_beta_sigmas", "karras"), ("use_karras_sigmas", "beta")):
        config = {**BETAS, own: True}
        plain = build_scheduler(ModelSchedulers(config=BETAS), scheduler_of(f"{name}:{wanted}"), 5)
        built = build_scheduler(ModelSchedulers(config=config), scheduler_of(f"{name}:{wanted}"), 5)
        assert torch.equal(built.sigmas, plain.sigmas)
