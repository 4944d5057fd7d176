"""The pure scheduler table against the real diffusers schedulers."""

import subprocess
import sys
from collections.abc import Mapping
from typing import Any

import diffusers
import pytest
import torch

from pipeline.errors import InputError, ModelError
from pipeline.rendering.timetables import ModelSchedulers, build_scheduler
from pipeline.schedulers import SCHEDULERS, allowed_steps, evaluations, name_of_class, scheduler_of

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
