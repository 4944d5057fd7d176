"""How well the dispatcher uses a large cluster: ``python -m benchmarks.simulation``.

The product's own ``Dispatcher``, planning and tally; the workers are pretended, and so is the time: no Ray, nothing
sleeps. Workers differ in speed by a factor of three, start slowly, fail to start, die alone and with their nodes. What
the driver computes takes pretended time too, so that a driver that is too slow shows.

*efficient* is the work of the job over the work that all workers could have done from when they were ready to their
death or the end: what is rendered again and the tail at the end count as lost. *ms* is the driver's CPU per event,
planning and counting included. With ``--sizes`` the job has so many image sizes; *changes* are those of size, per
worker.
"""

import argparse
import random
import resource
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from datetime import date
from itertools import pairwise
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.simulated_crew import MEGAPIXEL_EVALUATIONS_PER_S, SLOTS, WORKERS_PER_NODE, Cluster, SimulatedCrew
from pipeline.config import load_job
from pipeline.distributed.dispatcher import CrewSize, Dispatcher
from pipeline.distributed.outcomes import Tally
from pipeline.distributed.planned import LeasePlan, planned_leases
from pipeline.distributed.report import Drawn
from pipeline.distributed.waves import LEASES_PER_WORKER, LEAST_WINDOW
from pipeline.identity import IdSet
from pipeline.planning.amount import Amount
from pipeline.planning.selection import Selection
from pipeline.planning.tasks import Space
from pipeline.prepare import Prepared, prepare

STEPS = 50
SIDE = 2048
MOST_SEEDS = 1000


class Counting:
    """A listener that counts as a launch does."""

    def __init__(self, crew: SimulatedCrew, images: Amount, workers: int) -> None:
        self._crew, self.tally = crew, Tally.of(images, workers)
        self.quarantines = 0

    def committed(self, outcomes: pa.Table) -> None:
        self.tally.take(outcomes, self._crew.clock())

    def found(self, parts: Sequence[str], tasks: Sequence[pa.Table]) -> pa.Table | None:
        return None

    def quarantined(self, task: pa.Table) -> None:
        self.quarantines += 1

    def working(self, process_id: str, drawn: Drawn, ready: int) -> None:
        self.tally.hear({process_id: drawn}, self._crew.clock())

    def gone(self, process_id: str) -> None:
        self.tally.forget(process_id)

    def says(self, sentence: str) -> None:
        print(sentence, flush=True)


