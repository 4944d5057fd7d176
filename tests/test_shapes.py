"""The built-in model and its judge."""

from random import Random

from benchmarks.shapes_accuracy import judge, judge_of_drawings
from pipeline.model.facts import read_facts, weights_dtype
from pipeline.model.resolve import BUILT_IN
from pipeline.recipe import Recipe, RenderTask
from pipeline.rendering.engine import Engine
from pipeline.rendering.loading import load_model
from pipeline.rendering.results import Rendered
from pipeline.shapes.pictures import SHAPES, held_out_prompts, is_held_out, plain_caption, training_scene, triples
from tests.noise import noise

MAX_BYTES = 16_000_000


def test_the_judge_reads_drawings() -> None:
    colours, shapes = judge_of_drawings(400)
    assert colours == 1.0
    assert shapes > 0.99


def test_the_judge_is_not_pleased_by_noise() -> None:
    assert not any(judge(noise(seed), scene)[1] for seed, scene in enumerate(held_out_prompts(20)))


def test_held_out_triples_are_never_trained_but_their_pairs_are() -> None:
    random = Random(0)
    seen = {training_scene(random).triple for _ in range(5000)}
    held_out = {triple for triple in triples() if is_held_out(triple)}
    assert len(held_out) == 42
    assert {shape for shape, _, _ in held_out} == set(SHAPES)
    assert not seen & held_out
    for shape, colour, background in held_out:
        assert any(s == shape and c == colour for s, c, _ in seen)
        assert any(c == colour and b == background for _, c, b in seen)


def test_facts_of_the_model() -> None:
    facts = read_facts(BUILT_IN["shapes"])
    assert (facts.size_factor, facts.native_size, facts.scheduler) == (4, (96, 96), "ddim")
    assert weights_dtype(BUILT_IN["shapes"]) == "float16"
    assert sum(path.stat().st_size for path in BUILT_IN["shapes"].rglob("*") if path.is_file()) <= MAX_BYTES


def test_it_draws_what_it_is_told() -> None:
    """A few held-out prompts; ``python -m benchmarks.shapes_accuracy`` prints the whole table."""
    scenes = held_out_prompts(42)[::3]
    engine = Engine(load_model(BUILT_IN["shapes"], dtype="float32", device="cpu"), 16)
    tasks = [
        RenderTask(
            task_id=str(number),
            recipe=Recipe(
                prompt=plain_caption(scene), negative_prompt=None, seed=number, guidance_scale=2.0,
                num_inference_steps=12, scheduler="ddim", width=96, height=96,
            ),
        )
        for number, scene in enumerate(scenes)
    ]  # fmt: skip
    colours = shapes = 0
    for outcome in engine.render(tasks):
        assert isinstance(outcome, Rendered)
        colour, shape = judge(outcome.pixels, scenes[int(outcome.task.task_id)])
        colours, shapes = colours + colour, shapes + shape
    assert colours >= 0.9 * len(scenes)
    assert shapes >= 0.8 * len(scenes)
