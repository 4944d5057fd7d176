"""How fast planning is and how much memory it takes: ``python -m benchmarks.planning``.

Counts and plans 10^5 and 10^6 prompt rows × 20 points, each in a process of its own, and prints tasks per second,
the peak memory of each, and which heavy libraries were loaded.
"""

import json
import resource
import subprocess
import sys
import time
from datetime import date
from pathlib import Path
from tempfile import TemporaryDirectory

import pyarrow as pa
import pyarrow.parquet as pq

ROWS = (100_000, 1_000_000)


def write_manifest(path: Path, rows: int) -> None:
    schema = pa.schema([("prompt", pa.string())])
    with pq.ParquetWriter(path, schema) as writer:
        for start in range(0, rows, 50_000):
            prompts = [
                f"a photograph of object number {n}, studio light, sharp focus" for n in range(start, start + 50_000)
            ]
            writer.write_table(pa.table({"prompt": prompts}, schema=schema))


def measure(manifest: str, with_ids: bool) -> dict[str, object]:
    """Runs in a process of its own."""
    from pipeline.config import load_job
    from pipeline.identity import IdSet
    from pipeline.planning.selection import Selection
    from pipeline.planning.tasks import Space, planned_amount
    from pipeline.prepare import numbered_batches, prepare

    job = load_job(
        None, [("manifest", manifest), ("sweep.seeds", "0-4"), ("sweep.guidance_scales", [1, 3, 5, 8])], date.today()
    )
    began = time.perf_counter()
    prepared = prepare(job)
    counted_s = time.perf_counter() - began
    images = prepared.count.amount.images
    ids_s = 0.0
    if with_ids:
        began = time.perf_counter()
        space = Space(axes=prepared.axes, family=prepared.model.family, run_digest=bytes(16))
        whole, _ = planned_amount(numbered_batches(prepared.manifest), space, Selection(), IdSet())
        ids_s = time.perf_counter() - began
        assert whole.images == images
    heavy = [name for name in ("torch", "ray", "diffusers") if name in sys.modules]
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"images": images, "count_s": counted_s, "ids_s": ids_s, "peak_mib": peak, "heavy": heavy}


def main() -> None:
    if len(sys.argv) == 3:
        print(json.dumps(measure(sys.argv[1], sys.argv[2] == "ids")))
        return
    print(f"pyarrow {pa.__version__}, Python {sys.version.split()[0]}; one process each, one core")
    print(
        f"{'rows':>9} {'images':>11} {'count s':>8} {'ids s':>7} {'ids/s':>10} {'peak MiB count':>15} {'with ids':>9}"
    )
    with TemporaryDirectory() as folder:
        for rows in ROWS:
            path = Path(folder) / f"{rows}.parquet"
            write_manifest(path, rows)
            counted, made = (_in_a_process(path, mode) for mode in ("count", "ids"))
            assert not counted["heavy"], counted["heavy"]
            assert not made["heavy"], made["heavy"]
            rate = made["images"] / made["ids_s"]
            print(
                f"{rows:>9,} {made['images']:>11,} {counted['count_s']:>8.2f} {made['ids_s']:>7.1f} {rate:>10,.0f} "
                f"{counted['peak_mib']:>15.0f} {made['peak_mib']:>9.0f}",
                flush=True,
            )
    print("neither torch nor Ray was loaded")


def _in_a_process(path: Path, mode: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.planning", str(path), mode]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    measured: dict[str, float] = json.loads(said)
    return measured


if __name__ == "__main__":
    main()
