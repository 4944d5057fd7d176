"""How much of their time many workers lose to Ray and the driver: ``python -m benchmarks.dispatch``.

Workers of production whose renderer sleeps, 1 to 64 of them on this machine, at least 60 shards each, 5 seconds a
shard; real leases, journals and commits in a local directory. Measured from the moment when all workers are ready to
the last outcome at the driver. *efficient* is the time that all shards take by sleeping alone over the time it took.
A process and a Ray of its own per line. CPU is of one core; *ms* is the driver's per shard; MiB of a worker are its
share of memory (PSS), of the driver its peak; *requests* are to the store, per shard of two images.
"""

import argparse
import json
import os
import platform
import resource
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass
from datetime import date
from importlib.metadata import version
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

import psutil
import pyarrow as pa
import pyarrow.parquet as pq
import ray

from benchmarks.sleeping import SleepingSpec, SleepingWorker
from pipeline.config import load_job
from pipeline.distributed.connecting import connect
from pipeline.distributed.dispatcher import CrewSize, Dispatcher
from pipeline.distributed.outcomes import Tally
from pipeline.distributed.planned import LeasePlan, Planner, planned_leases
from pipeline.distributed.ray_crew import RayCrew
from pipeline.distributed.report import Drawn
from pipeline.distributed.spec import Pool
from pipeline.identity import IdSet
from pipeline.model.fingerprint import DigestCache, fingerprint
from pipeline.model.rows import BatchRows
from pipeline.output.part import RunFacts
from pipeline.planning.amount import Amount
from pipeline.planning.selection import Selection
from pipeline.planning.tasks import Space
from pipeline.prepare import prepare
from pipeline.storage.s3_settings import S3Settings

