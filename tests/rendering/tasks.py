"""Render tasks for tests."""

from collections.abc import Iterable
from dataclasses import replace
from hashlib import sha256
from itertools import product
from typing import Any

from pipeline.recipe import Recipe, RenderTask
from pipeline.rendering.engine import Engine
from pipeline.rendering.results import Rendered
from tests.tiny_models import SIZE_PX

_PLAIN = Recipe(
    prompt="a red cat",
    negative_prompt=None,
    seed=1,
    guidance_scale=7.5,
    num_inference_steps=3,
    scheduler="ddim",
    width=SIZE_PX,
    height=SIZE_PX,
)


def task(**changes: Any) -> RenderTask:
    """A plain recipe with changes, under an id of its own."""
    recipe = replace(_PLAIN, **changes)
    return RenderTask(task_id=sha256(repr(recipe).encode()).hexdigest()[:32], recipe=recipe)


def mixed_tasks() -> list[RenderTask]:
    """Thirty tasks of which no two neighbours agree in guidance, steps, scheduler and prompt."""
    schedulers = ("euler_ancestral", "dpmsolver++", "pndm", "heun", "ddpm")
    settings = product((1.0, 3.0, 7.5), (2, 5))
    return [
        task(
            prompt=f"cat {index % 7}",
            negative_prompt="ugly" if index % 4 == 0 and guidance > 1 else None,
            seed=index,
            guidance_scale=guidance,
            num_inference_steps=steps,
            scheduler=scheduler,
        )
        for index, (scheduler, (guidance, steps)) in enumerate(product(schedulers, settings))
    ]


def tasks_of_turning_schedulers() -> list[RenderTask]:
    """Sixteen tasks whose schedulers take turns, each with other guidance and steps; some schedulers draw noise."""
    schedulers = ("ddim", "euler_ancestral", "ddpm", "dpmsolver++", "lcm", "unipc", "pndm")
    return [
        task(
            prompt=f"cat {index % 3}",
            seed=index,
            guidance_scale=(1.0, 7.5, 3.0, 1.0, 5.0)[index % 5],
            num_inference_steps=(2, 5, 3, 4)[index % 4],
            scheduler=schedulers[index % len(schedulers)],
        )
        for index in range(16)
    ]


def pixels_by_id(engine: Engine, tasks: Iterable[RenderTask]) -> dict[str, bytes]:
    """Render everything; a failure is an error of the test."""
    pictures = {}
    for outcome in engine.render(tasks):
        assert isinstance(outcome, Rendered), outcome
        pictures[outcome.task.task_id] = outcome.pixels.tobytes()
    return pictures
