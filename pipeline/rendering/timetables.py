"""Diffusers schedulers, built from our names and set to a step count."""

from collections.abc import Mapping
from functools import cache
from typing import Any

import diffusers

from pipeline.errors import RenderError
from pipeline.schedulers import Scheduler, allowed_steps


def build_scheduler(
    scheduler: Scheduler, config: Mapping[str, Any], num_inference_steps: int, timing: Mapping[str, Any]
) -> Any:
    """The scheduler over a model's own scheduler configuration, as ``from_config`` does it.

    ``timing`` goes to ``set_timesteps``; lists, of the scheduler or in ``timing``, take the place of the step count.
    Its tables are on the CPU: a step reads single numbers of them, which on a GPU would each wait for the device.
    Raises ``RenderError`` as ``require_steps`` does.
    """
    require_steps(scheduler, config, num_inference_steps)
    built = getattr(diffusers, scheduler.kind.class_name).from_config(dict(config), **scheduler.settings)
    lists = {"timesteps": scheduler.timesteps, "sigmas": scheduler.sigmas}
    told = {**timing, **{name: list(numbers) for name, numbers in lists.items() if numbers is not None}}
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
