"""How often the built-in model draws what it was told, over guidance scales and step counts.

    python -m benchmarks.shapes_accuracy

Prompts name (shape, colour, background) triples that were held out from training; pictures are judged by
``pipeline/shapes/reading.py``, which is no network. The first line judges freshly drawn pictures: the judge's own rate.
"""

import argparse
from collections import defaultdict
from pathlib import Path
from random import Random

import numpy as np
import torch

from pipeline.model.resolve import BUILT_IN
from pipeline.recipe import Recipe, RenderTask
from pipeline.rendering.engine import Engine
from pipeline.rendering.loading import load_model
from pipeline.rendering.results import Rendered
from pipeline.shapes.pictures import PICTURE_SIZE_PX, Scene, draw, held_out_prompts, plain_caption, training_scene
from pipeline.shapes.reading import read_picture

GUIDANCE_SCALES = (1.0, 2.0, 4.0, 8.0)
STEP_COUNTS = (2, 5, 10, 25)


def judge(pixels: np.ndarray[tuple[int, ...], np.dtype[np.uint8]], scene: Scene) -> tuple[bool, bool]:
    """Whether both colours, and whether the shape, are as told."""
    reading = read_picture(pixels)
    return (reading.colour, reading.background) == (scene.colour, scene.background), reading.shape == scene.shape


def judge_of_drawings(count: int) -> tuple[float, float]:
    random = Random(1)
    scenes = [training_scene(random) for _ in range(count)]
    verdicts = np.array([judge(draw(scene, random), scene) for scene in scenes])
    colours, shapes = verdicts.mean(axis=0)
    return float(colours), float(shapes)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUILT_IN["shapes"])
    parser.add_argument("--prompts", type=int, default=200)
    parser.add_argument("--rows", type=int, default=32)
    given = parser.parse_args()
    colours, shapes = judge_of_drawings(2000)
    print(f"judge on 2000 drawings: colours {colours:.1%}, shapes {shapes:.1%}", flush=True)
    print(f"torch {torch.__version__}, {given.prompts} held-out prompts, seed = prompt number", flush=True)
    engine = Engine(load_model(given.model, dtype="float32", device="cpu"), given.rows)
    scenes = held_out_prompts(given.prompts)
    tasks, meant = [], {}
    for guidance in GUIDANCE_SCALES:
        for steps in STEP_COUNTS:
            for seed, scene in enumerate(scenes):
                name = f"{guidance} {steps} {seed}"
                meant[name] = (guidance, steps, scene)
                recipe = Recipe(
                    prompt=plain_caption(scene),
                    negative_prompt=None,
                    seed=seed,
                    guidance_scale=guidance,
                    num_inference_steps=steps,
                    scheduler="ddim",
                    width=PICTURE_SIZE_PX,
                    height=PICTURE_SIZE_PX,
                )
                tasks.append(RenderTask(task_id=name, recipe=recipe))
    verdicts = defaultdict(list)
    for outcome in engine.render(tasks):
        if not isinstance(outcome, Rendered):
            raise SystemExit(f"a task failed: {outcome.error}")
        guidance, steps, scene = meant[outcome.task.task_id]
        verdicts[guidance, steps].append(judge(outcome.pixels, scene))
    print("colours / shapes right, %; rows: guidance scale, columns: steps")
    print("guidance " + "".join(f"{steps:>16}" for steps in STEP_COUNTS))
    for guidance in GUIDANCE_SCALES:
        cells = (100 * np.mean(verdicts[guidance, steps], axis=0) for steps in STEP_COUNTS)
        print(f"{guidance:>8g} " + "".join(f"{colour:>8.1f}/{shape:>5.1f}  " for colour, shape in cells))


if __name__ == "__main__":
    main()
