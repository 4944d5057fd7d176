"""How far a verb that reads or writes much is: a live line on a terminal, a plain one now and then in a log."""

import time
from types import TracebackType

import typer
from rich.console import Console

_LOG_EVERY_S = 10.0
_LIVE_EVERY_S = 0.1


class StatusLine:
    """Use as a context."""

    def __init__(self, first: str) -> None:
        """``first`` stands there until the first update."""
        console = Console(stderr=True, highlight=False)
        self._live = console.is_terminal
        self._status = console.status(first)
        self._said = time.monotonic()

    def __enter__(self) -> "StatusLine":
        self._status.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._status.stop()

    def update(self, line: str) -> None:
        """Say it, unless something was said just now."""
        now = time.monotonic()
        if now - self._said < (_LIVE_EVERY_S if self._live else _LOG_EVERY_S):
            return
        self._said = now
        if self._live:
            self._status.update(line)
        else:
            typer.echo(line, err=True)
