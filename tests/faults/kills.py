"""Workers, drivers and the store killed while images are made: what is lost, duplicated, corrupt, rendered again."""

import json
import os
import random
import subprocess
import tempfile
import time
from collections import Counter, defaultdict
from collections.abc import Callable, Mapping, Sequence
from contextlib import closing
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from unittest.mock import patch

import boto3
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.identity import ids_from_bytes
from pipeline.output.index import load_index
from pipeline.storage.location import open_store
from tests.conftest import aws_environment
from tests.faults.board import Line
from tests.faults.launched import ROOT, Launch, stop_all, wait_until
from tests.faults.oracle import examine, pixels_of
from tests.servers.swift import SwiftServer

COUNTING = Path(__file__).parent / "counting"
MOST_AGAIN = 1.2
"""Times the images in flight."""
MOST_OUTPUTS = 8
PATIENCE_S = 900.0
"""For a launch to get on with its work, or to end."""
PAUSE_S = 0.3
"""At most so long after work is seen, a kill comes: at any moment of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is done."""

    prompts: int
    seeds: int
    steps: int
    shard_images: int
    workers: int
    worker_kills: int
    driver_kills: int
    worker_kills_per_launch: int
    """Before its driver is killed; far from the deaths that end a job."""
    outages_s: tuple[float | None, ...] = ()
    """How long the store is gone after each of its kills; None: until the launch gives up."""
    stored_seeds: int = 1
    """Of the job that writes to that store."""
    compared: bool = False
    """Every picture with the one that a launch without faults makes."""


FULL = Scale(
    prompts=100,
    seeds=8,
    steps=12,
    shard_images=8,
    workers=min(2, os.cpu_count() or 1),
    worker_kills=30,
    driver_kills=10,
    worker_kills_per_launch=3,
    outages_s=(1.0, 3.0, 5.0, 8.0, None, 2.0),
    stored_seeds=5,
    compared=True,
)
SHORT = Scale(
    prompts=24,
    seeds=6,
    steps=8,
    shard_images=4,
    workers=1,
    worker_kills=2,
    driver_kills=1,
    worker_kills_per_launch=2,
)


def measure(seed: int, short: bool) -> Line:
    """In full on a local directory and on a real S3 server; in short a few kills on a directory."""
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="darkroom-faults-") as folder:
        trial = Trial(Path(folder), SHORT if short else FULL, random.Random(seed))
        try:
            trial.run()
        except OverError as why:
            trial.broken.append(str(why))
        finally:
            stop_all(Path(folder))
    seconds = time.monotonic() - began
    return Line(name="kills", figures=trial.figures(), broken=tuple(trial.broken), seconds=seconds)


