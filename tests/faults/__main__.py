"""``make faults``: measures every line, or those named, and prints the table of ``docs/reliability.md``."""

import argparse
import os
import platform
import sys
from importlib import import_module

from tests.faults.board import HEAD, Line, Measure

LINES = ("kills", "commit", "store", "inputs", "suspects", "widen", "resume", "tamper", "security")


def measure_of(name: str) -> Measure:
    """The function of one line."""
    found: Measure = import_module(f"tests.faults.{name}").measure
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("lines", nargs="*", default=LINES, help=", ".join(LINES))
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--short", action="store_true", help="the subset that `make test` runs")
    given = parser.parse_args()
    print(f"seed {given.seed}, {os.cpu_count()} cores, Python {platform.python_version()}\n\n{HEAD}", flush=True)
    measured: list[Line] = []
    for name in given.lines:
        measured.append(measure_of(name)(given.seed, given.short))
        print(measured[-1].as_row(), flush=True)
    sys.exit(any(line.broken for line in measured))


if __name__ == "__main__":
    main()
