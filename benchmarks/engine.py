"""The engine against what people write today: images per second, in alternating pairs.

    python -m benchmarks.engine
    python -m benchmarks.engine --dtype bfloat16 --compile
    python -m benchmarks.engine --host

Darkroom here is the engine with PNG encoding and commit, without Ray. ``c`` is the network's own gain from batching,
rows/s at the engine's row count over rows/s at 2: the ceiling of what batching can do for it.

``--host`` times what is done outside the network alone, per step with 64 tasks in the batch, and exits with 1 when that
is not as many times faster than one scheduler of diffusers per task as it should be.
"""

import argparse
import platform
import statistics
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import diffusers
import torch

from benchmarks.contestants import Darkroom
from benchmarks.host_time import host_times
from benchmarks.stock import Batched, Contestant, Loop, seconds
from benchmarks.work import WORK, task
from pipeline.model.facts import read_facts
from pipeline.model.resolve import BUILT_IN
from pipeline.recipe import RenderTask
from pipeline.rendering.calibration import measure
from pipeline.rendering.loading import LoadedModel, load_model


class Gain:
    """The network's own gain from batching, measured again and again beside everything else: machines are noisy."""

    def __init__(self, model: LoadedModel, rows: int, side_px: int) -> None:
        self._model, self._rows, self._side_px = model, rows, side_px
        self.seen: list[float] = []

    def measure(self) -> None:
        few, many = (
            measure(self._model, rows, self._side_px, self._side_px, 1.0).evaluations_per_s for rows in (2, self._rows)
        )
        self.seen.append(many / few)

    @property
    def median(self) -> float:
        return statistics.median(self.seen)


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One rival on one work; medians over the pairs."""

    work: str
    rival: str
    images_per_s: tuple[float, float]
    """The rival's and Darkroom's."""
    ratio: float
    real_rows: float

    def as_text(self, gain: float | None) -> str:
        share = "" if gain is None else f"{self.ratio / gain:>8.2f}"
        theirs, ours = self.images_per_s
        return (
            f"{self.work:>4} {self.rival:>5} {theirs:>15.2f} {ours:>18.2f} {self.ratio:>6.2f} {share:>8} "
            f"{self.real_rows:>10.3f}"
        )


def compare(
    work: str, name: str, tasks: Sequence[RenderTask], rival: Contestant, darkroom: Darkroom, number: int, gains: Gain
) -> Compared:
    """Alternating pairs; both render a few tasks first, so that nothing is loaded or compiled on the clock."""
    seconds(rival, tasks[:4])
    seconds(darkroom, tasks[:4])
    pairs = []
    for _ in range(number):
        gains.measure()
        theirs, before = seconds(rival, tasks), darkroom.counters
        ours = seconds(darkroom, tasks)
        pairs.append((theirs, ours, (darkroom.counters - before).real_rows))
    theirs, ours, filled = (statistics.median(pair[index] for pair in pairs) for index in range(3))
    return Compared(
        work=work,
        rival=name,
        images_per_s=(len(tasks) / theirs, len(tasks) / ours),
        ratio=statistics.median(theirs / ours for theirs, ours, _ in pairs),
        real_rows=filled,
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", type=Path, default=BUILT_IN["shapes"])
    parser.add_argument("--work", nargs="+", choices=list(WORK), default=list(WORK))
    parser.add_argument("--tasks", type=int, default=64, help="images per run")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--batch", type=int, default=16, help="images per call of B1")
    parser.add_argument("--steps", type=int, nargs=2, default=(5, 25), help="fewest and most inference steps")
    parser.add_argument("--scheduler", default="ddim")
    parser.add_argument("--dtype", default="float32")
    parser.add_argument("--device", default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--threads", type=int, default=1, help="CPU threads")
    parser.add_argument("--compile", action="store_true", help="B2 in place of B1, and Darkroom compiled too")
    parser.add_argument("--host", action="store_true", help="time the host's work outside the network, nothing else")
    given = parser.parse_args()
    torch.set_num_threads(given.threads)
    facts = read_facts(given.model)
    side = facts.native_size[0]
    print(
        f"{facts.class_name} at {side} px, {given.dtype}{', compiled' if given.compile else ''}, {given.device}, "
        f"{given.threads} thread(s), {platform.processor() or platform.machine()}; torch {torch.__version__}, "
        f"diffusers {diffusers.__version__}; {given.tasks} images, {given.pairs} pairs, {given.rows} rows, seed 0"
    )
    darkroom_model = load_model(given.model, dtype=given.dtype, device=given.device, compiled=given.compile)
    if given.host:
        print(f"{'schedulers of 64 tasks':32}  former ms  ours ms  ratio  at least")
        times = host_times(darkroom_model, 2 * facts.size_factor)
        print(*times, sep="\n")
        sys.exit(any(one.ratio < one.required for one in times))
    gains = Gain(darkroom_model, given.rows, side)
    darkroom = Darkroom(darkroom_model, given.rows)
    stock = (given.model, facts.class_name, given.dtype, given.device)
    batched = "B2" if given.compile else "B1"
    rivals: dict[str, Contestant] = {
        "B0": Loop(*stock),
        batched: Batched(*stock, given.batch, compiled=given.compile),
    }
    lines = []
    for work in given.work:
        tasks = WORK[work](
            lambda p, s, g, n: task(facts.family, given.scheduler, side, p, s, g, n), given.tasks, tuple(given.steps)
        )
        for name, rival in rivals.items():
            lines.append(compare(work, name, tasks, rival, darkroom, given.pairs, gains))
            print(lines[-1].as_text(None), flush=True)
    print(f"c = {gains.median:.2f}: rows/s at {given.rows} over rows/s at 2, median of {len(gains.seen)} pairs")
    print("work rival  rival images/s  darkroom images/s  ratio  ratio/c  real rows")
    for line in lines:
        print(line.as_text(gains.median))


if __name__ == "__main__":
    main()
