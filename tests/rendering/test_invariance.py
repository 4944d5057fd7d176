"""A picture's bytes depend on its recipe alone, not on order, neighbours or how the tasks were handed in."""

from random import Random

import pytest

from pipeline.recipe import RenderTask
from pipeline.rendering.engine import Engine
from pipeline.rendering.loading import LoadedModel
from pipeline.rendering.results import Rendered
from tests.rendering.tasks import mixed_tasks, pixels_by_id, task
from tests.tiny_models import SIZE_PX

ROWS = 6


@pytest.fixture(scope="module")
def reference(epsilon_model: LoadedModel) -> dict[str, bytes]:
    return pixels_by_id(Engine(epsilon_model, ROWS), mixed_tasks())


def test_order_does_not_matter(epsilon_model: LoadedModel, reference: dict[str, bytes]) -> None:
    for seed in (1, 2):
        shuffled = Random(seed).sample(mixed_tasks(), 30)
        assert pixels_by_id(Engine(epsilon_model, ROWS), shuffled) == reference


def test_a_task_alone_is_the_same_picture(epsilon_model: LoadedModel, reference: dict[str, bytes]) -> None:
    for alone in mixed_tasks()[::4]:
        pictures = pixels_by_id(Engine(epsilon_model, ROWS), [alone])
        assert pictures[alone.task_id] == reference[alone.task_id]


def test_strangers_do_not_matter(epsilon_model: LoadedModel, reference: dict[str, bytes]) -> None:
    strangers = [task(prompt=f"stranger {n}", seed=n, num_inference_steps=1 + n % 4) for n in range(30)]
    together = Random(3).sample([*mixed_tasks(), *strangers], 60)
    pictures = pixels_by_id(Engine(epsilon_model, ROWS), together)
    assert {key: pictures[key] for key in reference} == reference


def test_other_sizes_between_do_not_matter(epsilon_model: LoadedModel, reference: dict[str, bytes]) -> None:
    wide = [task(width=2 * SIZE_PX, seed=n) for n in range(3)]
    tall = [task(height=2 * SIZE_PX, seed=n) for n in range(3)]
    mixed = mixed_tasks()
    pictures = pixels_by_id(Engine(epsilon_model, ROWS), [*mixed[:7], *wide, *mixed[7:], *tall])
    assert {key: pictures[key] for key in reference} == reference


def test_shards_do_not_matter(epsilon_model: LoadedModel, reference: dict[str, bytes]) -> None:
    engine, pictures = Engine(epsilon_model, ROWS), {}
    shards = [mixed_tasks()[start : start + 7] for start in range(0, 30, 7)]
    while shards or engine.busy:
        if shards:
            engine.add(shards.pop(0), flush=True)
        for outcome in [*engine.step(), *engine.step()]:
            assert isinstance(outcome, Rendered)
            pictures[outcome.task.task_id] = outcome.pixels.tobytes()
    assert pictures == reference


def test_the_seed_decides(epsilon_model: LoadedModel) -> None:
    def picture(own: RenderTask) -> bytes:
        return pixels_by_id(Engine(epsilon_model, ROWS), [own])[own.task_id]

    for scheduler in ("euler", "euler_ancestral"):
        one, other = task(seed=5, scheduler=scheduler), task(seed=6, scheduler=scheduler)
        assert picture(one) == picture(one) != picture(other)
