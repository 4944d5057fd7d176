"""How long finalize takes and how much memory: ``python -m benchmarks.finalize``.

Runs of 10^5, 10^6 and 10^7 rows in parts of 1,000 in a local directory, one in a hundred failed, parts in no order;
then 1,000 new rows and once more. A process per figure. ``--rows`` chooses other sizes.
"""

import argparse
import json
import os
import resource
import subprocess
import sys
import time
from hashlib import sha256
from pathlib import Path
from tempfile import TemporaryDirectory

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq

from benchmarks.resume import FAILED, template
from pipeline.output.finalize import finalize
from pipeline.output.layout import part_key
from pipeline.output.schema import METADATA_SCHEMA
from pipeline.output.tables import table_keys
from pipeline.storage.local import LocalStore

SIZES = (10**5, 10**6, 10**7)
PART_ROWS = 1_000
COLUMNS = ("rows", "first s", "MiB", "second s", "MiB", "files")


def write_parts(root: Path, first: int, rows: int) -> None:
    """Parts with the manifest's rows from ``first`` on; ids are random, as digests are."""
    random, part = np.random.default_rng(first), template(PART_ROWS)
    for start in range(first, first + rows, PART_ROWS):
        digits = random.bytes(32 * PART_ROWS).hex()
        ids = [digits[i : i + 32] for i in range(0, 32 * PART_ROWS, 32)]
        files = [f"images/{digits[i : i + 2]}/{digits[i : i + 32]}.png" for i in range(0, 32 * PART_ROWS, 32)]
        digests = [digits[i : i + 64] for i in range(0, 64 * PART_ROWS, 64)]
        prompts = [f"a photograph of object {n // 4}, studio light, sharp" for n in range(start, start + PART_ROWS)]
        own = {
            "task_id": ids,
            "file_name": files,
            "part_id": [ids[0]] * PART_ROWS,
            "status": np.where(random.random(PART_ROWS) < FAILED, "failed", "ok"),
            "prompt": prompts,
            "manifest_row": np.arange(start, start + PART_ROWS) // 4,
            "seed": np.arange(start, start + PART_ROWS) % 4,
            "pixel_sha256": digests,
            "file_sha256": digests[::-1],
        }
        for name, column in own.items():
            field = METADATA_SCHEMA.field(name)
            part = part.set_column(part.schema.get_field_index(name), field, pa.array(column, field.type))
        sink = pa.BufferOutputStream()
        pq.write_table(part, sink, compression="zstd")
        body = sink.getvalue().to_pybytes()
        path = root / part_key(ids[0], sha256(body).hexdigest())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)


def measure(root: Path) -> dict[str, float]:
    """Runs in a process of its own."""
    store, began = LocalStore(root), time.perf_counter()
    made = finalize(store)
    seconds, files = time.perf_counter() - began, len(table_keys(store))
    mib = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024
    return {"rows": made.ok + made.failed, "seconds": seconds, "mib": mib, "files": files}


def in_a_process(root: Path) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.finalize", "--measure", str(root)]
    said = subprocess.run(command, stdout=subprocess.PIPE, text=True, check=True).stdout
    measured: dict[str, float] = json.loads(said)
    return measured


def line(root: Path, rows: int) -> str:
    write_parts(root, 0, rows)
    first = in_a_process(root)
    write_parts(root, rows, PART_ROWS)
    second = in_a_process(root)
    assert (first["rows"], second["rows"]) == (rows, rows + PART_ROWS)
    figures = [text for run in (first, second) for text in (f"{run['seconds']:.1f}", f"{run['mib']:.0f}")]
    return "".join(f"{cell:>12}" for cell in (f"{rows:,}", *figures, f"{second['files']:.0f}"))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rows", type=int, nargs="*", default=SIZES)
    parser.add_argument("--measure", metavar="ROOT", type=Path, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(given.measure)))
        return
    cores = len(os.sched_getaffinity(0))
    print(f"pyarrow {pa.__version__}, NumPy {np.__version__}, Python {sys.version.split()[0]}, {cores} core(s)")
    print(f"parts of {PART_ROWS:,} rows; a process per figure, the files in the page cache")
    print("".join(f"{name:>12}" for name in COLUMNS))
    for rows in given.rows:
        with TemporaryDirectory() as folder:
            print(line(Path(folder), rows), flush=True)


if __name__ == "__main__":
    main()
