"""Jobs with something bad in them, and what must come of each."""

import random
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from enum import Enum
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

TODAY = date(2026, 1, 2)
Cells = dict[str, Any]
"""Some cells of one manifest row, by column."""


class Verdict(Enum):
    """What must come of a job as a whole."""

    REFUSED = "refused"
    """One block for people, exit code 2, nothing is rendered."""
    EITHER = "either"
    """Chance decides whether it is good or bad; it is used or refused, and nothing else may come of it."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Trial:
    """A job to try."""

    usable: frozenset[int] | Verdict
    """The rows that must be planned, by number over the manifest."""
    job: Path | None = None
    settings: tuple[str, ...] = ()
    """As after ``--set``."""

    @property
    def words(self) -> list[str]:
        """As on the command line."""
        return [*([str(self.job)] if self.job else []), *(w for text in self.settings for w in ("--set", text))]


Make = Callable[[random.Random, Path], Trial]
"""One class of bad input: makes a variant of it in an empty folder."""


def settings(folder: Path, **more: object) -> tuple[str, ...]:
    """A job of settings alone; ``more`` by key with ``__`` for the dot."""
    keys = {"manifest": folder / "m", "sweep.seeds": "0-1", "sweep.steps": "2", "output.uri": folder / "out"}
    keys |= {key.replace("__", "."): value for key, value in more.items()}
    return tuple(f"{key}={value}" for key, value in keys.items())


def good_row(drawn: random.Random, number: int) -> Cells:
    """No two numbers ask for the same image."""
    shape = drawn.choice(["circle", "star", "square", "žluťoučký kůň", "赤い円", "🔴"])
    negative = drawn.choice([None, "", "blurry, dark"])
    return {"prompt": f"{shape} number {number}", "negative_prompt": negative, "note": drawn.randrange(99)}


def good_rows(drawn: random.Random) -> list[Cells]:
    return [good_row(drawn, number) for number in range(drawn.randint(3, 40))]


def write_rows(
    drawn: random.Random, folder: Path, rows: Sequence[Cells], kinds: Mapping[str, pa.DataType] | None = None
) -> None:
    """Put rows into the manifest ``m`` of a folder: into one file or two, with row groups of any length."""
    cut = drawn.randrange(len(rows))
    if cut:
        write_table(folder / "m" / "a.parquet", table_of(rows[:cut], kinds), drawn.randint(1, 50))
    write_table(folder / "m" / "b.parquet", table_of(rows[cut:], kinds), drawn.randint(1, 50))


def write_table(path: Path, table: pa.Table, row_group_size: int = 10) -> Path:
    path.parent.mkdir(exist_ok=True)
    pq.write_table(table, path, row_group_size=row_group_size)
    return path


def table_of(rows: Sequence[Cells], kinds: Mapping[str, pa.DataType] | None = None) -> pa.Table:
    """Rows as columns of these types; a text may be given as bytes, so that it can be broken."""
    kinds = kinds or {}
    names = dict.fromkeys([name for row in rows for name in row] + [*kinds])
    return pa.table({name: _column([row.get(name) for row in rows], kinds.get(name)) for name in names})


def _column(cells: list[Any], kind: pa.DataType | None) -> pa.Array:
    if any(isinstance(cell, bytes) for cell in cells):
        raw = pa.array([cell.encode() if isinstance(cell, str) else cell for cell in cells], pa.binary())
        return pa.Array.from_buffers(pa.string(), len(raw), raw.buffers())
    return pa.array(cells, kind)
