"""Diffusers schedulers, built from our names and set to a step count."""

from collections.abc import Mapping
from importlib.util import find_spec
from typing import Any

import diffusers

from pipeline.errors import RenderError
from pipeline.schedulers import SCHEDULERS, allowed_steps


def build_scheduler(
    name: str, config: Mapping[str, Any], num_inference_steps: int, timing: Mapping[str, Any] | None = None
) -> Any:
    """The scheduler ``name`` of ``SCHEDULERS`` over a model's own scheduler configuration, as ``from_config`` does it.

    Its tables are on the CPU: a step reads single numbers of them, which on a GPU would each wait for the device.
    ``timing`` goes to ``set_timesteps``; sigmas in it take the place of the step count.
    Raises ``RenderError`` for a step count it cannot do and for a module that is not installed.
    """
    kind = SCHEDULERS[name]
    if kind.needs and find_spec(kind.needs) is None:
        raise RenderError(f"scheduler {name} needs {kind.needs}, which is not installed: pip install {kind.needs}")
    allowed = allowed_steps(name, config)
    if num_inference_steps not in allowed:
        raise RenderError(
            f"scheduler {name} does {allowed[0]} to {allowed[-1]} inference steps, not {num_inference_steps}"
        )
    scheduler = getattr(diffusers, kind.class_name).from_config(dict(config), **kind.settings)
    count = {} if "sigmas" in (timing or {}) else {"num_inference_steps": num_inference_steps}
    scheduler.set_timesteps(**count, **(timing or {}), device="cpu")
    if hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(0)  # else the first step searches for its timestep
    return scheduler
