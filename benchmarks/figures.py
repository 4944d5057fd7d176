"""Figures of one long command: printed as they come, kept as JSON, within a time."""

import json
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import torch

from pipeline.errors import DarkroomError

Figure = str | int | float | bool | None
Row = Mapping[str, Figure]


class Figures:
    """Tables by title. A row is printed and saved at once, so that a command that is killed loses none."""

    def __init__(
        self, file: Path | None, budget_s: float, *, clock: Callable[[], float] = time.perf_counter, **about: Any
    ) -> None:
        """``about`` is kept beside the tables; no new work starts when the budget is used up."""
        self._file, self._clock = file, clock
        self._ends = clock() + budget_s
        self._kept: dict[str, Any] = {**about, "tables": {}, "left_out": []}
        self._title = ""
        self._columns: tuple[str, ...] = ()

    def table(self, title: str, columns: tuple[str, ...]) -> None:
        """Begin a table; its rows follow."""
        self._title, self._columns = title, columns
        self._kept["tables"][title] = []
        print(f"\n{title}\n" + "  ".join(f"{column:>{_width(column)}}" for column in columns), flush=True)

    def row(self, row: Row) -> None:
        """One row of the table: figures by column; ``note`` goes behind."""
        cells = [f"{_shown(row.get(column)):>{_width(column)}}" for column in self._columns]
        print("  ".join([*cells, str(row.get("note", ""))]).rstrip(), flush=True)
        self._kept["tables"][self._title].append(dict(row))
        self.save()

    def rows(self, title: str) -> list[Row]:
        """What a table holds, in order; none where there is no such table."""
        return list(self._kept["tables"].get(title, ()))

    def may_start(self, what: str) -> bool:
        """Whether there is time for another piece of work; notes what is left out."""
        if self._clock() < self._ends:
            return True
        self._kept["left_out"].append(what)
        return False

    @contextmanager
    def surviving(self, what: Row) -> Iterator[None]:
        """One configuration that may run out of memory, or break: that becomes its row, and the next one is tried."""
        try:
            yield
            return
        except torch.OutOfMemoryError:
            self.row({**what, "note": "out of memory"})
        except (RuntimeError, DarkroomError) as error:
            self.row({**what, "note": f"{type(error).__name__}: {str(error).strip().partition(chr(10))[0]}"})
        torch.cuda.empty_cache()  # only now is the error gone, and with it the tensors its frames held

    def close(self, goals: list[Row]) -> None:
        """Print what was left out and keep the goals."""
        self._kept["goals"] = goals
        self.save()
        if self._kept["left_out"]:
            print("\nleft out, the time is used up: " + ", ".join(self._kept["left_out"]), flush=True)

    def save(self) -> None:
        """Write the JSON file anew."""
        if self._file is not None:
            self._file.write_text(json.dumps(self._kept, indent=1))


def _width(column: str) -> int:
    return max(len(column), 8)


def _shown(figure: Figure) -> str:
    if figure is None:
        return "-"
    if isinstance(figure, bool):
        return "yes" if figure else "no"
    return f"{figure:.4g}" if isinstance(figure, float) else str(figure)
