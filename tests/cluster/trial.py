"""A job submitted to three nodes, one of which is killed and one added while it runs; then everything is counted."""

import json
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.storage.location import open_store
from tests.cluster.nodes import NODE_CPUS, LocalCluster
from tests.faults.launched import wait_until
from tests.faults.oracle import examine, pixels_of

SHARDS_IN_FLIGHT = 2
"""Of a worker."""
BAD_ROW = "ddpm:timesteps=2000/5"
"""A scheduler with more timesteps than the model was trained with: its image fails, and no other."""
PATIENCE_S = 300.0
Tell = Callable[[str], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Scale:
    """How much is done."""

    prompts: int
    seeds: int
    pause_s: float
    """Each image takes this long besides."""
    shard_images: int = 4
    driver_kills: int = 0
    """Before the node is killed, each in a submission of its own."""

    @property
    def images(self) -> int:
        return self.prompts * self.seeds


SHORT = Scale(prompts=40, seeds=4, pause_s=0.08)
FULL = Scale(prompts=200, seeds=4, pause_s=0.1, driver_kills=2)


class User:
    """Somebody with a job file and a token, and nothing else of the cluster."""

    def __init__(self, cluster: LocalCluster, scale: Scale) -> None:
        self.cluster, self.scale = cluster, scale
        self.folder = cluster.folder / "user"
        self.folder.mkdir()
        self.output = cluster.folder / "out"
        prompts = [f"a {['red', 'blue'][n % 2]} circle {n // 2}" for n in range(scale.prompts)]
        schedulers = [None] * (scale.prompts - 1) + [BAD_ROW]
        table = pa.table({"prompt": prompts, "scheduler": pa.array(schedulers, pa.string())})
        pq.write_table(table, self.folder / "m.parquet")
        (self.folder / "job.yaml").write_text(
            f"manifest: m.parquet\nmodel: shapes\noutput: {{uri: {self.output}}}\n"
            f"sweep: {{seeds: 0-{scale.seeds - 1}, steps: [2], sizes: [[32, 32]]}}\n"
            f"render: {{shard_images: {scale.shard_images}, rows: 4}}\n"
            f"workers: {{count: 2, cpus: {NODE_CPUS}}}\n"
        )

    def start(self, *words: str, **environment: str) -> "subprocess.Popen[str]":
        """A command of Darkroom."""
        return self.start_module("jobs", *words, **environment)

    def submit(self, *words: str) -> "subprocess.Popen[str]":
        return self.start("submit", "job.yaml", "--address", self.cluster.address, *words)

    def ray(self, *words: str) -> "subprocess.Popen[str]":
        """A command of Ray, as it is."""
        return self.start_module("ray.scripts.scripts", *words)

    def committed(self) -> int:
        """Parts so far."""
        return sum(1 for _ in open_store(str(self.output)).list("metadata/"))

    def start_module(self, name: str, *words: str, **environment: str) -> "subprocess.Popen[str]":
        return subprocess.Popen(
            [sys.executable, "-m", name, *words],
            cwd=self.folder,
            env=self.cluster.user(**environment),
            text=True,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            preexec_fn=_hear_ctrl_c,
        )


def _hear_ctrl_c() -> None:
    """Whoever runs the tests in the background may have it ignored, by all children too."""
    signal.signal(signal.SIGINT, signal.default_int_handler)


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What came of a trial."""

    exit_codes: tuple[int, ...]
    """Of the submissions, in order."""
    images: int
    failed: int
    lost: int
    duplicated: int
    corrupt: int
    begun: int
    """How many times any engine began an image."""
    in_flight: int
    """At most, when something was killed."""
    verified: int
    """Exit code of ``darkroom verify``."""
    by_node: dict[str, int]
    """Images of committed shards by node, from the workers' logs."""
    said: str
    """By the last submission."""

    @property
    def again(self) -> int:
        return self.begun - self.images - self.failed


class Trial:
    """Tells what happens and when."""

    def __init__(self, cluster: LocalCluster, scale: Scale, tell: Tell) -> None:
        self.cluster, self.scale = cluster, scale
        self.user = User(cluster, scale)
        self._began, self._tell = time.monotonic(), tell

    def run(self) -> Seen:
        codes = [self._with_driver_killed() for _ in range(self.scale.driver_kills)]
        self._say("darkroom submit")
        with _ended(self.user.submit("--json")) as job:
            self._await_work(job)
            victim = next(node for node in self.cluster.nodes[1:] if node.render_workers())
            self.cluster.kill(victim)
            self._say(f"raylet of {victim.name} killed with SIGKILL, {self.user.committed()} parts committed")
            added = self.cluster.add()
            self._say(f"{added.name} added")
            until = wait_until(lambda: bool(added.render_workers()) or job.poll() is not None, PATIENCE_S)
            self._say(f"a worker on {added.name}" if until and job.poll() is None else "the job ended before")
            said, err = job.communicate(timeout=PATIENCE_S)
        self._say(f"ended with exit code {job.returncode}")
        if job.returncode not in (0, 3):
            raise RuntimeError(said[-3000:] + err[-1000:])
        return self._seen((*codes, job.returncode), said)

    def _with_driver_killed(self) -> int:
        self._say("darkroom submit")
        before = self.user.committed()
        with _ended(self.user.submit()) as job:
            self._await_work(job, before)
            for process in _drivers(self.cluster.folder):
                process.kill()
            self._say(f"driver killed with SIGKILL, {self.user.committed()} parts committed")
            job.communicate(timeout=PATIENCE_S)
        self._say(f"submit ended with exit code {job.returncode}")
        return job.returncode

    def _await_work(self, job: "subprocess.Popen[str]", before: int = 0) -> None:
        """Until both nodes render and some of it is committed."""

        def working() -> bool:
            busy = [node for node in self.cluster.nodes[1:] if node.render_workers()]
            return job.poll() is not None or (len(busy) > 1 and self.user.committed() > before + 3)

        if not wait_until(working, PATIENCE_S, every_s=0.1) or job.poll() is not None:
            raise RuntimeError(f"the job did not get to work: {job.communicate(timeout=180)}")

    def _seen(self, codes: tuple[int, ...], said: str) -> Seen:
        store = open_store(str(self.user.output))
        held = examine(store, pixels_of(store, self.scale.seeds))
        verify = self.user.start("verify", str(self.user.output))
        verify.communicate(timeout=PATIENCE_S)
        self._say(f"darkroom verify: exit code {verify.returncode}")
        per_node = SHARDS_IN_FLIGHT * self.scale.shard_images
        return Seen(
            exit_codes=codes,
            images=held.images,
            failed=len(held.failed),
            lost=self.scale.images - held.images - len(held.failed),
            duplicated=len(held.duplicated),
            corrupt=len(held.corrupt),
            begun=len((self.cluster.folder / "ledger").read_text().splitlines()),
            in_flight=per_node * (1 + 2 * self.scale.driver_kills),
            verified=verify.returncode,
            by_node=_images_by_node(self.cluster),
            said=said,
        )

    def _say(self, sentence: str) -> None:
        self._tell(f"{time.monotonic() - self._began:6.1f} s  {sentence}")


def worker_lines(cluster: LocalCluster) -> Iterator[dict[str, object]]:
    """The JSON lines of all workers, from the files that Ray's dashboard shows by worker."""
    for path in cluster.logs():
        if path.name.startswith("worker-") and path.suffix == ".err":
            for line in path.read_text(errors="replace").splitlines():
                if line.startswith('{"time"'):
                    yield json.loads(line)


def _images_by_node(cluster: LocalCluster) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for line in worker_lines(cluster):
        if line["event"] == "shard":
            counts[str(line["node"])[:8]] += int(str(line["images"]))
    return dict(counts)


def _drivers(folder: Path) -> list[psutil.Process]:
    """Processes of ``darkroom render`` in the cluster."""
    found = []
    for process in psutil.process_iter():
        try:
            ours = Path(process.environ().get("XDG_CACHE_HOME", "")) == folder / "cache"
            if ours and process.cmdline()[1:4] == ["-m", "jobs", "render"]:
                found.append(process)
        except psutil.Error:
            continue
    return found


@contextmanager
def _ended(process: "subprocess.Popen[str]") -> Iterator["subprocess.Popen[str]"]:
    """A process that is over when the context is."""
    try:
        yield process
    finally:
        if process.poll() is None:
            process.kill()
        process.communicate()


def environment_of(folder: Path, scale: Scale) -> dict[str, str]:
    """What the nodes of a cluster need for a trial: the ledger, and images that take a while."""
    return {"LEDGER": str(folder / "ledger"), "PAUSE_S": str(scale.pause_s), "OMP_NUM_THREADS": "1"}
