"""What Ray, encoding and commit cost around the engine: ``python -m benchmarks.overhead``.

Two processes with one engine each and nothing beside it, against ``darkroom render`` with two workers on the same
tasks. Both are timed from the first finished images on, so that loading and start-up are left out.
"""

import argparse
import multiprocessing
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.work import prompts

GUIDANCES, STEPS = (1.0, 4.0, 7.5), (5, 15, 25)


def engine_alone(number: int, processes: int, images: int, gate: "multiprocessing.synchronize.Barrier") -> float:
    """One process's share of the tasks; images per second."""
    import torch

    from benchmarks.work import task
    from pipeline.model.resolve import BUILT_IN
    from pipeline.rendering.engine import Engine
    from pipeline.rendering.loading import load_model

    torch.set_num_threads(1)
    model = load_model(BUILT_IN["shapes"], dtype="float32", device="cpu")
    family, side = model.adapter.family, 0
    side = int(model.adapter.network.config.sample_size) * model.adapter.latent_factor
    points = [(guidance, steps) for guidance in GUIDANCES for steps in STEPS]
    tasks = [
        task(family, "ddim", side, prompt, 0, guidance, steps)
        for prompt in prompts(images // len(points))
        for guidance, steps in points
    ]
    engine, done, began = Engine(model, 16), 0, 0.0
    gate.wait()
    engine.add(tasks[number::processes], flush=True)
    while engine.busy:
        done += len(engine.step())
        if done and not began:
            began, done = time.perf_counter(), 0
    return done / (time.perf_counter() - began)


def engines(processes: int, images: int) -> float:
    """Images per second of all processes."""
    context = multiprocessing.get_context("spawn")
    with context.Manager() as manager, context.Pool(processes) as pool:
        gate = manager.Barrier(processes)
        return sum(pool.starmap(engine_alone, [(number, processes, images, gate) for number in range(processes)]))


_RENDER = """
import sys, time
from pathlib import Path
from datetime import date
from pipeline.config import load_job
from pipeline.distributed.launch import LaunchOptions, launch
from pipeline.prepare import prepare
job = load_job(None, [("manifest", sys.argv[1]), ("sweep.guidance_scales", [1.0, 4.0, 7.5]),
    ("sweep.num_inference_steps", [5, 15, 25]), ("output.uri", sys.argv[2]), ("workers.count", int(sys.argv[3])),
    ("render.shard_images", 48)], date.today())
seen = []
launch(prepare(job), LaunchOptions(address=None, cache_folder=Path(sys.argv[2] + ".cache")), lambda text: None,
    lambda progress: seen.append((time.perf_counter(), progress.images)))
print((seen[-1][1] - seen[0][1]) / (seen[-1][0] - seen[0][0]))
"""


def rendered(workers: int, images: int) -> float:
    """Images per second of the whole command, from the first committed shard to the last."""
    with tempfile.TemporaryDirectory(prefix="darkroom-benchmark-") as folder:
        manifest = Path(folder) / "m.parquet"
        pq.write_table(pa.table({"prompt": prompts(images // (len(GUIDANCES) * len(STEPS)))}), manifest)
        command = [sys.executable, "-c", _RENDER, str(manifest), f"{folder}/out", str(workers)]
        said = subprocess.run(command, check=True, capture_output=True, text=True).stdout
    return float(said.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=900)
    parser.add_argument("--workers", type=int, default=2)
    parser.add_argument("--pairs", type=int, default=3)
    given = parser.parse_args()
    pairs = []
    for number in range(given.pairs):
        alone, whole = engines(given.workers, given.images), rendered(given.workers, given.images)
        pairs.append(whole / alone)
        print(
            f"pair {number + 1}: engines alone {alone:.2f} images/s, darkroom render {whole:.2f}, {whole / alone:.3f}"
        )
    print(f"median: {1 - statistics.median(pairs):.1%} lost around the engine")


if __name__ == "__main__":
    main()
