"""Prompts that kill or hang their process: deaths until they are quarantined, innocents condemned."""

import random
import tempfile
import time
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.faults.board import Line
from tests.faults.launched import Launch

MOST_DEATHS = 3


def measure(seed: int, short: bool) -> Line:
    """One deadly prompt; in full also two of them, and one that hangs until the watchdog ends its process."""
    began = time.monotonic()
    cases = [("deadly",)] if short else [("deadly",), ("deadly", "deadly"), ("endless",)]
    figures = {"prompts": 0, "bad ones": 0, "worker deaths": 0, "quarantined": 0, "innocents condemned": 0}
    broken: list[str] = []
    for number, words in enumerate(cases):
        with tempfile.TemporaryDirectory(prefix="darkroom-faults-") as folder:
            broken += _case(Path(folder), words, random.Random(seed + number), figures, rows=12 if short else 48)
    return Line(name="process-killing prompts", figures=figures, broken=tuple(broken), seconds=time.monotonic() - began)


def _case(folder: Path, words: tuple[str, ...], drawn: random.Random, figures: dict[str, int], rows: int) -> list[str]:
    prompts = [f"a red circle {number}" for number in range(rows)]
    bad = drawn.sample(range(rows), len(words))
    for row, word in zip(bad, words, strict=True):
        prompts[row] = f"a {word} circle {row}"
    pq.write_table(pa.table({"prompt": prompts}), folder / "m.parquet")
    launch = Launch(
        folder,
        ["render", "--manifest", "m.parquet", "--steps", "2", "-o", "out", "--set", "workers.count=1",
         "--set", "render.shard_images=4", "--set", "render.rows=4", "--set", "render.watchdog=10s"],
    )  # fmt: skip
    code = launch.wait()
    if code != 3:
        return [f"{words}: exit code {code}: {launch.err.read_text()[-300:]}"]
    failures = pq.read_table(folder / "out" / "failures.parquet").to_pylist()
    condemned = [row["manifest_row"] for row in failures if row["manifest_row"] not in bad]
    deaths = _deaths(launch)
    figures["prompts"] += rows
    figures["bad ones"] += len(bad)
    figures["worker deaths"] += deaths
    figures["quarantined"] += len(failures) - len(condemned)
    figures["innocents condemned"] += len(condemned)
    broken = [f"{words}: condemned rows {condemned}"] if condemned else []
    if sorted(row["manifest_row"] for row in failures) != sorted(bad):
        broken.append(f"{words}: failed rows are {failures}")
    if {row["verdict"] for row in failures} != {"quarantined"}:
        broken.append(f"{words}: verdicts {failures}")
    if deaths > MOST_DEATHS * len(bad):
        broken.append(f"{words}: {deaths} deaths")
    if pq.read_metadata(folder / "out" / "metadata.parquet").num_rows != rows - len(bad):
        broken.append(f"{words}: good rows are missing")
    return broken


def _deaths(launch: Launch) -> int:
    """As the launch itself reports them."""
    lines = [line for line in launch.out.read_text().splitlines() if line.startswith("deaths")]
    return int(lines[0].split()[1]) if lines else 0
