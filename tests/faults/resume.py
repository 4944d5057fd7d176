"""How long a start takes to learn what is committed, and how much memory, once finalize has gathered it."""

import tempfile
import time
from pathlib import Path

from benchmarks.resume import PART_ROWS, in_a_process, write_parts
from tests.faults.board import Line

MOST_SECONDS = 10.0
MOST_MIB = 500.0


def measure(seed: int, short: bool) -> Line:
    """10^5 and 10^6 committed ids; in short 10^4, whose time says nothing."""
    began, figures, broken = time.monotonic(), dict[str, str](), list[str]()
    for ids in (10**4,) if short else (10**5, 10**6):
        seconds, mib = _resumed(ids)
        figures[f"{ids:,} ids:"] = f"{seconds:.2f} s and {mib:.0f} MiB"
        if not short and (seconds > MOST_SECONDS or mib > MOST_MIB):
            broken.append(f"{ids:,} ids take {seconds:.1f} s and {mib:.0f} MiB")
    return Line(name="resume", figures=figures, broken=tuple(broken), seconds=time.monotonic() - began)


def _resumed(ids: int) -> tuple[float, float]:
    """Seconds and MiB of a process that reads the index."""
    with tempfile.TemporaryDirectory(prefix="darkroom-faults-") as folder:
        write_parts(Path(folder), ids, PART_ROWS)
        in_a_process(Path(folder), "gather")
        found = in_a_process(Path(folder), "load")
    assert found["ids"] == ids
    return found["seconds"], found["mib"]
