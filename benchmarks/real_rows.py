"""How full the denoiser's batch is: ``python -m benchmarks.real_rows``.

W3, every task with its own guidance scale, step count and seed, in shards that follow one another, as in a worker.
Which rows are real does not depend on the picture size or the machine; small pictures only make it quick.
"""

import argparse

from benchmarks.work import SEED, mixed, task
from pipeline.model.resolve import BUILT_IN
from pipeline.rendering.counters import EngineCounters
from pipeline.rendering.engine import Engine
from pipeline.rendering.loading import load_model


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--tasks", type=int, default=500)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--steps", type=int, nargs=2, default=(10, 50), help="fewest and most inference steps")
    parser.add_argument("--shard", type=int, default=64, help="tasks per shard")
    parser.add_argument("--size", type=int, default=32, help="px")
    given = parser.parse_args()
    model = load_model(BUILT_IN["shapes"], dtype="float32", device="cpu")
    tasks = mixed(
        lambda p, s, g, n: task(model.adapter.family, "ddim", given.size, p, s, g, n), given.tasks, tuple(given.steps)
    )
    engine, full = Engine(model, given.rows), EngineCounters()
    for start in range(0, len(tasks), given.shard):
        engine.add(tasks[start : start + given.shard], grouped=True)
    while engine.busy:
        if engine.waiting:
            full = engine.counters
        engine.step()
    print(f"W3, {given.tasks} tasks, {given.rows} rows, {given.steps[0]} to {given.steps[1]} steps, seed {SEED}")
    print(f"real rows: {engine.counters.real_rows:.4f} in all, {full.real_rows:.4f} before the last slots drain")


if __name__ == "__main__":
    main()
