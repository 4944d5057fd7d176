"""Ray Data as people use it against ``darkroom render``: ``python -m benchmarks.ray_data``.

B3 is the batch inference example of Ray's documentation: one image per call, pictures returned to the driver, which
saves them. B4 is Ray Data done well: tasks sorted so that those of one guidance scale and step count are neighbours,
whole batches in one call where they agree, and a second stage that encodes and saves. All render the same manifest
with the built-in model in float32, in a process with a Ray of its own, workers of one thread each, in turn.

*steady* is the rate while all workers are busy (``benchmarks.launched``), *whole* the time of the process, from its
start to its end.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import groupby
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow.parquet as pq
import ray
from numpy.typing import NDArray
from PIL import Image
from ray.data import ActorPoolStrategy, DataContext

from benchmarks.launched import (
    MODEL,
    Launched,
    darkroom,
    evaluations,
    evaluations_per_s,
    made_tasks,
    run_python,
    surroundings,
    write_manifest,
)  # fmt: skip
from benchmarks.work import WORK
from pipeline.recipe import RenderTask

Batch = dict[str, NDArray[Any]]
SAMPLE = 16
"""Pictures of each contestant that are compared with Darkroom's."""
MOST_DIFFERENCE = 3.0
"""Of 255, mean over a picture: more is another picture."""


class Generate:
    """An actor with the stock pipeline: a batch of manifest rows in, their pictures out."""

    def __init__(self) -> None:
        # Imported here: the processes that only save pictures shall not have to load torch.
        import torch

        from benchmarks.stock import Stock

        torch.set_num_threads(1)
        self._generator = torch.Generator
        self._pipeline = Stock(MODEL, "StableDiffusionPipeline", "float32", "cpu").pipeline

    def __call__(self, batch: Batch) -> Batch:
        """One call for all neighbours with one guidance scale and step count."""
        pictures: list[NDArray[np.uint8]] = []
        settings = list(zip(batch["guidance_scale"].tolist(), batch["num_inference_steps"].tolist(), strict=True))
        for (guidance, steps), same in groupby(range(len(settings)), key=settings.__getitem__):
            numbers = list(same)
            images = self._pipeline(
                batch["prompt"][numbers].tolist(),
                guidance_scale=guidance,
                num_inference_steps=steps,
                generator=[self._generator("cpu").manual_seed(seed) for seed in batch["seed"][numbers].tolist()],
            ).images
            pictures += [np.asarray(image) for image in images]
        return {"number": batch["number"], "picture": np.stack(pictures)}


def picture_path(folder: Path, number: int) -> Path:
    return folder / f"{number:06d}.png"


def save(batch: Batch, folder: Path) -> Batch:
    """Encode and write a batch of pictures."""
    for number, picture in zip(batch["number"].tolist(), batch["picture"], strict=True):
        Image.fromarray(picture).save(picture_path(folder, number))
    return {"number": batch["number"]}


def from_the_documentation(manifest: Path, folder: Path, workers: int, _: int) -> None:
    """B3."""
    rows = ray.data.from_items(pq.read_table(manifest).to_pylist())
    pictures = rows.map_batches(Generate, batch_size=1, compute=ActorPoolStrategy(size=workers), num_cpus=1)
    for row in pictures.iter_rows():
        Image.fromarray(row["picture"]).save(picture_path(folder, row["number"]))


def done_well(manifest: Path, folder: Path, workers: int, batch: int) -> None:
    """B4. Few batches wait inside an actor, lest one that is ready first takes what is left for the other."""
    order = [("guidance_scale", "ascending"), ("num_inference_steps", "ascending")]
    rows = pq.read_table(manifest).sort_by(order)
    blocks = [rows.slice(start, batch) for start in range(0, rows.num_rows, batch)]
    actors = ActorPoolStrategy(size=workers, max_tasks_in_flight_per_actor=2)
    saved = (
        ray.data.from_arrow(blocks)
        .map_batches(Generate, batch_size=batch, compute=actors, num_cpus=1)
        .map_batches(save, batch_size=batch, fn_args=(folder,), num_cpus=1)
    )
    for _ in saved.iter_batches(batch_size=None):
        pass


RIVALS: Mapping[str, Callable[[Path, Path, int, int], None]] = {"B3": from_the_documentation, "B4": done_well}


def contest(name: str, manifest: str, folder: str, workers: str, batch: str) -> None:
    """One rival, in this process, which is a fresh one."""
    from pipeline.distributed.connecting import connect

    connect(None)
    DataContext.get_current().enable_progress_bars = False
    RIVALS[name](Path(manifest), Path(folder), int(workers), int(batch))
    ray.shutdown()


