"""Diffusers schedulers, built from our names and set to a step count."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from functools import cache
from typing import Any

import diffusers
from diffusers.configuration_utils import ConfigMixin

from pipeline.errors import RenderError
from pipeline.schedulers import Scheduler, allowed_steps


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSchedulers:
    """Makes the schedulers of one loaded model."""

    config: Mapping[str, Any]
    """The configuration of the scheduler that the stock pipeline has loaded."""
    own: str | None = None
    """The name of that scheduler, None where it has no name of ours."""

    def make(self, scheduler: Scheduler, num_inference_steps: int) -> Any:
        """Return a scheduler that is not set yet: the model's own, else one made ``from_config`` of the model's own.

        Raises ``RenderError`` as ``require_steps`` does.
        """
        require_steps(scheduler, self.config, num_inference_steps)
        config = dict(self.config)
        if scheduler.text == self.own:
            # Keys under this one are left out by from_config, but the pipeline may have set some of them.
            config.pop("_use_default_values", None)
        return getattr(diffusers, scheduler.kind.class_name).from_config(config, **scheduler.settings)


class KeptConfiguration(diffusers.SchedulerMixin, ConfigMixin):  # type: ignore[misc]  # diffusers is not annotated
    """Stands in a stock pipeline for a scheduler that nobody uses, and keeps its configuration for those made of it."""

    def __init__(self, class_name: str, config: Mapping[str, Any]) -> None:
        self.register_to_config(**{**config, "_class_name": class_name})


def build_scheduler(
    schedulers: ModelSchedulers,
    scheduler: Scheduler,
    num_inference_steps: int,
    timing: Callable[[Mapping[str, Any]], Mapping[str, Any]] = lambda config: {},
) -> Any:
    """Return a scheduler set to a step count.

    ``timing`` makes of the scheduler's configuration what goes to ``set_timesteps``; lists, of the scheduler or of
    ``timing``, take the place of the step count.
    Its tables are on the CPU: a step reads single numbers of them, which on a GPU would each wait for the device.
    Raises ``RenderError`` as ``require_steps`` does.
    """
    built = schedulers.make(scheduler, num_inference_steps)
    lists = {"timesteps": scheduler.timesteps, "sigmas": scheduler.sigmas}
    told = {**timing(built.config), **{name: list(numbers) for name, numbers in lists.items() if numbers is not None}}
    if not told.keys() & lists.keys():
        told["num_inference_steps"] = num_inference_steps
    built.set_timesteps(**told, device="cpu")
    if hasattr(built, "set_begin_index"):
        built.set_begin_index(0)  # else the first step searches for its timestep
    if hasattr(built, "get_lms_coefficient"):
        # A quadrature, 3 ms each, of nothing but the tables; deep copies share what is remembered.
        built.get_lms_coefficient = cache(built.get_lms_coefficient)
    return built


def require_steps(scheduler: Scheduler, config: Mapping[str, Any], num_inference_steps: int) -> None:
    """``RenderError`` for a step count the scheduler cannot do."""
    allowed = allowed_steps(scheduler.text, config)
    if num_inference_steps not in allowed:
        raise RenderError(
            f"scheduler {scheduler.text} does {allowed[0]} to {allowed[-1]} inference steps, not {num_inference_steps}"
        )
