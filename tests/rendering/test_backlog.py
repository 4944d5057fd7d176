"""The order in which waiting tasks get their rows."""

from pipeline.model.family import FAMILIES
from pipeline.rendering.backlog import MOST_PASSED, Backlog, Pending
from tests.rendering.tasks import task

GUIDED, UNGUIDED = {"guidance_scale": 5.0}, {"guidance_scale": 1.0}


def seed(pending: Pending | None) -> int | None:
    return None if pending is None else pending.task.recipe.seed


def test_an_odd_row_takes_the_next_unguided_task() -> None:
    backlog = Backlog(FAMILIES["StableDiffusionPipeline"])
    backlog.add([task(seed=1, **GUIDED), task(seed=2, **GUIDED), task(seed=3, **UNGUIDED)], grouped=True)
    assert seed(backlog.take(1, drained=True)) == 3
    assert seed(backlog.take(1, drained=False)) is None
    assert seed(backlog.take(2, drained=False)) == 1


def test_no_task_passes_out_of_its_group() -> None:
    backlog = Backlog(FAMILIES["StableDiffusionPipeline"])
    backlog.add([task(seed=1, **GUIDED)], grouped=True)
    backlog.add([task(seed=2, **UNGUIDED)], grouped=True)
    assert backlog.take(1, drained=True) is None


def test_a_guided_task_does_not_starve() -> None:
    backlog = Backlog(FAMILIES["StableDiffusionPipeline"])
    backlog.add([task(seed=0, **GUIDED), *(task(seed=n, **UNGUIDED) for n in range(1, 40))], grouped=False)
    passed = range(1, MOST_PASSED + 1)
    assert [seed(backlog.take(1, drained=True)) for _ in range(MOST_PASSED + 2)] == [*passed, None, None]
    assert [seed(backlog.take(2, drained=False)) for _ in range(2)] == [0, MOST_PASSED + 1]


def test_another_size_waits_until_the_batch_has_drained() -> None:
    backlog = Backlog(FAMILIES["StableDiffusionPipeline"])
    backlog.add([task(seed=1), task(seed=2, width=64)], grouped=False)
    assert seed(backlog.take(4, drained=True)) == 1
    assert backlog.changes_key
    assert backlog.take(4, drained=False) is None
    assert seed(backlog.take(4, drained=True)) == 2
    assert backlog.take(4, drained=True) is None


def test_the_last_tasks_start_longest_first() -> None:
    backlog = Backlog(FAMILIES["StableDiffusionPipeline"])
    short, long, twice = {"num_inference_steps": 5}, {"num_inference_steps": 9}, {"num_inference_steps": 8}
    backlog.add([task(seed=1, **short), task(seed=2, **long)], grouped=True)
    backlog.add([task(seed=3, **short), task(seed=4, **long), task(seed=5, **twice, scheduler="heun")], grouped=True)
    assert [seed(backlog.take(4, drained=True)) for _ in range(5)] == [1, 2, 5, 4, 3]


def test_an_unguided_task_of_more_steps_starts_before_a_guided_one_of_fewer() -> None:
    backlog = Backlog(FAMILIES["StableDiffusionPipeline"])
    backlog.add(
        [task(seed=1, num_inference_steps=13, **GUIDED), task(seed=2, num_inference_steps=25, **UNGUIDED)], grouped=True
    )
    assert [seed(backlog.take(4, drained=True)) for _ in range(2)] == [2, 1]


def test_tasks_are_prepared_in_the_order_in_which_they_start() -> None:
    backlog = Backlog(FAMILIES["StableDiffusionPipeline"])
    backlog.add([task(seed=n, num_inference_steps=1 + n % 7) for n in range(20)], grouped=True)
    backlog.add([task(seed=20)], grouped=True)
    ahead = [seed(pending) for pending in backlog]
    assert ahead == list(range(21)), "while others wait behind it, a group goes first in, first out"
    backlog = Backlog(FAMILIES["StableDiffusionPipeline"])
    backlog.add([task(seed=n, num_inference_steps=1 + n % 7) for n in range(20)], grouped=True)
    ahead = [seed(pending) for pending in backlog]
    assert ahead == [seed(backlog.take(2, drained=True)) for _ in range(20)]
    assert ahead != list(range(20))
    assert list(backlog) == []