def launched(name: str, manifest: Path, folder: Path, workers: int, batch: int) -> Launched:
    """Any contestant, in a fresh process; its pictures are in the folder."""
    folder.mkdir()
    if name == "darkroom":
        return darkroom(manifest, folder, workers)
    code = "import sys; from benchmarks.ray_data import contest; contest(*sys.argv[1:])"
    whole_s = run_python("-c", code, name, str(manifest), str(folder), str(workers), str(batch))
    count = pq.read_metadata(manifest).num_rows
    return Launched(whole_s=whole_s, pictures=[picture_path(folder, number) for number in range(count)])


def difference(ours: Sequence[Path], theirs: Sequence[Path]) -> float:
    """The largest mean difference of two pictures of one task, of 255, in a sample."""
    sample = np.linspace(0, len(ours) - 1, min(SAMPLE, len(ours))).round().astype(int)
    pairs = ([np.asarray(Image.open(paths[n]), np.float32) for paths in (ours, theirs)] for n in sample)
    return max(float(np.abs(one - other).mean()) for one, other in pairs)


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """Of one run of one contestant."""

    images_per_s: float
    """Steady."""
    whole_s: float
    difference: float
    """From Darkroom's pictures."""


def one_round(tasks: Sequence[RenderTask], order: Sequence[str], workers: int, batch: int) -> dict[str, Figures]:
    """All contestants in this order, each once."""
    cost = statistics.mean(evaluations(tasks))
    with tempfile.TemporaryDirectory(prefix="darkroom-benchmark-") as folder:
        manifest = Path(folder) / "manifest.parquet"
        write_manifest(tasks, manifest)
        done = {name: launched(name, manifest, Path(folder) / name, workers, batch) for name in order}
        return {
            name: Figures(
                images_per_s=evaluations_per_s(run.finished_s(), tasks) / cost,
                whole_s=run.whole_s,
                difference=difference(done["darkroom"].pictures, run.pictures),
            )
            for name, run in done.items()
        }


def line(theirs: Sequence[Figures], ours: Sequence[Figures]) -> str:
    """Medians of a rival's rounds beside Darkroom's, and of the ratios round by round."""
    rates = [statistics.median(run.images_per_s for run in runs) for runs in (theirs, ours)]
    wholes = [statistics.median(run.whole_s for run in runs) for runs in (theirs, ours)]
    pairs = list(zip(theirs, ours, strict=True))
    faster = statistics.median(our.images_per_s / their.images_per_s for their, our in pairs)
    sooner = statistics.median(their.whole_s / our.whole_s for their, our in pairs)
    apart = max(run.difference for run in theirs)
    return (
        f"{rates[0]:>15.2f} {rates[1]:>9.2f} {faster:>6.2f} {wholes[0]:>14.1f} {wholes[1]:>9.1f} {sooner:>6.2f} "
        f"{apart:>11.3f}"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rivals", nargs="+", choices=list(RIVALS), default=list(RIVALS))
    parser.add_argument("--work", nargs="+", choices=list(WORK), default=list(WORK))
    parser.add_argument("--tasks", type=int, default=240, help="images per run")
    parser.add_argument("--pairs", type=int, default=3)
    parser.add_argument("--workers", type=int, default=2, help="of one thread each")
    parser.add_argument("--batch", type=int, default=16, help="images per batch of B4")
    parser.add_argument("--steps", type=int, nargs=2, default=(5, 25), help="fewest and most inference steps")
    given = parser.parse_args()
    print(f"{surroundings()}; {given.tasks} images, {given.pairs} pairs, {given.workers} workers, batch {given.batch}")
    print("work rival  steady: rival  darkroom  ratio  whole s: rival  darkroom  ratio  difference", flush=True)
    for work in given.work:
        tasks, order = made_tasks(work, given.tasks, tuple(given.steps)), ["darkroom", *given.rivals]
        rounds = []
        for _ in range(given.pairs):
            rounds.append(one_round(tasks, order, given.workers, given.batch))
            order.reverse()
        runs = {name: [figures[name] for figures in rounds] for name in order}
        for name in given.rivals:
            print(f"{work:>4} {name:>5}", line(runs[name], runs["darkroom"]), flush=True)
            if max(figures.difference for figures in runs[name]) > MOST_DIFFERENCE:
                raise SystemExit(f"{name} renders other pictures than Darkroom")


if __name__ == "__main__":
    main()