class Planning:
    """A ``Plan`` that is made when it is asked for."""

    def __init__(self, leases: Iterator[pa.Table]) -> None:
        self._leases, self.over, self.given = leases, False, 0

    def next(self) -> pa.Table | None:
        lease = next(self._leases, None)
        self.over = lease is None
        self.given += lease is not None
        return lease


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One launch."""

    images: int
    leases: int
    took_s: float
    efficient: float
    events: int
    driver_s: float
    died: int
    failed_starts: int
    again: int
    """Images that were rendered and lost."""
    quarantines: int
    changes: float
    """Of size, per worker."""
    most_changes: int
    """Of one worker."""
    peak_mib: float

    def lines(self) -> Iterator[str]:
        yield f"{self.images:,} images in {self.leases:,} leases, {self.took_s:,.0f} s: {self.efficient:.2%} efficient"
        yield f"{self.died} workers died, {self.failed_starts} failed to start, {self.again:,} images rendered again"
        yield (
            f"{self.events:,} events, {1000 * self.driver_s / self.events:.3f} ms of the driver each, "
            f"{self.driver_s / self.took_s:.1%} of a core; peak {self.peak_mib:,.0f} MiB"
        )
        yield f"{self.changes:.1f} changes of size per worker, {self.most_changes} at most"


def prepared(folder: Path, images: int, sizes: int, drawn: random.Random) -> Prepared:
    """Return a job of so many images, about; of one size, or each prompt of one of several, as they come."""
    seeds = min(MOST_SEEDS, max(1, images // 100)) if sizes == 1 else 1
    sides = [(SIDE - 64 * n, SIDE) for n in range(sizes)]
    chosen = [drawn.choice(sides) for _ in range(max(1, images // seeds))]
    prompts = pa.array([f"picture {number}" for number in range(len(chosen))])
    columns = {"width": [width for width, _ in chosen], "height": [height for _, height in chosen]}
    pq.write_table(pa.table({"prompt": prompts, **columns}), folder / "m.parquet", row_group_size=1000)
    keys = {
        "manifest": str(folder / "m.parquet"), "sweep.seeds": f"0-{seeds - 1}", "sweep.num_inference_steps": [STEPS],
        "sweep.guidance_scales": [4.0], "sweep.schedulers": ["ddim"],
    }  # fmt: skip
    return prepare(load_job(None, list(keys.items()), date(2026, 1, 1)))


def leases_of(job: Prepared, workers: int, lease_images: int | None) -> tuple[Amount, Iterator[pa.Table]]:
    """Return how much a job is, and its leases as a launch plans them."""
    space = Space(axes=job.axes, family=job.model.family, run_digest=b"\0" * 16)
    amount = job.count.amount
    plan = LeasePlan(
        manifest=job.manifest, space=space, selection=Selection(), missing=amount, workers=workers,
        slots=dict.fromkeys(job.count.sizes, SLOTS), images=lease_images,
    )  # fmt: skip
    return amount, planned_leases(plan, IdSet())


def simulate(cluster: Cluster, amount: Amount, leases: Iterator[pa.Table], drawn: random.Random) -> Measured:
    """Have a job rendered by a pretended cluster."""
    crew, planning = SimulatedCrew(cluster, drawn), Planning(leases)
    listener = Counting(crew, amount, cluster.workers)
    window = max(LEAST_WINDOW, LEASES_PER_WORKER * cluster.workers)
    size = CrewSize(most=cluster.workers, slots=SLOTS, most_failed_starts=max(10, cluster.workers), window=window)
    dispatcher = Dispatcher(crew, planning, size, listener, images=amount.images, clock=crew.clock)
    dispatcher.run()
    progress = listener.tally.progress
    if progress.ok != amount.images:
        raise SystemExit(f"{amount.images} images were planned: {progress}")
    changes = [sum(one != other for one, other in pairwise(keys)) for keys in crew.keys.values()]
    return Measured(
        images=progress.ok, leases=planning.given, took_s=crew.now_s,
        efficient=progress.megapixel_evaluations / crew.able_work, events=crew.told, driver_s=crew.driver_s,
        died=crew.died, failed_starts=crew.failed_starts, again=crew.rendered - progress.ok,
        quarantines=listener.quarantines, changes=dispatcher.changes / cluster.workers,
        most_changes=max(changes), peak_mib=resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024,
    )  # fmt: skip


def images_in(seconds: float, workers: int) -> int:
    """Return how many images workers of middling speed render in a time."""
    return int(seconds * workers * MEGAPIXEL_EVALUATIONS_PER_S / (SIDE * SIDE / 1e6 * STEPS * 2))


def measure(cluster: Cluster, *, sizes: int = 1, lease_images: int | None = None, seed: int = 0) -> Measured:
    """Simulate a launch that takes about as long as the cluster's troubles."""
    drawn = random.Random(seed)
    with TemporaryDirectory(prefix="darkroom-simulation-") as folder:
        job = prepared(Path(folder), images_in(cluster.within_s, cluster.workers), sizes, drawn)
        return simulate(cluster, *leases_of(job, cluster.workers, lease_images), drawn)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--workers", type=int, default=1000)
    parser.add_argument("--seconds", type=float, default=3600.0, help="about how long the launch takes")
    parser.add_argument("--deaths", type=int, default=40, help="of processes")
    parser.add_argument("--lost-nodes", type=int, default=10, help=f"each with {WORKERS_PER_NODE} workers")
    parser.add_argument("--sizes", type=int, default=1, help="image sizes; with several nothing goes wrong")
    parser.add_argument("--lease-images", type=int, default=None, help="instead of what a launch chooses")
    parser.add_argument("--seed", type=int, default=0)
    given = parser.parse_args()
    calm = given.sizes > 1
    deaths, lost = (0, 0) if calm else (given.deaths, given.lost_nodes)
    cluster = Cluster(workers=given.workers, deaths=deaths, lost_nodes=lost, within_s=given.seconds, calm=calm)
    measured = measure(cluster, sizes=given.sizes, lease_images=given.lease_images, seed=given.seed)
    print(f"{given.workers:,} workers, {given.sizes} size(s)", *measured.lines(), sep="\n")


if __name__ == "__main__":
    main()
