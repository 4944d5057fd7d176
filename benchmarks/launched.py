"""Contestants that are launched: a manifest in, a process of its own, a file per picture out.

An image is finished when its file is written, as the file system says; so every contestant has the same clock.
"""

import os
import platform
import subprocess
import sys
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.work import SEED, WORK, task
from pipeline.model.facts import read_facts
from pipeline.model.resolve import BUILT_IN
from pipeline.recipe import RenderTask

MODEL = BUILT_IN["shapes"]
ENDS = 0.1
"""Share of the images at either end that is not steady: batches fill, and the last shard keeps one worker busy."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Launched:
    """What a process left behind."""

    whole_s: float
    """From its start to its end, loading and committing included."""
    pictures: list[Path]
    """By number of the task."""

    def finished_s(self) -> list[float]:
        """When each picture was written."""
        return [path.stat().st_mtime for path in self.pictures]


def made_tasks(work: str, count: int, steps: tuple[int, ...]) -> list[RenderTask]:
    """Tasks of ``benchmarks.work`` for the built-in model."""
    facts = read_facts(MODEL)
    return WORK[work](lambda p, s, g, n: task(facts.family, "ddim", facts.native_size[0], p, s, g, n), count, steps)


def evaluations(tasks: Sequence[RenderTask]) -> list[int]:
    """What each task costs: rows through the denoiser."""
    family = read_facts(MODEL).family
    return [t.recipe.num_inference_steps * family.rows(t.recipe.guidance_scale) for t in tasks]


def write_manifest(tasks: Sequence[RenderTask], path: Path) -> None:
    """Every row with settings of its own, and its number."""
    names = ("prompt", "seed", "guidance_scale", "num_inference_steps")
    columns = {name: [getattr(t.recipe, name) for t in tasks] for name in names}
    pq.write_table(pa.table({"number": range(len(tasks)), **columns}), path)


def run_python(*words: str) -> float:
    """Run Python in a fresh process; seconds from its start to its end."""
    environment = {**os.environ, "RAY_BACKEND_LOG_LEVEL": "fatal"}
    environment.pop("RAY_ADDRESS", None)
    began = time.perf_counter()
    done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"{' '.join(words)} ended with {done.returncode}:\n{done.stdout}{done.stderr}")
    return time.perf_counter() - began


def darkroom(manifest: Path, output: Path, workers: int, **render: int) -> Launched:
    """``darkroom render`` on CPUs; ``render`` are keys of that section of the job file."""
    settings = {"model.dtype": "float32", "workers.count": workers, "workers.gpus": 0}
    settings |= {f"render.{key}": value for key, value in render.items()}
    words = [word for key, value in settings.items() for word in ("--set", f"{key}={value}")]
    whole_s = run_python("-m", "jobs", "render", "--manifest", str(manifest), "--output", str(output), *words)
    committed = pq.read_table(output / "metadata.parquet", columns=["number", "file_name"]).sort_by("number")
    if committed["number"].to_pylist() != list(range(pq.read_metadata(manifest).num_rows)):
        raise SystemExit("darkroom render committed other images than those of the manifest")
    return Launched(whole_s=whole_s, pictures=[output / name for name in committed["file_name"].to_pylist()])


def evaluations_per_s(finished_s: Sequence[float], tasks: Sequence[RenderTask]) -> float:
    """The steady rate: the slope of work finished over time, by least squares, without the ``ENDS``.

    A line through all, not the first and the last point, as images come in lumps of a batch; evaluations, not images,
    as contestants take cheap and dear ones in different orders.
    """
    order = np.argsort(finished_s, kind="stable")
    times, done = np.array(finished_s)[order], np.cumsum(np.array(evaluations(tasks))[order])
    end = int(ENDS * len(order))
    middle = slice(end, len(order) - end)
    slope, _ = np.polyfit(times[middle] - times[0], done[middle], 1)
    return float(slope)


def surroundings() -> str:
    """Machine, versions and seed, for a benchmark's first line."""
    versions = ", ".join(f"{name} {version(name)}" for name in ("torch", "diffusers", "ray"))
    machine = f"{platform.processor() or platform.machine()}, {os.cpu_count()} CPUs"
    return f"{machine}; Python {platform.python_version()}, {versions}; seed {SEED}"
