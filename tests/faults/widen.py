"""A sweep that is interrupted, resumed and widened: exactly what is new is rendered. Another dtype is refused."""

import random
import signal
import tempfile
import time
from collections.abc import Mapping
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.faults.board import Line
from tests.faults.launched import Launch, wait_until

SCALES, WIDER_SCALES = "2,4", "2,4,7"
REFUSAL = "dtype: the run has 'float32', this job 'bfloat16'"

Files = Mapping[str, tuple[int, int]]
"""Of each image its inode and when it was written, ns."""


def measure(seed: int, short: bool, environment: Mapping[str, str] | None = None) -> Line:
    """Two guidance scales, then three; in full with an interruption in the middle of the first two.

    ``environment``: more variables of the launches, such as those with which they join a Ray.
    """
    began = time.monotonic()
    with tempfile.TemporaryDirectory(prefix="darkroom-faults-") as folder:
        sweep = _Sweep(Path(folder), environment, prompts=4 if short else 100, steps=2 if short else 20)
        if not short:
            sweep.interrupt(random.Random(seed))
        sweep.render(SCALES)
        sweep.render(WIDER_SCALES)
        sweep.refuse_another_dtype()
    seconds = time.monotonic() - began
    return Line(name="sweep widened and resumed", figures=sweep.figures, broken=tuple(sweep.broken), seconds=seconds)


class _Sweep:
    """One output and what happens to it."""

    def __init__(self, folder: Path, environment: Mapping[str, str] | None, *, prompts: int, steps: int) -> None:
        self._folder, self._environment, self._prompts, self._steps = folder, environment, prompts, steps
        self._out, self._launches = folder / "out", 0
        self.figures = {"launches": 0, "images": 0, "there when interrupted": 0, "missing": 0, "rendered again": 0}
        self.figures["old files touched"] = 0
        self.broken: list[str] = []
        pq.write_table(pa.table({"prompt": [f"a red circle {n}" for n in range(prompts)]}), folder / "m.parquet")

    def interrupt(self, drawn: random.Random) -> None:
        """SIGINT while images are made; what has begun is committed."""
        launch = self._launch(SCALES)
        wait_until(lambda: bool(self._files()) or not launch.running, timeout_s=300)
        time.sleep(drawn.random())
        launch.process.send_signal(signal.SIGINT)
        self._expect(launch, 130)
        self.figures["there when interrupted"] = len(self._files())
        if not 0 < len(self._files()) < self._planned(SCALES):
            self.broken.append(f"interrupted with {len(self._files())} of {self._planned(SCALES)} images there")

    def render(self, scales: str) -> None:
        """What is not there yet, and nothing else."""
        before = self._files()
        launch = self._launch(scales)
        self._expect(launch, 0)
        after, planned = self._files(), self._planned(scales)
        rendered = _rendered(launch)
        faults = {
            "missing": planned - pq.read_metadata(self._out / "metadata.parquet").num_rows,
            "rendered again": rendered - (planned - len(before)),
            "old files touched": sum(after.get(name) != stamp for name, stamp in before.items()),
        }
        for what, number in faults.items():
            self.figures[what] += number
        self.figures["images"] = len(after)
        self.broken += [f"with {scales}: {number} {what}" for what, number in faults.items() if number]
        if len(after) != planned:
            self.broken.append(f"with {scales}: {len(after)} files for {planned} images")

    def refuse_another_dtype(self) -> None:
        before = self._files()
        launch = self._launch(WIDER_SCALES, "--set", "model.dtype=bfloat16")
        self._expect(launch, 2)
        if REFUSAL not in launch.err.read_text():
            self.broken.append(f"another dtype: {launch.err.read_text()[-300:]}")
        if self._files() != before:
            self.broken.append("another dtype: it wrote images")

    def _launch(self, scales: str, *more: str) -> Launch:
        self.figures["launches"] += 1
        return Launch(
            self._folder,
            ["render", "--manifest", "m.parquet", "--sizes", "32x32", "--steps", str(self._steps), "-o", "out",
             "--guidance-scales", scales, "--set", "workers.count=1", "--set", "render.shard_images=4", *more],
            self._environment,
            harmful=False,
        )  # fmt: skip

    def _expect(self, launch: Launch, code: int) -> None:
        found = launch.wait()
        if found != code:
            self.broken.append(f"exit code {found} in place of {code}: {launch.err.read_text()[-300:]}")

    def _planned(self, scales: str) -> int:
        return self._prompts * len(scales.split(","))

    def _files(self) -> Files:
        found = (path for path in self._out.glob("images/*/*") if not path.name.startswith("."))
        return {path.name: (path.stat().st_ino, path.stat().st_mtime_ns) for path in found}


def _rendered(launch: Launch) -> int:
    """As the launch itself reports it."""
    lines = [line for line in launch.out.read_text().splitlines() if line.startswith("rendered")]
    return int(lines[0].split()[1].replace(",", "")) if lines else 0
