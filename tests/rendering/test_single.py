"""The fallback: any diffusers pipeline, one call per image."""

import inspect
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch

from pipeline.errors import JobBrokenError, ModelError
from pipeline.model.facts import read_facts
from pipeline.model.family import FAMILIES, Family
from pipeline.rendering.engine import Engine
from pipeline.rendering.renderer import load_renderer
from pipeline.rendering.results import Failed, Rendered
from pipeline.rendering.single import SingleEngine
from pipeline.schedulers import SCHEDULERS
from tests import tiny_models
from tests.rendering.tasks import task

DIFFUSERS: Any = diffusers


@pytest.fixture(scope="module")
def lcm_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    parts = dict(tiny_models.latent_consistency().components)
    model = DIFFUSERS.LatentConsistencyModelPipeline(**parts, requires_safety_checker=False)
    return tiny_models.save(model, tmp_path_factory.mktemp("lcm"))


def stock_picture(folder: Path, seed: int, **options: Any) -> np.ndarray[Any, Any]:
    stock = DIFFUSERS.DiffusionPipeline.from_pretrained(folder)
    stock.set_progress_bar_config(disable=True)
    return np.asarray(stock(generator=torch.Generator().manual_seed(seed), **options).images[0])


def test_a_class_without_an_adapter_draws_what_stock_draws(lcm_folder: Path) -> None:
    renderer = load_renderer(lcm_folder, dtype="float32", device="cpu", rows=4)
    assert isinstance(renderer, SingleEngine)
    tasks = [
        task(prompt="a cat", scheduler="lcm", guidance_scale=8.5, num_inference_steps=4, seed=3),
        task(prompt="a dog", scheduler="lcm", guidance_scale=1.5, num_inference_steps=2, seed=4, width=64),
    ]
    first, second = renderer.render(tasks)
    assert isinstance(first, Rendered)
    assert isinstance(second, Rendered)
    assert [first.task, second.task] == tasks
    expected = stock_picture(
        lcm_folder, 3, prompt="a cat", guidance_scale=8.5, num_inference_steps=4, width=32, height=32
    )
    assert np.array_equal(first.pixels, expected)
    assert second.pixels.shape == (32, 64, 3)
    assert not renderer.busy
    assert renderer.counters.evaluations == 6


def test_further_arguments_reach_the_stock_pipeline(epsilon_folder: Path) -> None:
    plain = load_renderer(epsilon_folder, dtype="float32", device="cpu", rows=4)
    assert isinstance(plain, Engine)
    skipping = load_renderer(epsilon_folder, dtype="float32", device="cpu", rows=4, call={"guidance_rescale": 0.9})
    one = task(negative_prompt="ugly", scheduler="pndm", num_inference_steps=3)
    (outcome,) = skipping.render([one])
    assert isinstance(outcome, Rendered)
    options = {"prompt": "a red cat", "negative_prompt": "ugly", "num_inference_steps": 3, "width": 32, "height": 32}
    assert np.array_equal(outcome.pixels, stock_picture(epsilon_folder, 1, guidance_rescale=0.9, **options))
    assert not np.array_equal(outcome.pixels, stock_picture(epsilon_folder, 1, **options))


def test_a_scheduler_that_draws_noise_keeps_to_the_seed(tmp_path: Path) -> None:
    model = tiny_models.stable_diffusion_3()
    model.scheduler.register_to_config(stochastic_sampling=True)
    tiny_models.save(model, tmp_path)
    told: dict[str, Any] = {"dtype": "float32", "device": "cpu", "rows": 2}
    one = task(scheduler="flow_match_euler", guidance_scale=1.0)
    renderers = [
        load_renderer(tmp_path, **told),
        *(load_renderer(tmp_path, **told, call={"clip_skip": 0}) for _ in "12"),
    ]
    engine, *single = (outcome for renderer in renderers for outcome in renderer.render([one]))
    assert isinstance(engine, Rendered)
    for outcome in single:
        assert isinstance(outcome, Rendered)
        assert np.abs(outcome.pixels.astype(int) - engine.pixels).max() <= 1


def test_a_bad_recipe_fails_alone(lcm_folder: Path) -> None:
    renderer = load_renderer(lcm_folder, dtype="float32", device="cpu", rows=4)
    tasks = [task(scheduler="lcm", num_inference_steps=51), task(scheduler="lcm", width=30), task(scheduler="lcm")]
    outcomes = list(renderer.render(tasks))
    assert [type(outcome) for outcome in outcomes] == [Failed, Failed, Rendered]
    assert "lcm does 1 to 50" in str(outcomes[0])


def test_a_list_the_pipeline_cannot_take_is_no_step_count(lcm_folder: Path) -> None:
    renderer = load_renderer(lcm_folder, dtype="float32", device="cpu", rows=4)
    listed = task(scheduler="euler:sigmas=14/6/2/0", num_inference_steps=3)
    (outcome,) = renderer.render([listed])
    assert "LatentConsistencyModelPipeline takes no list of sigmas" in str(outcome)


def test_an_image_that_never_fits_ends_the_job(lcm_folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    renderer = load_renderer(lcm_folder, dtype="float32", device="cpu", rows=4)

    def no_room(*_: Any, **__: Any) -> Any:
        raise torch.OutOfMemoryError("tried to allocate 9 GiB")

    monkeypatch.setattr(SingleEngine, "_draw", no_room)
    with pytest.raises(JobBrokenError, match=r"not even one image of this size fits on cpu: tried to allocate 9 GiB"):
        list(renderer.render([task(scheduler="lcm")]))


@pytest.mark.parametrize("name", ["clip_skp", "generator", "prompt", "guidance_scale", "self"])
def test_unknown_and_decided_arguments_are_refused(epsilon_folder: Path, name: str) -> None:
    with pytest.raises(ModelError, match=rf"(?s)takes no such argument.*model\.call.*{name}.*clip_skip"):
        load_renderer(epsilon_folder, dtype="float32", device="cpu", rows=4, call={name: 1})


@pytest.mark.parametrize("class_name", FAMILIES)
def test_the_table_agrees_with_diffusers(class_name: str) -> None:
    family, call = FAMILIES[class_name], inspect.signature(getattr(diffusers, class_name).__call__).parameters
    assert call["num_inference_steps"].default == family.num_inference_steps
    assert call["guidance_scale"].default == family.guidance_scale
    assert "generator" in call
    if family.single:
        assert family.negative_prompts == ("negative_prompt" in call)
        assert [kind for kind in ("timesteps", "sigmas") if kind in call and _has(family, kind)] == [
            kind for kind in family.lists if _has(family, kind)
        ]
    if "original_inference_steps" in call:  # handed to set_timesteps, which others do not take
        assert family.schedulers() == ("lcm",)


def _has(family: Family, kind: str) -> bool:
    """Whether some scheduler of the family has such lists."""
    return any(kind in SCHEDULERS[name].lists for name in family.schedulers())


def test_facts_of_a_single_family_merge_nothing(lcm_folder: Path, epsilon_folder: Path) -> None:
    for facts in (read_facts(lcm_folder), read_facts(epsilon_folder, single=True)):
        assert [facts.family.effective_guidance(scale) for scale in (0.0, 1.0, 7.5)] == [0.0, 1.0, 7.5]
        assert facts.family.uses_negative_prompt(0.0) == (facts.class_name == "StableDiffusionPipeline")
        assert facts.family.rows(7.5) == 1
