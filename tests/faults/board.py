"""The scoreboard of reliability: nine lines, each measured by a module of its own."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Line:
    """One line of the scoreboard."""

    name: str
    figures: Mapping[str, int | float | str]
    """What was done and what came of it, in words as keys: ``{"worker kills landed": 31, "lost": 0}``."""
    broken: tuple[str, ...]
    """What should not have happened, in sentences; empty is the only good result."""
    seconds: float

    def as_row(self) -> str:
        """A row of the Markdown table."""
        figures = ", ".join(f"{name} {_text(value)}" for name, value in self.figures.items())
        return f"| {self.name} | {figures} | {'; '.join(self.broken) or 'as promised'} | {self.seconds:,.0f} |"


HEAD = "| what | figures | verdict | s |\n|---|---|---|---:|"

Measure = Callable[[int, bool], Line]
"""(seed, short) to a line. ``short`` is the subset that ``make test`` runs."""


def _text(value: int | float | str) -> str:
    return f"{value:,.2f}" if isinstance(value, float) else f"{value:,}" if isinstance(value, int) else value
