"""How a launch is shown: a live line on a terminal, plain lines now and then in a log."""

import sys
import time

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, TextColumn
from rich.progress import Progress as Bar

from pipeline.distributed.report import Progress

_LOG_EVERY_S = 10.0


class Display:
    """Use as a context. ``tell`` prints a sentence, ``update`` shows counts."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._live = self._console.is_terminal
        self._bar = Bar(
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[pace]}"),
            console=self._console,
            disable=not self._live,
        )
        self._task = self._bar.add_task("images", total=None, pace="", visible=False)
        self._began: float | None = None
        self._logged = 0.0

    def __enter__(self) -> "Display":
        self._bar.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._bar.stop()

    def tell(self, sentence: str) -> None:
        self._began = self._began or time.monotonic()
        if sentence.startswith("loading"):
            self._began = time.monotonic()
        if self._live:
            self._console.print(sentence, style="dim", markup=False, emoji=False)
        else:
            print(sentence, file=sys.stderr, flush=True)

    def update(self, progress: Progress) -> None:
        elapsed = time.monotonic() - (self._began or time.monotonic())
        pace = describe_pace(progress, elapsed)
        if self._live:
            self._bar.update(
                self._task, total=progress.total.images, completed=progress.images, pace=pace, visible=True
            )
        elif time.monotonic() - self._logged >= _LOG_EVERY_S or progress.images == progress.total.images:
            self._logged = time.monotonic()
            print(f"{progress.images}/{progress.total.images} images, {pace}", file=sys.stderr, flush=True)


def describe_pace(progress: Progress, elapsed_s: float) -> str:
    """Images a second and the time left, from evaluations: images of many steps take longer."""
    if not progress.evaluations or elapsed_s <= 0:
        return ""
    left_s = elapsed_s * (progress.total.evaluations - progress.evaluations) / progress.evaluations
    failed = f", {progress.failed} failed" if progress.failed else ""
    return f"{progress.images / elapsed_s:.1f} images/s, {duration(left_s)} left{failed}"


def duration(seconds: float) -> str:
    """1:02:03, 2:03"""
    minutes, rest = divmod(round(max(0.0, seconds)), 60)
    hours, minutes = divmod(minutes, 60)
    return f"{hours}:{minutes:02}:{rest:02}" if hours else f"{minutes}:{rest:02}"
