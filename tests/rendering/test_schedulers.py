"""The pure scheduler table against the real diffusers schedulers."""

import subprocess
import sys
from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import diffusers
import pytest
import torch

from pipeline.errors import ModelError
from pipeline.schedulers import SCHEDULERS, allowed_steps, evaluations, name_of_class

BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear", "steps_offset": 1}
DIFFUSION = [name for name, kind in SCHEDULERS.items() if not kind.flow and (not kind.needs or find_spec(kind.needs))]
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
    with pytest.raises(ModelError, match=r"(?s)skip_prk_steps.*False.*True"):
        name_of_class("PNDMScheduler", {"skip_prk_steps": False})


def test_the_table_loads_no_torch() -> None:
    code = "import sys, pipeline.schedulers; sys.exit('torch' in sys.modules or 'diffusers' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], check=False).returncode == 0
