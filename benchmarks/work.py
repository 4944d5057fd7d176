"""The tasks that contestants are measured on."""

from collections.abc import Callable, Mapping
from hashlib import sha256
from itertools import product
from random import Random

from pipeline.model.family import Family
from pipeline.recipe import Recipe, RenderTask

SEED = 0
_THINGS = ("circle", "square", "triangle", "star", "cross", "ring")
_COLOURS = ("red", "green", "blue", "yellow", "purple", "orange", "white", "black")


def prompts(count: int) -> list[str]:
    """Distinct prompts that the built-in model can draw."""
    pairs = [(c, t, b) for c, t, b in product(_COLOURS, _THINGS, _COLOURS) if c != b]
    chosen = Random(SEED).sample(pairs, min(count, len(pairs)))
    texts = [f"a {colour} {thing} on a {ground} background" for colour, thing, ground in chosen]
    return [texts[index % len(texts)] for index in range(count)]


def task(
    family: Family, scheduler: str, side_px: int, prompt: str, seed: int, guidance: float, steps: int
) -> RenderTask:
    """An effective recipe under an id of its own."""
    recipe = Recipe(
        prompt=prompt, negative_prompt=None, seed=seed, guidance_scale=family.effective_guidance(guidance),
        num_inference_steps=steps, scheduler=scheduler, width=side_px, height=side_px,
    )  # fmt: skip
    return RenderTask(task_id=sha256(repr(recipe).encode()).hexdigest()[:32], recipe=recipe)


Make = Callable[[str, int, float, int], RenderTask]
"""(prompt, seed, guidance scale, steps) to a task."""


def uniform(make: Make, count: int, steps: tuple[int, ...]) -> list[RenderTask]:
    """W1: one guidance scale, one step count, many prompts."""
    return [make(prompt, index, 7.5, steps[len(steps) // 2]) for index, prompt in enumerate(prompts(count))]


def sweep(make: Make, count: int, steps: tuple[int, ...]) -> list[RenderTask]:
    """W2: seeds x guidance {1, 3, 5, 7.5, 10} x three step counts, prompt after prompt."""
    middle = (steps[0] + steps[-1]) // 2
    points = list(product(range(8), (1.0, 3.0, 5.0, 7.5, 10.0), (steps[0], middle, steps[-1])))
    listed = [make(p, s, g, n) for p, (s, g, n) in product(prompts(-(-count // len(points))), points)]
    return listed[:count]


def mixed(make: Make, count: int, steps: tuple[int, ...]) -> list[RenderTask]:
    """W3: every row its own guidance scale (1 to 12), step count and seed, as people's requests are."""
    random = Random(SEED)
    return [
        make(prompt, random.randrange(2**32), round(random.uniform(1, 12), 2), random.randint(steps[0], steps[-1]))
        for prompt in prompts(count)
    ]


WORK: Mapping[str, Callable[[Make, int, tuple[int, ...]], list[RenderTask]]] = {
    "W1": uniform,
    "W2": sweep,
    "W3": mixed,
}
