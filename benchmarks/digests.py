"""Whether the demo's pictures are the same bytes however they are rendered: ``python -m benchmarks.digests``.

Renders the demo job again and again, then with one and two workers, its manifest shuffled, in other shards, and with
other prompts between its own. Each line has a digest over the sorted (task_id, pixel_sha256) pairs of the demo's own
images; any that differs from the first ends with exit code 1.
"""

import argparse
import subprocess
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from hashlib import sha256
from itertools import product
from pathlib import Path
from random import Random
from tempfile import TemporaryDirectory
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.work import prompts
from pipeline.config import load_job

ROOT = Path(__file__).resolve().parent.parent
JOB = ROOT / "jobs" / "demo.yaml"

Row = Mapping[str, Any]
"""Of a manifest."""


@dataclass(frozen=True, kw_only=True)
class Variant:
    """One way to render."""

    name: str
    rows: Sequence[Row]
    settings: tuple[str, ...] = ()


def variants(rows: Sequence[Row], runs: int, seed: int) -> Iterator[Variant]:
    """As it is ``runs`` times, then with one thing different each."""
    for number in range(runs):
        yield Variant(name=f"run {number + 1}", rows=rows)
    yield Variant(name="1 worker", rows=rows, settings=("workers.count=1",))
    yield Variant(name="2 workers", rows=rows, settings=("workers.count=2",))
    yield Variant(name="shuffled", rows=Random(seed).sample(rows, len(rows)))
    yield Variant(name="shards of 5", rows=rows, settings=("render.shard_images=5",))
    others = ({**row, "prompt": other} for row, other in zip(rows, prompts(len(rows)), strict=True))
    yield Variant(name="strangers", rows=[row for pair in zip(others, rows, strict=True) for row in pair])


def demo_rows(folder: Path, limit: int | None, seed: int) -> list[Row]:
    """The demo's manifest; with a limit, so many of its images drawn by lot, each a row of its own."""
    manifest = folder / "demo.parquet"
    darkroom("manifest", "build", str(ROOT / "manifests" / "demo.csv"), str(manifest))
    rows: list[Row] = pq.read_table(manifest).to_pylist()
    if limit is None:
        return rows
    sweep = load_job(JOB, [], date.today()).sweep
    axes = sweep.seeds, sweep.guidance_scales or (), sweep.num_inference_steps or ()
    images = [
        {**row, "seed": own, "guidance_scale": scale, "num_inference_steps": steps}
        for row, (own, scale, steps) in product(rows, product(*axes))
    ]
    return Random(seed).sample(images, min(limit, len(images)))


def rendered(variant: Variant, folder: Path) -> dict[str, str]:
    """Digests of the pixels by task id."""
    folder.mkdir()
    pq.write_table(pa.Table.from_pylist(variant.rows), folder / "m.parquet")
    settings = [word for setting in variant.settings for word in ("--set", setting)]
    darkroom("render", str(JOB), "--manifest", str(folder / "m.parquet"), "-o", str(folder / "out"), *settings)
    metadata = pq.read_table(folder / "out" / "metadata.parquet", columns=["task_id", "pixel_sha256"])
    return dict(zip(*(metadata[name].to_pylist() for name in metadata.column_names), strict=True))


def darkroom(*words: str) -> None:
    """Run the command; what it says is shown when it fails."""
    done = subprocess.run([sys.executable, "-m", "jobs", *words], cwd=ROOT, capture_output=True, text=True)
    if done.returncode:
        raise SystemExit(f"darkroom {' '.join(words)}: exit code {done.returncode}\n{done.stderr}")


def digest(pictures: Mapping[str, str | None]) -> str:
    """Over the sorted pairs, 16 hex digits."""
    return sha256(repr(sorted(pictures.items())).encode()).hexdigest()[:16]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=10, help="of the job as it is")
    parser.add_argument("--limit", type=int, help="images; all of the demo's if left out")
    parser.add_argument("--seed", type=int, default=0, help="of the order and of the lot")
    given = parser.parse_args()
    first: dict[str, str] = {}
    differ = 0
    print(f"{'run':<12} {'images':>6}  {'digest':<16}  same")
    with TemporaryDirectory(prefix="darkroom-benchmark-") as folder:
        rows = demo_rows(Path(folder), given.limit, given.seed)
        for number, variant in enumerate(variants(rows, given.runs, given.seed)):
            found = rendered(variant, Path(folder) / str(number))
            first = first or found
            own = {task: found.get(task) for task in first}
            differ += own != first
            same = "yes" if own == first else "no"
            print(f"{variant.name:<12} {len(found):>6}  {digest(own)}  {same}", flush=True)
    raise SystemExit(1 if differ else 0)


if __name__ == "__main__":
    main()
