"""Rows that are refused, and why."""

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

SHOWN_CHARACTERS = 80


@dataclass(frozen=True, slots=True, kw_only=True)
class RejectedRow:
    """A row that cannot be rendered as it is written."""

    file: str
    """As in ``manifest_file``."""
    row: int
    """In the file, from 0."""
    column: str
    """As the file calls it."""
    value: str
    """Shortened."""
    reason: str
    allowed: str

    def __str__(self) -> str:
        place = f"{self.file}, row {self.row} (from 0), column {self.column}"
        return f"{place}: {self.reason}; value {self.value}; allowed: {self.allowed}"


@dataclass(frozen=True, slots=True, kw_only=True)
class Fault:
    """What is wrong with the cells of one column."""

    column: str
    reason: str
    allowed: str
    values: pa.Array | None
    """The cells to show, as long as the batch; None shows nothing."""


class Verdicts:
    """Which rows of one batch are refused; the first fault found in a row stands."""

    def __init__(self, rows: int) -> None:
        self._fault = np.full(rows, -1, np.int32)
        self._faults: list[Fault] = []

    def reject(self, bad: NDArray[np.bool_], fault: Fault) -> None:
        """Refuse the rows where ``bad``."""
        fresh = bad & (self._fault < 0)
        if fresh.any():
            self._fault[fresh] = len(self._faults)
            self._faults.append(fault)

    def good(self) -> NDArray[np.bool_]:
        """The rows nothing was said against."""
        return self._fault < 0

    def rejected(self, file: str, first_row: int) -> Iterator[RejectedRow]:
        """The refused rows in order; ``first_row`` is the batch's first row in the file."""
        for row in np.flatnonzero(self._fault >= 0).tolist():
            fault = self._faults[self._fault[row]]
            yield RejectedRow(
                file=file,
                row=first_row + row,
                column=fault.column,
                value=_shown(fault.values, row),
                reason=fault.reason,
                allowed=fault.allowed,
            )


def _shown(values: pa.Array | None, row: int) -> str:
    if values is None:
        return "(not shown)"
    value = values[row].as_py()
    text = "null" if value is None else repr(value)
    return text if len(text) <= SHOWN_CHARACTERS else f"{text[:SHOWN_CHARACTERS]}… ({len(text)} characters)"
