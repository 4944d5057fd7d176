"""How well the time left is told: ``python -m benchmarks.eta``.

Renders W3 (every image its own step count and guidance scale) with ``darkroom render``'s launch and compares, at every
commit from one third of the images on, the time left that people are shown with the time it then took.
"""

import argparse
import tempfile
import time
from datetime import date
from pathlib import Path

from benchmarks.launched import made_tasks, surroundings, write_manifest
from pipeline.config import load_job
from pipeline.distributed.launch import LaunchOptions, launch
from pipeline.distributed.pace import left_s
from pipeline.distributed.report import Progress
from pipeline.prepare import prepare


def told(folder: Path, images: int, workers: int, steps: tuple[int, ...]) -> list[tuple[float, float, float]]:
    """(share of images done, seconds left as told, seconds it took) at every commit."""
    write_manifest(made_tasks("W3", images, steps), folder / "m.parquet")
    settings: list[tuple[str, object]] = [("manifest", str(folder / "m.parquet")), ("output.uri", str(folder / "out"))]
    settings += [("workers.count", workers), ("workers.gpus", 0)]
    seen: list[tuple[float, float | None, float]] = []

    def update(progress: Progress) -> None:
        now = time.monotonic()
        seen.append((progress.images / images, left_s(now, progress), now))

    launch(
        prepare(load_job(None, settings, date.today())),
        LaunchOptions(address=None, cache_folder=folder / "cache"),
        lambda _: None,
        update,
    )
    end = seen[-1][2]
    return [(share, left, end - at) for share, left, at in seen if left is not None]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=480)
    parser.add_argument("--workers", type=int, default=2, help="of one thread each")
    parser.add_argument("--steps", type=int, nargs=2, default=(5, 50), help="fewest and most inference steps")
    given = parser.parse_args()
    print(f"{surroundings()}; {given.images} images, {given.workers} workers")
    with tempfile.TemporaryDirectory(prefix="darkroom-benchmark-") as folder:
        points = told(Path(folder), given.images, given.workers, tuple(given.steps))
    print(f"{'done':>6} {'told s':>8} {'took s':>8} {'off':>7}")
    for share, left, took in points:
        print(f"{share:>6.0%} {left:>8.1f} {took:>8.1f} {_off(left, took, points):>7.1%}")
    late = [_off(left, took, points) for share, left, took in points if 1 / 3 <= share < 1]
    print(
        f"from one third on at most {max(late):.1%} off, of the time left or of a tenth of the whole, if that is more"
    )


def _off(left: float, took: float, points: list[tuple[float, float, float]]) -> float:
    """Relative to what was left; a few seconds before the end, to a tenth of the whole run."""
    return abs(left - took) / max(took, points[0][2] / 10)


if __name__ == "__main__":
    main()
