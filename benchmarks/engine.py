"""The engine against what people write today: images per second, in alternating pairs.

    python -m benchmarks.engine
    python -m benchmarks.engine --dtype bfloat16 --compile

Darkroom here is the engine with PNG encoding and commit, without Ray. ``c`` is the network's own gain from batching,
rows/s at the engine's row count over rows/s at 2: the ceiling of what batching can do for it.
"""

import argparse
import platform
import shutil
import statistics
import tempfile
import time
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import diffusers
import torch

from benchmarks.contestants import Batched, Contestant, Darkroom, Loop
from benchmarks.work import WORK, task
from pipeline.model.facts import read_facts
from pipeline.model.resolve import BUILT_IN
from pipeline.recipe import RenderTask
from pipeline.rendering.calibration import measure
from pipeline.rendering.engine import EngineCounters
from pipeline.rendering.loading import load_model


def seconds(contestant: Contestant, tasks: Sequence[RenderTask]) -> float:
    """Time to render the tasks into a fresh folder."""
    folder = Path(tempfile.mkdtemp(prefix="darkroom-benchmark-"))
    try:
        began = time.perf_counter()
        contestant(tasks, folder)
        return time.perf_counter() - began
    finally:
        shutil.rmtree(folder)


def real_rows(before: EngineCounters, after: EngineCounters) -> float:
    """Fraction of the denoiser's rows that were tasks', not padding."""
    evaluations, padded = after.evaluations - before.evaluations, after.padded_rows - before.padded_rows
    return evaluations / (evaluations + padded)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUILT_IN["shapes"])
    parser.add_argument("--work", nargs="+", choices=list(WORK), default=list(WORK))
    parser.add_argument("--tasks", type=int, default=120, help="images per run")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--batch", type=int, default=16, help="images per call of B1")
    parser.add_argument("--steps", type=int, nargs=2, default=(5, 25), help="fewest and most inference steps")
    parser.add_argument("--scheduler", default="ddim")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--compile", action="store_true", help="B2 in place of B1, and Darkroom compiled too")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    facts = read_facts(given.model)
    side = facts.native_size[0]
    print(
        f"{facts.class_name} at {side} px, {given.dtype}{', compiled' if given.compile else ''}, {given.device}, "
        f"{given.threads} thread(s), {platform.processor() or platform.machine()}; torch {torch.__version__}, "
        f"diffusers {diffusers.__version__}; {given.tasks} images, {given.pairs} pairs, {given.rows} rows, seed 0"
    )
    darkroom_model = load_model(given.model, dtype=given.dtype, device=given.device, compiled=given.compile)
    plain = replace(darkroom_model, adapter=replace(darkroom_model.adapter, compiled=False))
    few, many = (measure(plain, rows, side, side, 3.0).evaluations_per_s for rows in (2, given.rows))
    gain = many / few
    print(f"rows/s: {few:.1f} at 2, {many:.1f} at {given.rows}; c = {gain:.2f}")
    darkroom = Darkroom(darkroom_model, given.rows)
    stock = (given.model, facts.class_name, given.dtype, given.device)
    batched = "B2" if given.compile else "B1"
    rivals: dict[str, Contestant] = {
        "B0": Loop(*stock),
        batched: Batched(*stock, given.batch, compiled=given.compile),
    }
    print("work rival  rival images/s  darkroom images/s  ratio  ratio/c  real rows")
    for work in given.work:
        tasks = WORK[work](
            lambda p, s, g, n: task(facts.family, given.scheduler, side, p, s, g, n), given.tasks, tuple(given.steps)
        )
        for name, rival in rivals.items():
            pairs = []
            seconds(rival, tasks[:4])
            seconds(darkroom, tasks[:4])
            for _ in range(given.pairs):
                theirs = seconds(rival, tasks)
                before = darkroom.counters
                ours = seconds(darkroom, tasks)
                pairs.append((theirs, ours, real_rows(before, darkroom.counters)))
            ratio = statistics.median(theirs / ours for theirs, ours, _ in pairs)
            rates = [len(tasks) / statistics.median(pair[index] for pair in pairs) for index in (0, 1)]
            filled = statistics.median(pair[2] for pair in pairs)
            print(
                f"{work:>4} {name:>5} {rates[0]:>15.2f} {rates[1]:>18.2f}",
                f"{ratio:>6.2f} {ratio / gain:>8.2f} {filled:>10.3f}",
                flush=True,
            )


if __name__ == "__main__":
    main()
