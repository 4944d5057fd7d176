"""What the engine owes its caller beside the pixels: full batches, images without delay, honest numbers."""

import gc
import weakref
from collections.abc import Callable
from pathlib import Path
from random import Random
from typing import Any

import pytest

from pipeline.recipe import RenderTask
from pipeline.rendering.engine import Engine
from pipeline.rendering.loading import LoadedModel, load_model
from pipeline.rendering.results import Rendered
from pipeline.schedulers import evaluations
from tests import tiny_models
from tests.rendering.tasks import mixed_tasks, pixels_by_id, task
from tests.tiny_models import SIZE_PX, TEXT_WINDOW


def expected_evaluations(tasks: list[RenderTask]) -> int:
    return sum(
        evaluations(own.recipe.scheduler, own.recipe.num_inference_steps) * (1 + ((own.recipe.guidance_scale or 0) > 1))
        for own in tasks
    )


def test_one_row_is_too_few_for_guidance(epsilon_model: LoadedModel) -> None:
    with pytest.raises(ValueError, match="at least 2 rows, not 1"):
        Engine(epsilon_model, rows=1)


def test_an_idle_engine_has_nothing_to_say(epsilon_model: LoadedModel) -> None:
    engine = Engine(epsilon_model, rows=4)
    engine.add([], grouped=True)
    assert not engine.busy
    assert engine.step() == []


def test_mixed_work_keeps_the_rows_full(epsilon_model: LoadedModel) -> None:
    engine, tasks = Engine(epsilon_model, rows=6), mixed_tasks()
    outcomes = list(engine.render(tasks))
    counters = engine.counters
    assert sorted(o.task.task_id for o in outcomes) == sorted(t.task_id for t in tasks)
    assert counters.evaluations == expected_evaluations(tasks)
    assert counters.evaluations + counters.padded_rows == 6 * counters.denoiser_calls
    assert counters.evaluations / (6 * counters.denoiser_calls) > 0.9


def test_rows_may_depend_on_the_size(epsilon_model: LoadedModel) -> None:
    tasks = [task(seed=number, width=width * SIZE_PX) for number in range(3) for width in (1, 2)]
    engine = Engine(epsilon_model, lambda width, height: 8 * SIZE_PX**2 // (width * height))
    outcomes = [outcome for outcome in engine.render(tasks) if isinstance(outcome, Rendered)]
    assert sorted((o.task.recipe.width // SIZE_PX, o.rows) for o in outcomes) == [(1, 8)] * 3 + [(2, 4)] * 3
    small = tasks[::2]
    alone = pixels_by_id(Engine(epsilon_model, rows=8), small)
    assert {o.task.task_id: o.pixels.tobytes() for o in outcomes if o.rows == 8} == alone


def test_every_second_belongs_to_an_image(epsilon_model: LoadedModel) -> None:
    engine = Engine(epsilon_model, rows=6)
    outcomes = [o for o in engine.render(mixed_tasks()) if isinstance(o, Rendered)]
    counters = engine.counters
    spent = counters.encode_s + counters.denoise_s + counters.decode_s
    assert min(counters.encode_s, counters.denoise_s, counters.decode_s) > 0
    assert sum(o.render_s for o in outcomes) == pytest.approx(spent)


def test_a_picture_says_how_it_was_made(epsilon_model: LoadedModel) -> None:
    fits, cut = "x" * (TEXT_WINDOW - 2), "x" * (TEXT_WINDOW - 1)
    tasks = [task(prompt=fits, width=2 * SIZE_PX), task(prompt=cut, width=2 * SIZE_PX)]
    outcomes = {o.task.recipe.prompt: o for o in Engine(epsilon_model, rows=4).render(tasks)}
    for prompt, truncated in ((fits, False), (cut, True)):
        outcome = outcomes[prompt]
        assert isinstance(outcome, Rendered)
        assert outcome.prompt_truncated is truncated
        assert (outcome.rows, outcome.device, outcome.pixels.shape) == (4, "cpu", (SIZE_PX, 2 * SIZE_PX, 3))
        assert outcome.pixels.flags.c_contiguous


def test_an_image_comes_out_with_its_last_step(epsilon_model: LoadedModel) -> None:
    engine = Engine(epsilon_model, rows=6)
    short = [task(seed=1, num_inference_steps=2), task(seed=2, num_inference_steps=3)]
    engine.add(short, grouped=True)
    engine.add([task(seed=3, num_inference_steps=9)], grouped=True)
    assert [[o.task.recipe.seed for o in engine.step()] for _ in range(9)] == [[], [1], [2], *[[]] * 5, [3]]
    assert not engine.busy


def test_the_batch_drains_before_it_changes_size(epsilon_model: LoadedModel) -> None:
    engine = Engine(epsilon_model, rows=6)
    tasks = [task(seed=n, width=SIZE_PX * (1 + n // 3), num_inference_steps=1 + n) for n in range(6)]
    outcomes = list(engine.render(tasks))
    assert [o.task.recipe.seed for o in outcomes] == [0, 1, 2, 3, 4, 5]
    assert all(isinstance(o, Rendered) and o.pixels.shape[1] == o.task.recipe.width for o in outcomes)


def test_each_text_is_encoded_once(epsilon_model: LoadedModel) -> None:
    calls: list[int] = []
    encoder = epsilon_model.adapter.stock.text_encoder
    hook = encoder.register_forward_hook(lambda _module, _args, output: calls.append(len(output[0])))
    tasks = [task(prompt=f"cat {n % 10}", seed=n, num_inference_steps=1) for n in range(40)]
    list(Engine(epsilon_model, rows=8).render(Random(0).sample(tasks, 40)))
    hook.remove()
    assert calls == [8, 8]  # ten prompts and the empty negative one, in calls of one shape


@pytest.mark.parametrize("model", [tiny_models.stable_diffusion, tiny_models.flux, tiny_models.pixart])
def test_a_model_goes_with_its_engine(model: Callable[[], Any], tmp_path: Path) -> None:
    """Programs that use Darkroom as a library load one model after another."""
    network = weakref.ref(network_after_an_image(tiny_models.save(model(), tmp_path)))
    gc.collect()
    assert network() is None


def network_after_an_image(folder: Path) -> Any:
    model = load_model(folder, dtype="float32", device="cpu")
    plain = task(scheduler=model.adapter.family.schedulers()[0], num_inference_steps=1, guidance_scale=1.0)
    (outcome,) = Engine(model, rows=2).render([plain])
    assert isinstance(outcome, Rendered), outcome
    return model.adapter.network
