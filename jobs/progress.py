"""How a launch is shown: a live line on a terminal, plain lines now and then in a log."""

import sys
import time

from rich.console import Console, Group
from rich.live import Live
from rich.progress import (
    BarColumn,
    SpinnerColumn,
    TaskID,
    TextColumn,
    TimeElapsedColumn,
)
from rich.progress import Progress as Bar
from rich.text import Text

from jobs.words import duration
from pipeline.distributed.pace import images_per_s, left_s
from pipeline.distributed.report import Progress
from pipeline.rendering.counters import EngineCounters

_LOG_EVERY_S = 10.0


class Display:
    """Use as a context. ``tell`` says what begins now, ``update`` shows counts."""

    def __init__(self) -> None:
        self._console = Console(stderr=True, highlight=False)
        self._phase = Bar(
            SpinnerColumn(style="dim"), TextColumn("{task.description}", style="dim", markup=False), TimeElapsedColumn()
        )
        self._bar = Bar(
            TextColumn("images"),
            BarColumn(bar_width=24, complete_style="cyan", finished_style="green"),
            TextColumn("{task.completed:,}/{task.total:,}"),
            TextColumn("{task.percentage:.0f} %", style="cyan"),
        )
        self._images: TaskID | None = None
        self._progress: Progress | None = None
        self._began: float | None = None
        self._logged: Progress | None = None
        self._logged_at = 0.0
        self._live = Live(get_renderable=self._shown, console=self._console, refresh_per_second=4)

    def __enter__(self) -> "Display":
        if self._console.is_terminal:
            self._live.start()
        return self

    def __exit__(self, *_: object) -> None:
        if self._console.is_terminal:
            self._end_phase()
            self._live.stop()
        elif self._progress is not None and self._progress is not self._logged:
            self._log(self._progress)

    def tell(self, sentence: str) -> None:
        if sentence.startswith("loading"):
            self._began = self._began or time.monotonic()
        if not self._console.is_terminal:
            print(sentence, file=sys.stderr, flush=True)
        elif sentence.startswith("warning"):
            self._console.print(sentence, style="yellow", markup=False, emoji=False)
        else:
            self._end_phase()
            self._phase.add_task(sentence, total=None)

    def update(self, progress: Progress) -> None:
        now, self._progress = time.monotonic(), progress
        if self._console.is_terminal:
            self._end_phase()
            if self._images is None:
                self._images = self._bar.add_task("", total=progress.total.images)
            self._bar.update(self._images, completed=_made(progress))
        elif now - self._logged_at >= _LOG_EVERY_S or self._first_image(progress):
            self._log(progress)

    def _first_image(self, progress: Progress) -> bool:
        return bool(_made(progress)) and self._logged is not None and not _made(self._logged)

    def _log(self, progress: Progress) -> None:
        self._logged, self._logged_at = progress, time.monotonic()
        said = ", ".join(self._said(self._logged_at))
        print(f"{_made(progress)}/{progress.total.images} images, {said}", file=sys.stderr, flush=True)

    def _shown(self) -> Group:
        """Anew with every refresh: the time left goes on between outcomes."""
        return Group(self._phase, self._bar, *(Text(line, style="dim") for line in self._said(time.monotonic())))

    def _said(self, now: float) -> list[str]:
        """How it goes, and what the time goes to."""
        if self._progress is None:
            return []
        said = describe(self._progress, now, now - (self._began or now))
        return [line for line in (said, time_split(self._progress.engine)) if line]

    def _end_phase(self) -> None:
        """What was begun before is done: it stays as a line with the time it took."""
        for task in self._phase.tasks:
            took = f"  {duration(task.elapsed or 0)}" if (task.elapsed or 0) >= 1 else ""
            self._console.print(f"{task.description}{took}", style="dim", markup=False, emoji=False)
            self._phase.remove_task(task.id)


def _made(progress: Progress) -> int:
    """Images with an outcome and images that are drawn; two workers may have drawn the same one."""
    return min(progress.total.images, progress.images + progress.drawn)


def describe(progress: Progress, now_s: float, elapsed_s: float) -> str:
    """Images a second now and since loading began, the time left, and who works."""
    if progress.ready and not progress.tellings and not progress.drawn:
        return f"{progress.ready} worker{'s' * (progress.ready > 1)} ready, no image yet"
    parts = []
    if (rate := images_per_s(now_s, progress)) is not None:
        average = f" ({_made(progress) / elapsed_s:.1f} since the start)" if elapsed_s > 0 else ""
        parts.append(f"{rate:.1f} images/s{average}")
    if (left := left_s(now_s, progress)) is not None:
        parts.append(f"{duration(left)} left")
    if progress.drawn:
        parts.append(f"{progress.drawn:,} not committed yet")
    if progress.failed:
        parts.append(f"{progress.failed:,} failed")
    if progress.workers:
        parts.append(f"{progress.workers} worker{'s' * (progress.workers > 1)}")
    return ", ".join(parts)


def time_split(engine: EngineCounters) -> str:
    """What the engines' time went to, in percent."""
    stages = {"prompts": engine.encode_s, "denoising": engine.denoise_s, "decoding": engine.decode_s}
    whole = sum(stages.values())
    return " ".join(f"{name} {seconds / whole:.0%}" for name, seconds in stages.items()) if whole else ""
