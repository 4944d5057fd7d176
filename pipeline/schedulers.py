"""The noise schedulers Darkroom knows, by name: which diffusers class, which settings, how many evaluations.

An evaluation is one call of the denoiser. A scheduler's configuration is the mapping that diffusers keeps in
``scheduler/scheduler_config.json``; keys that are absent take the class's defaults.
"""

from collections.abc import Mapping
from dataclasses import dataclass, field

from pipeline.errors import ModelError


@dataclass(frozen=True, slots=True, kw_only=True)
class SchedulerKind:
    """One diffusers class with the settings that tell it from its siblings."""

    class_name: str
    settings: Mapping[str, str | bool] = field(default_factory=dict)
    """Put over the model's own scheduler configuration."""
    second_order: bool = False
    """Every step but the last evaluates the denoiser twice."""
    flow: bool = False
    """Only for models trained by flow matching."""
    takes_sigmas: bool = False
    """Can be set to a list of sigmas."""
    needs: str | None = None
    """A module diffusers asks for beyond its own requirements."""


SCHEDULERS: Mapping[str, SchedulerKind] = {
    "ddim": SchedulerKind(class_name="DDIMScheduler"),
    "ddpm": SchedulerKind(class_name="DDPMScheduler"),
    "euler": SchedulerKind(class_name="EulerDiscreteScheduler"),
    "euler_ancestral": SchedulerKind(class_name="EulerAncestralDiscreteScheduler"),
    "dpmsolver++": SchedulerKind(class_name="DPMSolverMultistepScheduler", settings={"algorithm_type": "dpmsolver++"}),
    "dpmsolver++_sde": SchedulerKind(
        class_name="DPMSolverMultistepScheduler", settings={"algorithm_type": "sde-dpmsolver++"}
    ),
    "deis": SchedulerKind(class_name="DEISMultistepScheduler", settings={"algorithm_type": "deis"}),
    "unipc": SchedulerKind(class_name="UniPCMultistepScheduler"),
    "pndm": SchedulerKind(class_name="PNDMScheduler", settings={"skip_prk_steps": True}),
    "heun": SchedulerKind(class_name="HeunDiscreteScheduler", second_order=True),
    "lms": SchedulerKind(class_name="LMSDiscreteScheduler", needs="scipy"),
    "kdpm2": SchedulerKind(class_name="KDPM2DiscreteScheduler", second_order=True),
    "kdpm2_ancestral": SchedulerKind(class_name="KDPM2AncestralDiscreteScheduler", second_order=True),
    "sasolver": SchedulerKind(class_name="SASolverScheduler", settings={"algorithm_type": "data_prediction"}),
    "lcm": SchedulerKind(class_name="LCMScheduler"),
    "flow_match_euler": SchedulerKind(class_name="FlowMatchEulerDiscreteScheduler", flow=True, takes_sigmas=True),
    "flow_match_heun": SchedulerKind(class_name="FlowMatchHeunDiscreteScheduler", flow=True, second_order=True),
}

_HALF_LOG_SNR = ("dpmsolver++", "dpmsolver++_sde", "deis", "unipc", "sasolver")
"""Solvers in lambda = log(alpha / sigma): two equal timesteps in a row divide by zero."""
_WITHIN_TABLE = ("ddim", "ddpm", "pndm", "lms")
"""They need distinct timesteps of the trained ones; other solvers interpolate."""


def name_of_class(class_name: str, config: Mapping[str, object]) -> str:
    """Our name of a model's own scheduler, from its ``scheduler_config.json``.

    Raises ``ModelError`` for a class, or a variant of a class, that has no name in ``SCHEDULERS``.
    """
    where = "scheduler/scheduler_config.json"
    named = {name: kind for name, kind in SCHEDULERS.items() if kind.class_name == class_name}
    if not named:
        allowed = ", ".join(dict.fromkeys(kind.class_name for kind in SCHEDULERS.values()))
        raise ModelError("this model's scheduler is not supported", where=where, value=class_name, allowed=allowed)
    own = {**next(iter(named.values())).settings, **config}
    for name, kind in named.items():
        if all(own[key] == value for key, value in kind.settings.items()):
            return name
    key = next(iter(next(iter(named.values())).settings))
    raise ModelError(
        f"this variant of {class_name} is not supported",
        where=f"{where}: {key}",
        value=own[key],
        allowed=", ".join(str(kind.settings[key]) for kind in named.values()),
    )


def evaluations(scheduler: str, num_inference_steps: int) -> int:
    """How often a stock diffusers pipeline calls the denoiser, for a step count that ``allowed_steps`` holds.

    Heun and KDPM2 (Karras et al., arXiv:2206.00364) evaluate twice in every step but the last. PNDM without
    Runge-Kutta steps (Liu et al., arXiv:2202.09778), as Stable Diffusion has it, repeats one evaluation.
    """
    if SCHEDULERS[scheduler].second_order:
        return 2 * num_inference_steps - 1
    if scheduler == "pndm" and num_inference_steps > 1:
        return num_inference_steps + 1
    return num_inference_steps


def allowed_steps(scheduler: str, config: Mapping[str, object]) -> range:
    """Step counts with which the scheduler works: outside, diffusers raises, or divides by zero and draws NaN."""
    trained = _whole(config, "num_train_timesteps", 1000)
    if scheduler == "lcm":
        return range(1, min(trained, _whole(config, "original_inference_steps", 50)) + 1)
    if scheduler in _HALF_LOG_SNR:
        return range(1, trained - 1)
    if scheduler in _WITHIN_TABLE and config.get("timestep_spacing", "leading") == "leading":
        return range(1, trained)  # Stable Diffusion's ``steps_offset`` of 1 would leave the table
    return range(1, trained + 1)


def _whole(config: Mapping[str, object], key: str, default: int) -> int:
    value = config.get(key, default)
    if not isinstance(value, int):
        raise ModelError("not a whole number", where=f"scheduler/scheduler_config.json: {key}", value=value)
    return value