class OverError(Exception):
    """Darkroom did what it should not, and it makes no sense to go on."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Job:
    """The same pictures wherever they go."""

    manifest: Path
    scale: Scale
    seeds: int

    @property
    def images(self) -> int:
        return self.scale.prompts * self.seeds

    def words(self, output: str) -> list[str]:
        scale = self.scale
        return [
            "--manifest", str(self.manifest), "--model", "shapes", "--sizes", "32x32", "--steps", str(scale.steps),
            "--seeds", f"0-{self.seeds - 1}", "--output", output, "--set", f"workers.count={scale.workers}",
            "--set", f"render.shard_images={scale.shard_images}", "--set", "render.rows=8",
        ]  # fmt: skip


class Output:
    """Where a job goes, through as many launches as that takes."""

    def __init__(self, folder: Path, job: Job, uri: str | None = None) -> None:
        self.job, self.uri = job, uri or str(folder / "out")
        self.store = open_store(self.uri)
        self._folder, self._ledger = folder, folder / "ledger"
        self.commands = 0

    def start(self, *words: str) -> Launch:
        """A launch, unless other words say what to start."""
        self.commands += 1
        environment = {"PYTHONPATH": f"{COUNTING}{os.pathsep}{ROOT}", "LEDGER": str(self._ledger)}
        words = words or ("render", *self.job.words(self.uri))
        return Launch(self._folder / str(self.commands), words, environment)

    def ledger(self) -> list[tuple[str, int]]:
        """What the engines of all launches have begun, in order: task and process."""
        lines = self._ledger.read_text().splitlines() if self._ledger.exists() else []
        return [(task_id, int(pid)) for task_id, pid in map(str.split, lines)]

    def in_flight(self, since: int) -> dict[int, set[str]]:
        """Tasks that were begun after so many lines of the ledger and are not committed, by process."""
        begun = self.ledger()[since:]
        ids = ids_from_bytes(bytes.fromhex("".join(task_id for task_id, _ in begun)))
        committed = load_index(self.store).all().contains(ids).tolist()
        held = defaultdict[int, set[str]](set)
        for (task_id, pid), is_there in zip(begun, committed, strict=True):
            if not is_there:
                held[pid].add(task_id)
        return held


@dataclass(frozen=True, slots=True)
class Blow:
    """A kill that landed."""

    lost: frozenset[str]
    """Tasks that were in flight: begun, and not committed."""
    line: int
    """So long was the ledger then."""

    def again(self, ledger: Sequence[tuple[str, int]]) -> int:
        """How many of them were begun again."""
        return len(self.lost & {task_id for task_id, _ in ledger[self.line :]})


class Blows:
    """Strikes a launch in the middle of its work, and no task twice: two deaths would make it a suspect."""

    def __init__(self, launch: Launch, output: Output, drawn: random.Random) -> None:
        self._launch, self._output, self._drawn = launch, output, drawn
        self._since = len(output.ledger())
        self._hit = frozenset[str]()
        """What was in flight at the last blow."""

    def strike(self, blow: Callable[[Sequence[int]], list[Blow]]) -> list[Blow]:
        """Give ``blow`` the pids of the processes that render; return the kills that landed, none at the end."""
        while self._await_work():
            time.sleep(self._drawn.uniform(0, PAUSE_S))
            in_flight = self._in_flight()
            fresh = in_flight and not self._together(in_flight) & self._hit
            if fresh and self._launch.running and (landed := blow([*in_flight])):
                self._hit = frozenset[str]().union(*(one.lost for one in landed))
                return landed
        return []

    def worker(self, rendering: Sequence[int]) -> list[Blow]:
        """SIGKILL a worker that renders, or all of them at once."""
        chosen = rendering if self._drawn.random() < 0.5 else rendering[:1]
        victims = [psutil.Process(pid) for pid in chosen]
        for victim in victims:
            victim.kill()
        killed = psutil.wait_procs(victims, timeout=PATIENCE_S)[0]
        held, line = self._output.in_flight(self._since), len(self._output.ledger())
        return [Blow(frozenset(held.get(victim.pid, ())), line) for victim in killed]

    def driver(self, _: Sequence[int]) -> list[Blow]:
        """SIGKILL the driver and everything it started."""
        self._launch.kill()
        return [self.lost()]

    def lost(self) -> Blow:
        """Return what the launch has begun and not committed, whoever has begun it."""
        return Blow(self._together(self._output.in_flight(self._since)), len(self._output.ledger()))

    def _await_work(self) -> bool:
        """False when the launch is over."""

        def seen() -> bool:
            in_flight = self._in_flight()
            return not self._launch.running or bool(in_flight and not self._together(in_flight) & self._hit)

        if not wait_until(seen, PATIENCE_S, every_s=0.1):
            raise OverError(f"a launch did not go on for {PATIENCE_S:g} s")
        return self._launch.running

    def _in_flight(self) -> dict[int, set[str]]:
        """Of the processes that live."""
        return {pid: held for pid, held in self._output.in_flight(self._since).items() if psutil.pid_exists(pid)}

    @staticmethod
    def _together(in_flight: Mapping[int, set[str]]) -> frozenset[str]:
        return frozenset[str]().union(*in_flight.values())


class Trial:
    """Everything one measurement does, and what came of it."""

    def __init__(self, folder: Path, scale: Scale, drawn: random.Random) -> None:
        self.broken: list[str] = []
        self._folder, self._scale, self._drawn = folder, scale, drawn
        self._counts: Counter[str] = Counter()
        self._landed: list[Blow] = []
        """On the present output."""
        self._per_kill: list[str] = []
        prompts = [f"a {colour} circle {number}" for number in range(scale.prompts // 2) for colour in ("red", "blue")]
        pq.write_table(pa.table({"prompt": prompts}), folder / "m.parquet")
        self._job = Job(manifest=folder / "m.parquet", scale=scale, seeds=scale.seeds)
        self._reference = Output(folder / "reference", self._job)

    def figures(self) -> Mapping[str, int | float | str]:
        counts, scale = self._counts, self._scale
        landed = counts["workers"] + counts["drivers"]
        return {
            "worker kills landed": counts["workers"],
            "driver kills landed": counts["drivers"],
            **({"store kills landed": counts["stores"]} if scale.outages_s else {}),
            "launches": counts["launches"],
            "images": counts["images"],
            **{name: counts[name] for name in ("lost", "duplicated", "corrupt")},
            "rendered again per kill of workers and drivers": counts["again"] / max(1, landed),
            "in flight then": counts["in flight"] / max(1, landed),
            f"per kill, in flight and of them again, leases of {scale.shard_images}": " ".join(self._per_kill),
            **({"rendered again after store kills": counts["again, store"]} if scale.outages_s else {}),
        }

    def run(self) -> None:
        if self._scale.compared:
            self._plan_and_render(self._reference)
        for number in range(MOST_OUTPUTS):
            if self._is_enough():
                break
            output = Output(self._folder / str(number), self._job)
            self._disturb(output)
            self._counts["again"] += self._finish(output)
            self._note(output)
        if not self._is_enough():
            self.broken.append("fewer kills landed than wanted")
        if self._counts["again"] > MOST_AGAIN * self._counts["in flight"]:
            self.broken.append("kills of workers and drivers had more rendered again than was in flight")
        if self._scale.outages_s:
            self._kill_store(replace(self._job, seeds=self._scale.stored_seeds))

    def _note(self, output: Output) -> None:
        """Keep what each kill cost."""
        ledger = output.ledger()
        self._per_kill += [f"{len(blow.lost)}/{blow.again(ledger)}" for blow in self._landed]
        self._counts["in flight"] += sum(len(blow.lost) for blow in self._landed)
        self._landed.clear()

    def _is_enough(self) -> bool:
        counts, scale = self._counts, self._scale
        return counts["workers"] >= scale.worker_kills and counts["drivers"] >= scale.driver_kills

    def _plan_and_render(self, reference: Output) -> None:
        """What has to come out, made without faults."""
        plan = reference.start("plan", *self._job.words(reference.uri), "--json")
        _expect(plan, 0)
        _expect(reference.start(), 0)
        planned = json.loads(plan.out.read_text())["images_planned"]
        made = len(pixels_of(reference.store, self._job.seeds))
        if not planned == made == self._job.images:
            self.broken.append(f"{planned} images planned, {made} made without faults")

    def _disturb(self, output: Output) -> None:
        """Launches that lose some workers, then their driver; until enough is killed or the job is done."""
        code: int | None = None
        while not self._is_enough() and code in (None, 1):
            launch = output.start()
            blows, landed = Blows(launch, output, self._drawn), list[Blow]()
            while len(landed) < self._scale.worker_kills_per_launch and (killed := blows.strike(blows.worker)):
                landed += killed
            ended = blows.strike(blows.driver)
            # Too many deaths end a job with 1; that is one more launch.
            code = None if ended else _expect(launch, *((0, 1) if landed else (0,)))
            stop_all(launch.folder)
            self._counts.update(launches=1, workers=len(landed), drivers=len(ended))
            self._landed += [*landed, *ended]

    def _kill_store(self, job: Job) -> None:
        server = SwiftServer(self._folder / "swift")
        server.start()
        try:
            with patch.dict(os.environ, aws_environment(server)):
                with closing(boto3.client("s3")) as client:
                    client.create_bucket(Bucket="kills")
                output = Output(self._folder / "stored", job, "s3://kills/run")
                lost = self._disturb_store(output, server)
                again = self._counts["again, store"] = self._finish(output)
        finally:
            server.kill()
        if again > MOST_AGAIN * lost:
            self.broken.append("kills of the store had more rendered again than was in flight")

    def _disturb_store(self, output: Output, server: SwiftServer) -> int:
        """Return how many images were in flight where launches gave up."""
        lost = 0
        launch = output.start()
        blows = Blows(launch, output, self._drawn)
        for outage_s in self._scale.outages_s:
            if not blows.strike(partial(_kill_store, server, blows)):
                raise OverError(f"a launch ended before the store was killed, with {launch.wait(PATIENCE_S)}")
            self._counts["stores"] += 1
            if outage_s is None:
                _expect(launch, 1)
            else:
                time.sleep(outage_s)
            server.start()
            if not launch.running:
                lost += len(blows.lost().lost)
                _expect(launch, 1)
                if any(word in launch.err.read_text() for word in ("Traceback", "ray.data")):
                    self.broken.append("a launch that gave up said more than one block")
                self._counts["launches"] += 1
                launch = output.start()
                blows = Blows(launch, output, self._drawn)
        _expect(launch, 0)
        self._counts["launches"] += 1
        return lost

    def _finish(self, output: Output) -> int:
        """Launch once without faults, and look at what there is; returns the images begun again."""
        self._counts["launches"] += 1
        _expect(output.start(), 0)
        wanted = pixels_of((self._reference if self._scale.compared else output).store, output.job.seeds)
        held = examine(output.store, wanted)
        lost = output.job.images - held.images
        self.broken += [f"{output.uri}: {sentence}" for sentence in held.broken()]
        self.broken += [f"{output.uri}: {lost} of {output.job.images} images lost"] if lost else []
        self._counts.update(images=held.images, lost=lost, duplicated=len(held.duplicated), corrupt=len(held.corrupt))
        _expect(output.start("verify", output.uri), 0)
        return len(output.ledger()) - held.images


def _expect(launch: Launch, *codes: int) -> int:
    """Wait for its exit code, which must be one of these."""
    try:
        code = launch.wait(PATIENCE_S)
    except subprocess.TimeoutExpired:
        raise OverError(f"{launch.words[0]} did not end in {PATIENCE_S:g} s") from None
    if code not in codes:
        said = (launch.err.read_text() + launch.out.read_text())[-500:]
        raise OverError(f"{launch.words[0]} ended with {code}: {said}")
    return code


def _kill_store(server: SwiftServer, blows: Blows, _: Sequence[int]) -> list[Blow]:
    lost = blows.lost()
    server.kill()
    return [lost]
