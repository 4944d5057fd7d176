"""How fast planning is and how much memory it takes: ``python -m benchmarks.planning``.

Counts and plans manifests in a process each, and prints tasks per second, the peak memory of each, and which heavy
libraries were loaded: 10^5 and 10^6 prompts × 20 points; 2 × 10^6 captions of 5 to 120 words, of which those that the
text encoder cuts are counted; 10^6 rows with a seed, guidance and step count of their own (the shape of DiffusionDB),
all of different prompts, and of 10^5 prompts.
"""

import json
import resource
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

SWEEP = [("sweep.seeds", "0-4"), ("sweep.guidance_scales", [1, 3, 5, 8])]
BATCH = 50_000
CASES = (
    ("sweep", 100_000, 100_000),
    ("sweep", 1_000_000, 1_000_000),
    ("captions", 2_000_000, 2_000_000),
    ("own", 1_000_000, 1_000_000),
    ("own", 1_000_000, 100_000),
)
"""Kind, rows, different prompts."""


def write_manifest(path: Path, kind: str, rows: int, prompts: int) -> None:
    random = np.random.default_rng(0)
    writer = None
    for start in range(0, rows, BATCH):
        numbers = range(start, start + BATCH)
        texts = _captions(random, numbers) if kind == "captions" else [_prompt(n % prompts) for n in numbers]
        columns = {"prompt": pa.array(texts)}
        if kind == "own":
            columns["seed"] = pa.array(random.integers(0, 2**32, BATCH))
            columns["guidance_scale"] = pa.array(random.choice([5.0, 7.0, 7.5, 12.0], BATCH))
            columns["steps"] = pa.array(random.integers(10, 151, BATCH))
        table = pa.table(columns)
        writer = writer or pq.ParquetWriter(path, table.schema)
        writer.write_table(table)
    assert writer is not None
    writer.close()


def _prompt(number: int) -> str:
    return f"a photograph of object {number}, studio light, sharp"


def _captions(random: np.random.Generator, numbers: range) -> list[str]:
    """Captions of 5 to 120 words; a few of 20,000 words are in most of them, as in a language."""
    lengths = random.integers(5, 121, len(numbers))
    ranks = np.minimum(random.zipf(1.3, lengths.sum()), 20_000)
    words = np.array([f"w{np.base_repr(rank, 36).lower()}" for rank in range(20_001)])[ranks]
    ends = lengths.cumsum()
    return [
        f"{number} {' '.join(words[end - length : end])}"
        for number, length, end in zip(numbers, lengths, ends, strict=True)
    ]


def measure(manifest: str, with_ids: bool) -> dict[str, object]:
    """Runs in a process of its own."""
    from pipeline.config import load_job
    from pipeline.identity import IdSet
    from pipeline.planning.tasks import Space, planned_amount
    from pipeline.prepare import numbered_batches, prepare, select

    sweep = [] if "own" in Path(manifest).name else SWEEP
    job = load_job(None, [("manifest", manifest), *sweep], date.today())
    began = time.perf_counter()
    prepared = prepare(job)
    counted_s = time.perf_counter() - began
    images = prepared.count.amount.images
    ids_s = 0.0
    if with_ids:
        began = time.perf_counter()
        space = Space(axes=prepared.axes, family=prepared.model.family, run_digest=bytes(16))
        selection = select(prepared, limit=None, sample=None)
        whole, _ = planned_amount(numbered_batches(prepared.manifest), space, selection, IdSet())
        ids_s = time.perf_counter() - began
        assert whole.images == images
    heavy = [name for name in ("torch", "ray", "diffusers") if name in sys.modules]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    cut = prepared.count.effects.cut
    return {"images": images, "cut": cut, "count_s": counted_s, "ids_s": ids_s, "peak_mib": peak, "heavy": heavy}


def main() -> None:
    if len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[1], sys.argv[2] == "ids")))
        return
    print(f"pyarrow {pa.__version__}, Python {sys.version.split()[0]}; one process each, one core")
    names = ("kind", "rows", "prompts", "images", "cut", "count s", "ids s", "ids/s", "MiB count", "with ids")
    print("".join(f"{name:>11}" for name in names))
    with TemporaryDirectory() as folder:
        for kind, rows, prompts in CASES:
            path = Path(folder) / f"{kind}-{rows}-{prompts}.parquet"
            write_manifest(path, kind, rows, prompts)
            counted, made = (_in_a_process(path, mode) for mode in ("count", "ids"))
            assert not counted["heavy"], counted["heavy"]
            assert not made["heavy"], made["heavy"]
            rate = made["images"] / made["ids_s"]
            whole = [f"{value:,}" for value in (rows, prompts, made["images"], made["cut"])]
            times = [f"{counted['count_s']:.2f}", f"{made['ids_s']:.1f}", f"{rate:,.0f}"]
            peaks = [f"{run['peak_mib']:.0f}" for run in (counted, made)]
            print("".join(f"{cell:>11}" for cell in (kind, *whole, *times, *peaks)), flush=True)
    print("neither torch nor Ray was loaded")


def _in_a_process(path: Path, mode: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.planning", str(path), mode]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    measured: dict[str, float] = json.loads(said)
    return measured


if __name__ == "__main__":
    main()
