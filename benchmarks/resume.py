"""How long a launch takes to learn what is committed, and how much memory: ``python -m benchmarks.resume``.

Runs of 10^5, 10^6 and 10^7 committed ids in a local directory, one in a hundred failed, before and after finalize has
gathered them in an index segment; a process per figure. ``--ids`` and ``--part-rows`` choose other sizes.
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

from pipeline.output.index import load_index, write_segment
from pipeline.output.layout import part_key
from pipeline.output.schema import METADATA_SCHEMA
from pipeline.storage.local import LocalStore

SIZES = (10**5, 10**6, 10**7)
PART_ROWS = 1_000
FAILED = 0.01
COLUMNS = ("ids", "parts", "before s", "MiB", "gather s", "MiB", "after s", "MiB")


def template(rows: int) -> pa.Table:
    """A part's columns as a launch writes them; those that differ between parts are put over it."""
    numbers = np.arange(rows)
    texts = pa.array([f"a photograph of object {number}, studio light, sharp" for number in numbers])
    columns = []
    for field in METADATA_SCHEMA:
        if pa.types.is_string(field.type):
            columns.append(texts if field.name == "prompt" else pa.array([field.name] * rows))
        else:
            columns.append(pa.array(numbers % 2).cast(field.type))
    return pa.table(columns, schema=METADATA_SCHEMA)


def write_parts(root: Path, ids: int, part_rows: int) -> None:
    random, rows = np.random.default_rng(0), template(part_rows)
    for _ in range(ids // part_rows):
        names = [random.bytes(16 * part_rows).hex() for _ in range(2)]
        task_ids, digests = (pa.array([name[i : i + 32] for i in range(0, len(name), 32)]) for name in names)
        status = pa.array(np.where(random.random(part_rows) < FAILED, "failed", "ok"))
        own = {"task_id": task_ids, "status": status, "file_sha256": digests, "file_name": task_ids}
        for name, column in own.items():
            rows = rows.set_column(rows.schema.get_field_index(name), METADATA_SCHEMA.field(name), column)
        sink = pa.BufferOutputStream()
        pq.write_table(rows, sink, compression="zstd")
        body = sink.getvalue().to_pybytes()
        path = root / part_key(task_ids[0].as_py(), sha256(body).hexdigest())
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(body)


def measure(root: Path, *, gather: bool) -> dict[str, float]:
    """Runs in a process of its own."""
    store, began = LocalStore(root), time.perf_counter()
    index = load_index(store)
    if gather:
        write_segment(store, index)
    done = len(index.all())
    seconds = time.perf_counter() - began
    return {"ids": done, "seconds": seconds, "mib": resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024}


def in_a_process(root: Path, what: str) -> dict[str, float]:
    command = [sys.executable, "-m", "benchmarks.resume", "--measure", what, str(root)]
    said = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    measured: dict[str, float] = json.loads(said)
    return measured


def line(root: Path, ids: int, part_rows: int) -> str:
    write_parts(root, ids, part_rows)
    runs = [in_a_process(root, what) for what in ("load", "gather", "load")]
    assert {run["ids"] for run in runs} == {ids}
    figures = [text for run in runs for text in (f"{run['seconds']:.2f}", f"{run['mib']:.0f}")]
    return "".join(f"{cell:>12}" for cell in (f"{ids:,}", f"{ids // part_rows:,}", *figures))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--ids", type=int, nargs="*", default=SIZES)
    parser.add_argument("--part-rows", type=int, default=PART_ROWS)
    parser.add_argument("--measure", nargs=2, metavar=("WHAT", "ROOT"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.measure:
        print(json.dumps(measure(Path(given.measure[1]), gather=given.measure[0] == "gather")))
        return
    cores = len(os.sched_getaffinity(0))
    print(f"pyarrow {pa.__version__}, NumPy {np.__version__}, Python {sys.version.split()[0]}, {cores} core(s)")
    print(f"parts of {given.part_rows:,} rows; a process per figure, the files in the page cache")
    print("".join(f"{name:>12}" for name in COLUMNS))
    for ids in given.ids:
        with TemporaryDirectory() as folder:
            print(line(Path(folder), ids, given.part_rows), flush=True)


if __name__ == "__main__":
    main()
