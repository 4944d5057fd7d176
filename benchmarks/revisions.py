"""The engine of this tree against another revision's, in alternating pairs: ``python -m benchmarks.revisions REV``.

Both are processes of their own that load the built-in model and then render the same work on request: W1, W2 and W3 as
in ``benchmarks.engine``, float32, without encoding and commit. The other revision is checked out beside this one.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from statistics import median
from tempfile import TemporaryDirectory

from benchmarks.work import WORK

ROOT = Path(__file__).parents[1]
_RENDERER = """
import sys, time
import torch
from benchmarks.work import WORK, task
from pipeline.model.facts import read_facts
from pipeline.model.resolve import BUILT_IN
from pipeline.rendering.engine import Engine
from pipeline.rendering.loading import load_model

count, rows, scheduler = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3]
torch.set_num_threads(1)
facts = read_facts(BUILT_IN["shapes"])
model, side = load_model(BUILT_IN["shapes"], dtype="float32", device="cpu"), facts.native_size[0]
made = {name: WORK[name](lambda p, s, g, n: task(facts.family, scheduler, side, p, s, g, n), count, (5, 25))
        for name in WORK}
list(Engine(model, rows).render(made["W1"][:4]))
print("ready", flush=True)
for line in sys.stdin:
    engine, began = Engine(model, rows), time.perf_counter()
    done = len(list(engine.render(made[line.strip()])))
    print(done / (time.perf_counter() - began), flush=True)
"""


class Revision:
    """A process with the code of one folder."""

    def __init__(self, folder: Path, *options: str) -> None:
        command = [sys.executable, "-c", _RENDERER, *options]
        self._process = subprocess.Popen(
            command, cwd=folder, env={"PYTHONPATH": str(folder), "PATH": ""}, text=True,
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL,
        )  # fmt: skip
        assert self._answer() == "ready"

    def images_per_s(self, work: str) -> float:
        """Render one work."""
        assert self._process.stdin is not None
        self._process.stdin.write(f"{work}\n")
        self._process.stdin.flush()
        return float(self._answer())

    def close(self) -> None:
        """End the process."""
        self._process.communicate()

    def _answer(self) -> str:
        assert self._process.stdout is not None
        line = self._process.stdout.readline().strip()
        if not line:
            raise RuntimeError("the process of one revision has ended")
        return line


@contextmanager
def checked_out(revision: str) -> Iterator[Path]:
    """A folder with the files of a revision."""
    with TemporaryDirectory(prefix="darkroom-revision-") as temporary:
        folder = Path(temporary) / "tree"
        subprocess.run(["git", "worktree", "add", "--detach", "-q", str(folder), revision], cwd=ROOT, check=True)
        try:
            yield folder
        finally:
            subprocess.run(["git", "worktree", "remove", "--force", str(folder)], cwd=ROOT, check=True)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("revision", help="as git names it")
    parser.add_argument("--work", nargs="+", choices=list(WORK), default=list(WORK))
    parser.add_argument("--tasks", type=int, default=32, help="images per run")
    parser.add_argument("--pairs", type=int, default=5)
    parser.add_argument("--rows", type=int, default=16)
    parser.add_argument("--scheduler", default="ddim")
    given = parser.parse_args()
    options = str(given.tasks), str(given.rows), given.scheduler
    with checked_out(given.revision) as folder:
        other, ours = Revision(folder, *options), Revision(ROOT, *options)
        print(f"{given.tasks} images, {given.pairs} pairs, {given.rows} rows, {given.scheduler}, one thread each")
        print(f"work  {given.revision[:12]:>12} images/s  this tree images/s  ratio")
        for work in given.work:
            pairs = [(other.images_per_s(work), ours.images_per_s(work)) for _ in range(given.pairs)]
            before, now = (median(pair[index] for pair in pairs) for index in range(2))
            print(f"{work:4} {before:22.2f} {now:19.2f} {median(b / a for a, b in pairs):6.2f}", flush=True)
        other.close()
        ours.close()


if __name__ == "__main__":
    main()
