"""The scheduler classes of diffusers: the keys each takes with their defaults, and the values each can work with.

Planning must not load diffusers, so its facts stand here; a test compares them with the installed version.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

_BETAS = {
    "num_train_timesteps": 1000,
    "beta_start": 0.0001,
    "beta_end": 0.02,
    "beta_schedule": "linear",
    "trained_betas": None,
    "prediction_type": "epsilon",
}
_NARROW_BETAS = {**_BETAS, "beta_start": 0.00085, "beta_end": 0.012}
_LEADING = {"timestep_spacing": "leading", "steps_offset": 0}
_LINSPACE = {"timestep_spacing": "linspace", "steps_offset": 0}
_SIGMAS = {"use_karras_sigmas": False, "use_exponential_sigmas": False, "use_beta_sigmas": False}
_THRESHOLD = {"thresholding": False, "dynamic_thresholding_ratio": 0.995, "sample_max_value": 1.0}
_CLIP = {"clip_sample": True, "clip_sample_range": 1.0}
_NO_CLIP = {"clip_sample": False, "clip_sample_range": 1.0}
_RESCALE = {"rescale_betas_zero_snr": False}
_FLOW_SIGMAS = {"use_flow_sigmas": False, "flow_shift": 1.0}
_SHIFTING = {"use_dynamic_shifting": False, "time_shift_type": "exponential"}
_MULTISTEP = {**_BETAS, **_THRESHOLD, **_SIGMAS, **_FLOW_SIGMAS, **_LINSPACE, "lower_order_final": True}

DEFAULTS: Mapping[str, Mapping[str, Any]] = {
    "DDIMScheduler": {**_BETAS, **_CLIP, **_THRESHOLD, **_LEADING, **_RESCALE, "set_alpha_to_one": True},
    "DDPMScheduler": {**_BETAS, **_CLIP, **_THRESHOLD, **_LEADING, **_RESCALE, "variance_type": "fixed_small"},
    "EulerDiscreteScheduler": {
        **_BETAS,
        **_SIGMAS,
        **_LINSPACE,
        **_RESCALE,
        "interpolation_type": "linear",
        "sigma_min": None,
        "sigma_max": None,
        "timestep_type": "discrete",
        "final_sigmas_type": "zero",
    },
    "EulerAncestralDiscreteScheduler": {**_BETAS, **_LINSPACE, **_RESCALE},
    "DPMSolverMultistepScheduler": {
        **_MULTISTEP,
        **_SHIFTING,
        **_RESCALE,
        "solver_order": 2,
        "algorithm_type": "dpmsolver++",
        "solver_type": "midpoint",
        "euler_at_final": False,
        "use_lu_lambdas": False,
        "final_sigmas_type": "zero",
        "lambda_min_clipped": float("-inf"),
        "variance_type": None,
    },
    "DEISMultistepScheduler": {
        **_MULTISTEP,
        **_SHIFTING,
        "solver_order": 2,
        "algorithm_type": "deis",
        "solver_type": "logrho",
    },
    "UniPCMultistepScheduler": {
        **_MULTISTEP,
        **_SHIFTING,
        **_RESCALE,
        "solver_order": 2,
        "predict_x0": True,
        "solver_type": "bh2",
        "disable_corrector": [],
        "solver_p": None,
        "final_sigmas_type": "zero",
        "sigma_min": None,
        "sigma_max": None,
        "shift_terminal": None,
    },
    "PNDMScheduler": {**_BETAS, **_LEADING, "skip_prk_steps": False, "set_alpha_to_one": False},
    "HeunDiscreteScheduler": {**_NARROW_BETAS, **_SIGMAS, **_NO_CLIP, **_LINSPACE},
    "LMSDiscreteScheduler": {**_BETAS, **_SIGMAS, **_LINSPACE},
    "KDPM2DiscreteScheduler": {**_NARROW_BETAS, **_SIGMAS, **_LINSPACE},
    "KDPM2AncestralDiscreteScheduler": {**_NARROW_BETAS, **_SIGMAS, **_LINSPACE},
    "SASolverScheduler": {
        **_MULTISTEP,
        "predictor_order": 2,
        "corrector_order": 2,
        "tau_func": None,
        "algorithm_type": "data_prediction",
        "lambda_min_clipped": float("-inf"),
        "variance_type": None,
    },
    "LCMScheduler": {
        **_NARROW_BETAS,
        **_NO_CLIP,
        **_THRESHOLD,
        **_LEADING,
        **_RESCALE,
        "beta_schedule": "scaled_linear",
        "original_inference_steps": 50,
        "set_alpha_to_one": True,
        "timestep_scaling": 10.0,
    },
    "FlowMatchEulerDiscreteScheduler": {
        **_SIGMAS,
        **_SHIFTING,
        "num_train_timesteps": 1000,
        "shift": 1.0,
        "base_shift": 0.5,
        "max_shift": 1.15,
        "base_image_seq_len": 256,
        "max_image_seq_len": 4096,
        "invert_sigmas": False,
        "shift_terminal": None,
        "stochastic_sampling": False,
    },
    "FlowMatchHeunDiscreteScheduler": {"num_train_timesteps": 1000, "shift": 1.0},
}
"""Every key of every class that has a name in ``schedulers.SCHEDULERS``, with the class's default."""

PACKAGES: Mapping[str, str] = dict.fromkeys(("CosineDPMSolverMultistepScheduler", "DPMSolverSDEScheduler"), "torchsde")
"""The package that a scheduler class of diffusers needs beside those of Darkroom."""

