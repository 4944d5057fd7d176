"""The noise schedulers Darkroom knows, by name: which diffusers class, which settings, how many evaluations.

An evaluation is one call of the denoiser. A scheduler's configuration is the mapping that diffusers keeps in
``scheduler/scheduler_config.json``; keys that are absent take the class's defaults (``scheduler_classes.py``).

A recipe names its scheduler with options behind colons, which override the model's configuration:
``dpmsolver++:karras``, ``euler:trailing``, ``dpmsolver++:timesteps=999/850/736/645/545/455/343/233/124/24``.
"""

from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from functools import lru_cache
from itertools import pairwise

from pipeline.errors import InputError, ModelError
from pipeline.scheduler_classes import Unusable, class_settings, unusable

SPACINGS = ("leading", "trailing", "linspace")
_SIGMA_SCHEDULES = {
    "karras": "use_karras_sigmas",
    "exponential": "use_exponential_sigmas",
    "lu": "use_lu_lambdas",
    "beta": "use_beta_sigmas",
}
"""Karras et al., arXiv:2206.00364; Crowson's k-diffusion; Lu et al., arXiv:2211.01095; Lee et al., arXiv:2407.12173."""


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
    spacing: bool = True
    """Has a ``timestep_spacing``."""
    sigma_schedules: tuple[str, ...] = ()
    lists: tuple[str, ...] = ()
    """What it can be set to in place of a step count: ``timesteps``, ``sigmas``."""
    last_sigma_given: bool = False
    """A list of sigmas ends with that after the last step, mostly 0."""


_SIGMAS = ("karras", "exponential", "beta")

SCHEDULERS: Mapping[str, SchedulerKind] = {
    "ddim": SchedulerKind(class_name="DDIMScheduler"),
    "ddpm": SchedulerKind(class_name="DDPMScheduler", lists=("timesteps",)),
    "euler": SchedulerKind(
        class_name="EulerDiscreteScheduler",
        sigma_schedules=_SIGMAS,
        lists=("timesteps", "sigmas"),
        last_sigma_given=True,
    ),
    "euler_ancestral": SchedulerKind(class_name="EulerAncestralDiscreteScheduler"),
    "dpmsolver++": SchedulerKind(
        class_name="DPMSolverMultistepScheduler",
        settings={"algorithm_type": "dpmsolver++"},
        sigma_schedules=(*_SIGMAS, "lu"),
        lists=("timesteps",),
    ),
    "dpmsolver++_sde": SchedulerKind(
        class_name="DPMSolverMultistepScheduler",
        settings={"algorithm_type": "sde-dpmsolver++"},
        sigma_schedules=(*_SIGMAS, "lu"),
        lists=("timesteps",),
    ),
    "deis": SchedulerKind(
        class_name="DEISMultistepScheduler", settings={"algorithm_type": "deis"}, sigma_schedules=_SIGMAS
    ),
    "unipc": SchedulerKind(class_name="UniPCMultistepScheduler", sigma_schedules=_SIGMAS),
    "pndm": SchedulerKind(class_name="PNDMScheduler", settings={"skip_prk_steps": True}),
    "heun": SchedulerKind(
        class_name="HeunDiscreteScheduler", second_order=True, sigma_schedules=_SIGMAS, lists=("timesteps",)
    ),
    "lms": SchedulerKind(class_name="LMSDiscreteScheduler", sigma_schedules=_SIGMAS),
    "kdpm2": SchedulerKind(class_name="KDPM2DiscreteScheduler", second_order=True, sigma_schedules=_SIGMAS),
    "kdpm2_ancestral": SchedulerKind(
        class_name="KDPM2AncestralDiscreteScheduler", second_order=True, sigma_schedules=_SIGMAS
    ),
    "sasolver": SchedulerKind(
        class_name="SASolverScheduler", settings={"algorithm_type": "data_prediction"}, sigma_schedules=_SIGMAS
    ),
    "lcm": SchedulerKind(class_name="LCMScheduler", spacing=False, lists=("timesteps",)),
    "flow_match_euler": SchedulerKind(
        class_name="FlowMatchEulerDiscreteScheduler",
        flow=True,
        spacing=False,
        sigma_schedules=_SIGMAS,
        lists=("sigmas",),
    ),
    "flow_match_heun": SchedulerKind(
        class_name="FlowMatchHeunDiscreteScheduler", flow=True, second_order=True, spacing=False
    ),
}


@dataclass(frozen=True, slots=True, kw_only=True)
class Scheduler:
    """A scheduler as a recipe names it, understood."""

    text: str
    """Canonical: equal schedulers are equal texts."""
    name: str
    """In ``SCHEDULERS``."""
    settings: Mapping[str, str | bool]
    """Put over the model's own scheduler configuration."""
    timesteps: tuple[int, ...] | None = None
    sigmas: tuple[float, ...] | None = None

    @property
    def kind(self) -> SchedulerKind:
        return SCHEDULERS[self.name]

    @property
    def listed(self) -> str | None:
        """What it has an explicit list of: ``timesteps`` or ``sigmas``, or nothing."""
        return "timesteps" if self.timesteps is not None else "sigmas" if self.sigmas is not None else None

    @property
    def listed_steps(self) -> int | None:
        """Inference steps of an explicit list, None without one."""
        if self.timesteps is not None:
            return len(self.timesteps)
        if self.sigmas is not None:
            return len(self.sigmas) - self.kind.last_sigma_given
        return None