STEPS = 25
SHARD_IMAGES = 2
"""One prompt with two seeds."""
MEASURED = "measured.json"
"""Where the process of a line leaves it: Ray has the standard output too."""
WORKER_TITLE = "SleepingWorker"
"""In the title that Ray gives a worker's process."""
COLUMNS = (
    "workers", "shards", "start s", "took s", "ideal s", "efficient", "fewest", "most", "driver CPU", "ms", "Ray CPU",
    "workers CPU", "driver MiB", "worker MiB", "requests",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One line."""

    workers: int
    shards: int
    start_s: float
    """From the start of Ray until all workers were ready."""
    took_s: float
    ideal_s: float
    fewest: int
    """Shards of one worker."""
    most: int
    requests: int
    """To the store, of all workers."""
    cpu_s: Mapping[str, float]
    """While the workers worked: of the driver, of Ray's own processes, of all workers."""
    driver_mib: float
    worker_mib: float
    torch_loaded: bool
    """By some worker."""

    def cells(self) -> list[str]:
        cpu = {name: f"{seconds / self.took_s:.1%}" for name, seconds in self.cpu_s.items()}
        return [
            f"{self.workers}", f"{self.shards:,}", f"{self.start_s:.0f}", f"{self.took_s:.1f}", f"{self.ideal_s:.1f}",
            f"{self.ideal_s / self.took_s:.1%}", f"{self.fewest}", f"{self.most}", cpu["driver"],
            f"{1000 * self.cpu_s['driver'] / self.shards:.1f}", cpu["ray"], cpu["workers"],
            f"{self.driver_mib:.0f}", f"{self.worker_mib:.0f}", f"{self.requests / self.shards:.1f}",
        ]  # fmt: skip


class Watch(threading.Thread):
    """Beside the driver: notes what all processes have used up when the last worker is ready, then their memory."""

    def __init__(self, gate: Path, workers: int) -> None:
        super().__init__(name="watch", daemon=True)
        self._gate, self._workers = gate, workers
        self.cpu_s: Mapping[str, float] = {}
        self.worker_mib = 0.0

    def run(self) -> None:
        while len(list(self._gate.iterdir())) < self._workers:
            time.sleep(0.1)
        self.cpu_s = cpu_s()
        time.sleep(2)
        shares = [share for process in psutil.Process().children(recursive=True) for share in worker_pss_mib(process)]
        self.worker_mib = median(shares)

    def ready_at(self) -> float:
        """When the last worker was."""
        return max(path.stat().st_mtime for path in self._gate.iterdir())


def cpu_s() -> dict[str, float]:
    """CPU seconds used so far: by this process, by all workers, by the rest of Ray."""
    used = {"driver": sum(os.times()[:2]), "ray": 0.0, "workers": 0.0}
    for process in psutil.Process().children(recursive=True):
        with suppress(psutil.Error):
            times = process.cpu_times()
            used["workers" if is_worker(process) else "ray"] += times.user + times.system
    return used


def is_worker(process: psutil.Process) -> bool:
    return WORKER_TITLE in " ".join(process.cmdline())


def worker_pss_mib(process: psutil.Process) -> Iterator[float]:
    with suppress(psutil.Error):
        if is_worker(process):
            yield process.memory_full_info().pss / 2**20


def write_manifest(path: Path, shards: int) -> None:
    prompts = [f"picture {number}" for number in range(shards)]
    pq.write_table(pa.table({"prompt": prompts}), path)


def start_ray(workers: int) -> None:
    """With a logical CPU per worker, whatever the machine has."""
    ray.init(
        address="local",
        num_cpus=workers,
        include_dashboard=False,
        _node_ip_address="127.0.0.1",
        logging_level="ERROR",
        log_to_driver=False,
    )
    connect(None)


def wave(folder: Path, workers: int, shards: int, shard_s: float, outcomes: "Outcomes") -> Dispatcher:
    """Return the dispatcher of production with a crew of sleeping workers."""
    write_manifest(folder / "m.parquet", workers * shards)
    keys = {
        "manifest": str(folder / "m.parquet"), "sweep.seeds": f"0-{SHARD_IMAGES - 1}",
        "sweep.num_inference_steps": [STEPS], "sweep.guidance_scales": [4.0], "sweep.schedulers": ["ddim"],
    }  # fmt: skip
    prepared = prepare(load_job(None, list(keys.items()), date(2026, 1, 1)))
    source = prepared.source.pinned()
    digest = fingerprint(source.folder(), DigestCache(folder / "digests"))
    spec = SleepingSpec(
        model=source,
        facts=RunFacts(model_id="sleeping", model_fingerprint=digest, dtype="float32", darkroom_version="0"),
        output_uri=str(folder / "out"), s3=S3Settings(), device="cpu",
        rows=BatchRows(fixed=2, family=prepared.model.family, dtype="float32", device_bytes=None),
        compiled=False, call={}, threads=1, cache_folder=folder / "digests", launch_id="dispatch", watchdog_s=600.0,
        evaluation_s=shard_s / (SHARD_IMAGES * STEPS * 2), gate=folder / "gate", workers=workers,
    )  # fmt: skip
    images = workers * shards * SHARD_IMAGES
    plan = LeasePlan(
        manifest=prepared.manifest,
        space=Space(axes=prepared.axes, family=prepared.model.family, run_digest=b"\0" * 16),
        selection=Selection(),
        missing=Amount(images=images),
        workers=workers,
        slots=dict.fromkeys(prepared.count.sizes, 1),
        images=SHARD_IMAGES,
    )
    crew = RayCrew(spec, Pool(workers=workers, gpus=0, cpus=1), print, SleepingWorker)
    size = CrewSize(most=workers, slots=1, most_failed_starts=10, window=max(64, 3 * workers))
    return Dispatcher(crew, Planner(planned_leases(plan, IdSet())), size, outcomes, images=images)


class Outcomes:
    """What the dispatcher tells, and when the last image was there."""

    def __init__(self, images: int) -> None:
        self._images = images
        self.tally, self.told = Tally.of(Amount()), Counter[str]()
        self.ended, self.used = 0.0, dict[str, float]()

    def committed(self, outcomes: pa.Table) -> None:
        self.tally.take(outcomes, time.monotonic())
        self.told[outcomes["worker"][0].as_py()] += outcomes.num_rows
        if self.tally.progress.images == self._images:
            self.ended, self.used = time.time(), cpu_s()  # now, while the workers are there

    def found(self, parts: Sequence[str], tasks: Sequence[pa.Table]) -> pa.Table | None:
        raise SystemExit("a worker died")

    def quarantined(self, task: pa.Table) -> None:
        raise SystemExit("a worker died")

    def working(self, process_id: str, drawn: Drawn, ready: int) -> None:
        self.tally.hear({process_id: drawn}, time.monotonic())

    def gone(self, process_id: str) -> None:
        self.tally.forget(process_id)

    def says(self, sentence: str) -> None:
        print(sentence, file=sys.stderr)


def measure(folder: Path, workers: int, shards: int, shard_s: float) -> Measured:
    """Runs in a process of its own."""
    (folder / "gate").mkdir()
    began = time.time()
    start_ray(workers)
    images = workers * shards * SHARD_IMAGES
    watch, outcomes = Watch(folder / "gate", workers), Outcomes(images)
    watch.start()
    wave(folder, workers, shards, shard_s, outcomes).run()
    tally, told, ended, used = outcomes.tally, outcomes.told, outcomes.ended, outcomes.used
    watch.join()
    if tally.progress.ok != images:
        raise SystemExit(f"{images} images were planned: {tally.progress}")
    return Measured(
        workers=workers,
        shards=workers * shards,
        start_s=watch.ready_at() - began,
        took_s=ended - watch.ready_at(),
        ideal_s=shards * shard_s,
        fewest=min(told.values()) // SHARD_IMAGES,
        most=max(told.values()) // SHARD_IMAGES,
        requests=tally.worked.traffic.requests,
        cpu_s={name: seconds - watch.cpu_s[name] for name, seconds in used.items()},
        driver_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
        worker_mib=watch.worker_mib,
        torch_loaded=any("True" in path.read_text() for path in (folder / "gate").iterdir()),
    )


def in_a_process(workers: int, shards: int, shard_s: float) -> Measured:
    with TemporaryDirectory(prefix="darkroom-dispatch-") as folder:
        environment = {
            **os.environ,
            "RAY_AUTH_TOKEN_PATH": f"{folder}/token",
            "RAY_BACKEND_LOG_LEVEL": "fatal",
            # So many processes that start on few cores take longer than Ray expects of one.
            "RAY_worker_register_timeout_seconds": "900",
            "RAY_worker_maximum_startup_concurrency": "4",
            # Workers that only sleep shall not wait for whatever else this machine computes.
            "RAY_worker_niceness": "0",
            # It stays on loopback.
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        }
        environment.pop("RAY_ADDRESS", None)
        Path(folder, "token").write_text("a" * 64)
        words = ["-m", "benchmarks.dispatch", "--measure", folder, str(workers), str(shards), str(shard_s)]
        done = subprocess.run([sys.executable, *words], env=environment, capture_output=True, text=True)
        if done.returncode:
            said = f"{done.stdout[-4000:]}{done.stderr[-4000:]}"
            raise SystemExit(f"{workers} workers ended with {done.returncode}:\n{said}")
        return Measured(**json.loads(Path(folder, MEASURED).read_text()))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, nargs="+", default=[1, 8, 64])
    parser.add_argument("--shards", type=int, default=60, help="per worker")
    parser.add_argument("--shard-s", type=float, default=5.0, help="that a shard sleeps")
    parser.add_argument("--measure", nargs=4, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        folder, workers, shards, shard_s = given.measure
        measured = measure(Path(folder), int(workers), int(shards), float(shard_s))
        Path(folder, MEASURED).write_text(json.dumps(asdict(measured)))
        return
    cores, versions = len(os.sched_getaffinity(0)), f"Python {platform.python_version()}, ray {version('ray')}"
    print(f"{platform.machine()}, {cores} core(s); {versions}; {given.shards} shards of {given.shard_s:g} s per worker")
    print("  ".join(COLUMNS))
    for workers in given.workers:
        measured = in_a_process(workers, given.shards, given.shard_s)
        cells = zip(COLUMNS, measured.cells(), strict=True)
        print("  ".join(f"{cell:>{len(column)}}" for column, cell in cells), flush=True)
        if measured.torch_loaded:
            print("a worker has loaded torch: its memory is not that of a worker that sleeps")


if __name__ == "__main__":
    main()