_DPM, _DEIS = "DPMSolverMultistepScheduler", "DEISMultistepScheduler"
_SOLVER_TYPES = ("midpoint", "heun", "logrho", "bh1", "bh2")
_CONSTRUCTED_WITH_STEPS = (
    "HeunDiscreteScheduler",
    "LMSDiscreteScheduler",
    "KDPM2DiscreteScheduler",
    "KDPM2AncestralDiscreteScheduler",
)
"""Their constructors set timesteps already."""
_PREDICTIONS = {
    **dict.fromkeys(
        (
            "EulerAncestralDiscreteScheduler",
            "PNDMScheduler",
            "KDPM2DiscreteScheduler",
            "KDPM2AncestralDiscreteScheduler",
        ),
        ("epsilon", "v_prediction"),
    ),
    **dict.fromkeys(
        (_DPM, _DEIS, "UniPCMultistepScheduler", "SASolverScheduler"),
        ("epsilon", "sample", "v_prediction", "flow_prediction"),
    ),
}
"""The types of prediction of classes that do not take exactly epsilon, sample and v_prediction."""


def class_settings(class_name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    """Return every setting of a scheduler of this class made from a configuration, absent keys by default.

    Keys that the configuration lists under ``_use_default_values`` count as absent, as they do in diffusers.
    """
    absent = config.get("_use_default_values") or ()
    defaults = DEFAULTS[class_name]
    settings = {**defaults, **{key: config[key] for key in defaults if key in config and key not in absent}}
    return {**settings, **_replaced(class_name, settings)}


def _replaced(class_name: str, settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return the algorithm where a class takes the name of another class's for its own, as its constructor does."""
    algorithm = settings.get("algorithm_type")
    if class_name == _DEIS and algorithm in ("dpmsolver", "dpmsolver++"):
        return {"algorithm_type": "deis"}
    if class_name == _DPM and algorithm == "deis" and settings["final_sigmas_type"] != "zero":
        return {"algorithm_type": "dpmsolver++"}
    return {}


@dataclass(frozen=True, slots=True, kw_only=True)
class Unusable:
    """A setting with which a scheduler cannot be made or cannot work."""

    key: str
    value: Any
    allowed: str


def unusable(class_name: str, config: Mapping[str, Any], *, constructed_only: bool = False) -> Unusable | None:
    """Return the first setting with which diffusers raises an error, None for a scheduler that works.

    ``constructed_only`` leaves out what is noticed only when images are drawn.
    """
    settings = class_settings(class_name, config)
    checks = _constructed(class_name, settings)
    if not constructed_only:
        checks |= _drawn(class_name)
    for key, (fits, allowed) in checks.items():
        if key in settings and not fits(settings[key]):
            return Unusable(key=key, value=settings[key], allowed=allowed)
    return None


_Check = tuple[Callable[[Any], bool], str]
"""Whether a value can be used, and what can."""


def _constructed(class_name: str, settings: Mapping[str, Any]) -> dict[str, _Check]:
    checks: dict[str, _Check] = {"num_train_timesteps": (_is_count, "a whole number from 1")}
    if settings.get("trained_betas") is None:
        more = ("sigmoid", "laplace") if class_name == "DDPMScheduler" else ()
        checks["beta_schedule"] = _one_of("linear", "scaled_linear", "squaredcos_cap_v2", *more)
        checks |= dict.fromkeys(("beta_start", "beta_end"), (_is_number, "a number"))
    if class_name in (_DPM, _DEIS, "UniPCMultistepScheduler"):
        checks["solver_type"] = _one_of(*_SOLVER_TYPES)
    if class_name == "SASolverScheduler":
        checks["algorithm_type"] = _one_of("data_prediction", "noise_prediction")
    if class_name == "FlowMatchEulerDiscreteScheduler":
        checks["time_shift_type"] = _one_of("exponential", "linear")
    if class_name == "UniPCMultistepScheduler" and not settings["use_flow_sigmas"]:
        checks["shift_terminal"] = (lambda value: value is None, "null, or use_flow_sigmas: true")
    if "shift" in settings:
        checks["shift"] = (_is_number, "a number")
    if class_name in _CONSTRUCTED_WITH_STEPS:
        checks["timestep_spacing"] = _SPACING
    named = [key for key in _SIGMAS if settings.get(key)]
    if len(named) > 1:
        checks[named[1]] = (lambda _: False, f"false beside {named[0]}: at most one schedule of sigmas")
    return checks


def _drawn(class_name: str) -> dict[str, _Check]:
    checks = {
        "prediction_type": _one_of(*_PREDICTIONS.get(class_name, ("epsilon", "sample", "v_prediction"))),
        "final_sigmas_type": _one_of("zero", "sigma_min"),
        "interpolation_type": _one_of("linear", "log_linear"),
        "tau_func": (lambda value: value is None, "null: JSON holds no functions"),
        "lambda_min_clipped": (lambda value: _is_number(value) and value < float("inf"), "a number or -Infinity"),
    }
    if class_name != "LCMScheduler":
        checks["timestep_spacing"] = _SPACING
    if class_name == "UniPCMultistepScheduler":
        checks["use_dynamic_shifting"] = (lambda value: not value, "false: no pipeline gives this scheduler a shift")
    return checks


def _one_of(*values: str) -> _Check:
    return (lambda value: value in values), ", ".join(values)


_SPACING = _one_of("leading", "trailing", "linspace")


def _is_count(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool) and value >= 1


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)
