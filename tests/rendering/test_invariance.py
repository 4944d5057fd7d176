"""A picture's bytes depend on its recipe alone, not on order, neighbours or how the tasks were handed in."""

from dataclasses import replace
from random import Random

import pytest

from pipeline.recipe import RenderTask
from pipeline.rendering.engine import Engine
from pipeline.rendering.loading import LoadedModel, load_model
from pipeline.rendering.results import Rendered
from pipeline.rendering.timetables import ModelSchedulers
from tests.rendering.tasks import mixed_tasks, pixels_by_id, task, tasks_of_turning_schedulers
from tests.tiny_models import SIZE_PX, pixart, save

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
            engine.add(shards.pop(0), grouped=True)
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


@pytest.fixture(scope="module")
def clipping_model(tmp_path_factory: pytest.TempPathFactory) -> LoadedModel:
    """A model whose scheduler configuration has no ``clip_sample``: DDIM and DDPM clip by default."""
    folder = save(pixart(sigma=True), tmp_path_factory.mktemp("clipping"))
    return load_model(folder, dtype="float32", device="cpu")


def with_setting(model: LoadedModel, **settings: bool) -> LoadedModel:
    schedulers = ModelSchedulers(config={**model.adapter.schedulers.config, **settings})
    return replace(model, adapter=replace(model.adapter, schedulers=schedulers))


def stepped_alone(model: LoadedModel, tasks: list[RenderTask]) -> set[str]:
    """The schedulers of the tasks that are no tables of numbers."""
    asked = {one.recipe.scheduler for one in tasks}
    return {name for name in asked if model.adapter.trajectory(name, 4, SIZE_PX, SIZE_PX).alone is not None}


@pytest.mark.parametrize(
    ("settings", "alone"),
    [({}, {"ddim", "ddpm"}), ({"thresholding": True}, {"ddim", "ddpm", "dpmsolver++", "lcm", "unipc"})],
    ids=["clip_sample", "thresholding"],
)
def test_schedulers_that_clip_do_not_matter_to_others_nor_others_to_them(
    settings: dict[str, bool], alone: set[str], clipping_model: LoadedModel
) -> None:
    """Slots that step a scheduler of their own share a batch, and rows in turn, with slots of the common product."""
    model, tasks = with_setting(clipping_model, **settings), tasks_of_turning_schedulers()
    assert stepped_alone(model, tasks) == alone
    together = pixels_by_id(Engine(model, ROWS), tasks)
    assert pixels_by_id(Engine(model, ROWS), tasks[::-1]) == together
    for one in tasks:
        assert pixels_by_id(Engine(model, ROWS), [one])[one.task_id] == together[one.task_id], one.recipe.scheduler


def test_clipping_changes_images(clipping_model: LoadedModel) -> None:
    """Were it not so, the test above would compare two ways to do the same."""
    clipping = [one for one in tasks_of_turning_schedulers() if one.recipe.scheduler in ("ddim", "ddpm")]
    clipped, free = (
        pixels_by_id(Engine(model, ROWS), clipping)
        for model in (clipping_model, with_setting(clipping_model, clip_sample=False))
    )
    assert all(clipped[one.task_id] != free[one.task_id] for one in clipping)