@lru_cache(maxsize=1024)
def scheduler_of(text: str) -> Scheduler:
    """Understand ``name`` or ``name:option:option``.

    Raises:
        InputError: no such scheduler, or an option it does not take, cannot read or has twice.
    """
    name, _, rest = text.strip().partition(":")
    if name not in SCHEDULERS:
        raise InputError("there is no such scheduler", value=text, allowed=", ".join(SCHEDULERS))
    kind, found = SCHEDULERS[name], _Options()
    for option in filter(None, rest.split(":")):
        if not found.take(option, kind):
            raise InputError(f"scheduler {name} has no such option", value=option, allowed=_options_of(kind))
    return Scheduler(
        text=":".join([name, *sorted(found.canonical)]),
        name=name,
        settings={**kind.settings, **found.settings},
        timesteps=found.timesteps,
        sigmas=found.sigmas,
    )


class _Options:
    """What the options of one text say; each kind of option at most once."""

    def __init__(self) -> None:
        self.canonical: list[str] = []
        self.settings: dict[str, str | bool] = {}
        self.timesteps: tuple[int, ...] | None = None
        self.sigmas: tuple[float, ...] | None = None

    def take(self, option: str, kind: SchedulerKind) -> bool:
        """Note an option; False for one that cannot be here."""
        key, _, listed = option.partition("=")
        sigmas_decided = (
            self.timesteps is not None
            or self.sigmas is not None
            or any(name in self.settings for name in _SIGMA_SCHEDULES.values())
        )
        if option in SPACINGS and kind.spacing and "timestep_spacing" not in self.settings:
            self.settings["timestep_spacing"] = option
        elif option in kind.sigma_schedules and not sigmas_decided:
            self.settings |= {_SIGMA_SCHEDULES[name]: name == option for name in kind.sigma_schedules}
        elif key in kind.lists and listed and not sigmas_decided:
            return self._take_list(key, listed, kind)
        else:
            return False
        self.canonical.append(option)
        return True

    def _take_list(self, key: str, listed: str, kind: SchedulerKind) -> bool:
        try:
            numbers = [float(number) for number in listed.split("/")]
        except ValueError:
            return False
        falling = all(a > b for a, b in pairwise(numbers))
        if not falling or numbers[-1] < 0 or len(numbers) <= kind.last_sigma_given:
            return False
        if key == "timesteps":
            if not all(number.is_integer() for number in numbers):
                return False
            self.timesteps = tuple(int(number) for number in numbers)
        else:
            self.sigmas = tuple(numbers)
        self.canonical.append(f"{key}={'/'.join(repr(number).removesuffix('.0') for number in numbers)}")
        self.settings |= {_SIGMA_SCHEDULES[name]: False for name in kind.sigma_schedules}
        return True


def _options_of(kind: SchedulerKind) -> str:
    spacings = list(SPACINGS) if kind.spacing else []
    lists = [f"{name}=a/b/c, falling" for name in kind.lists]
    return "; ".join([*(", ".join(group) for group in (spacings, kind.sigma_schedules) if group), *lists]) or "none"


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
        raise ModelError(
            "this model's scheduler is not supported",
            where="model_index.json: scheduler",
            value=class_name,
            allowed=allowed,
        )
    broken = unusable(class_name, config, constructed_only=True)
    if broken is not None:
        raise ModelError(
            f"diffusers cannot make a {class_name} of this setting",
            where=f"{where}: {broken.key}",
            value=broken.value,
            allowed=broken.allowed,
        )
    own = class_settings(class_name, config)
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
    found = scheduler_of(scheduler)
    if found.kind.second_order:
        return 2 * num_inference_steps - 1
    if found.name == "pndm" and num_inference_steps > 1:
        return num_inference_steps + 1
    return num_inference_steps


def allowed_steps(scheduler: str, config: Mapping[str, object]) -> range:
    """Step counts with which the scheduler works: outside, diffusers raises, or divides by zero and draws NaN."""
    found = scheduler_of(scheduler)
    if found.listed_steps is not None:
        return range(found.listed_steps, found.listed_steps + 1)
    name, settings = found.name, {**class_settings(found.kind.class_name, config), **found.settings}
    trained = _whole(settings, "num_train_timesteps")
    if name == "lcm":
        return range(1, min(trained, _whole(settings, "original_inference_steps")) + 1)
    if name in _HALF_LOG_SNR:
        return range(1, trained - 1)
    if name in _WITHIN_TABLE and settings["timestep_spacing"] == "leading":
        return range(1, trained)  # Stable Diffusion's ``steps_offset`` of 1 would leave the table
    return range(1, trained + 1)


def unusable_setting(scheduler: str, config: Mapping[str, object]) -> Unusable | None:
    """Return the first setting of a model's scheduler configuration with which this scheduler cannot work, or None."""
    found = scheduler_of(scheduler)
    if found.name == "flow_match_heun" and config.get("use_dynamic_shifting"):
        allowed = "false: this scheduler takes no shift that depends on the size"
        return Unusable(key="use_dynamic_shifting", value=config["use_dynamic_shifting"], allowed=allowed)
    return unusable(found.kind.class_name, {**config, **found.settings})


def usable_schedulers(names: Iterable[str], config: Mapping[str, object]) -> tuple[str, ...]:
    """Return the schedulers among ``names`` that can work with a model's scheduler configuration."""
    return tuple(name for name in names if unusable_setting(name, config) is None)


def _whole(settings: Mapping[str, object], key: str) -> int:
    value = settings[key]
    if not isinstance(value, int) or isinstance(value, bool):
        raise ModelError("not a whole number", where=f"scheduler/scheduler_config.json: {key}", value=value)
    return value
