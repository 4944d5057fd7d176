"""What Ray, encoding and commit cost around the engine: ``python -m benchmarks.overhead``.

Processes with one engine each and nothing beside it, against ``darkroom render`` with as many workers on the same
tasks. Both rates are the slope of evaluations finished over time while all engines are busy: of bare engines by when
pixels were ready, until the first engine is done; of the command by when picture files were written, as commits reach
the driver in lumps. A tenth of the images at either end is left out, as batches fill during the first, and of twenty
shards two workers hold so few at the end that only in the last can one of them be idle.
"""

import argparse
import multiprocessing
import os
import statistics
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from threading import Barrier

from benchmarks.launched import (
    MODEL,
    darkroom,
    evaluations_per_s,
    made_tasks,
    surroundings,
    write_manifest,
)  # fmt: skip
from benchmarks.work import WORK
from pipeline.recipe import RenderTask

ROWS = 16
SHARDS = 20
RAY_NICENESS = 15
"""What Ray gives its workers: others on the machine must not slow down one contestant only."""


def engine_alone(tasks: Sequence[RenderTask], gate: Barrier) -> dict[str, float]:
    """One process's share of the tasks: when the pixels of each were there."""
    import torch

    from pipeline.rendering.engine import Engine
    from pipeline.rendering.loading import load_model
    from pipeline.rendering.results import Rendered

    torch.set_num_threads(1)
    os.nice(RAY_NICENESS)
    engine, finished_s = Engine(load_model(MODEL, dtype="float32", device="cpu"), ROWS), {}
    gate.wait()
    for outcome in engine.render(tasks):
        assert isinstance(outcome, Rendered), outcome
        finished_s[outcome.task.task_id] = time.time()
    return finished_s


def engines(tasks: Sequence[RenderTask], processes: int) -> float:
    """Evaluations per second of all processes while all are busy."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(processes) as pool:
        gate = manager.Barrier(processes)
        shares = pool.starmap(engine_alone, [(tasks[number::processes], gate) for number in range(processes)])
    until_s = min(max(share.values()) for share in shares)
    finished_s = {name: at for share in shares for name, at in share.items() if at <= until_s}
    done = [task for task in tasks if task.task_id in finished_s]
    return evaluations_per_s([finished_s[task.task_id] for task in done], done)


def rendered(tasks: Sequence[RenderTask], workers: int) -> float:
    """Evaluations per second of the whole command while all workers are busy."""
    with tempfile.TemporaryDirectory(prefix="darkroom-benchmark-") as folder:
        manifest = Path(folder) / "manifest.parquet"
        write_manifest(tasks, manifest)
        shard_images = max(ROWS // 2, len(tasks) // SHARDS)
        run = darkroom(manifest, Path(folder) / "out", workers, rows=ROWS, shard_images=shard_images)
        return evaluations_per_s(run.finished_s(), tasks)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=900, help="of less than 300 too much is the filling of batches")
    parser.add_argument("--work", choices=list(WORK), default="W3")
    parser.add_argument("--steps", type=int, nargs=2, default=(5, 25), help="fewest and most inference steps")
    parser.add_argument("--workers", type=int, default=2, help="of one thread each")
    parser.add_argument("--pairs", type=int, default=3)
    given = parser.parse_args()
    print(f"{surroundings()}; {given.work}, {given.images} images, {given.pairs} pairs, {given.workers} workers")
    tasks, ratios = made_tasks(given.work, given.images, tuple(given.steps)), []
    for number in range(given.pairs):
        alone, whole = engines(tasks, given.workers), rendered(tasks, given.workers)
        ratios.append(whole / alone)
        told = f"engines alone {alone:.1f} evaluations/s, darkroom render {whole:.1f}"
        print(f"pair {number + 1}: {told}, {ratios[-1]:.3f}", flush=True)
    print(f"median: {1 - statistics.median(ratios):.1%} lost around the engine")


if __name__ == "__main__":
    main()
