"""How fast a launch is and when it will end, from evaluations: images of many steps take longer than others.

Outcomes arrive in lumps, a shard at a time, and the first after a model was loaded and maybe compiled. So the rate is
that between the first lump and the last, as soon as there are two.
"""

from collections import deque
from dataclasses import dataclass

from pipeline.distributed.report import Progress

WINDOW_S = 60.0
"""What counts as now."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Seen:
    """What there was at a moment."""

    at_s: float
    images: int
    evaluations: int


class Pace:
    """Remembers how outcomes came. One thread."""

    def __init__(self, began_s: float) -> None:
        """``began_s``: when rendering began, loading included, by the clock of ``note``."""
        self._began = Seen(at_s=began_s, images=0, evaluations=0)
        self._first: Seen | None = None
        self._window: deque[Seen] = deque()

    def note(self, now_s: float, progress: Progress) -> None:
        """Outcomes arrived."""
        seen = Seen(at_s=now_s, images=progress.images, evaluations=progress.evaluations)
        self._first = self._first or seen
        self._window.append(seen)
        while len(self._window) > 2 and self._window[1].at_s <= now_s - WINDOW_S:
            self._window.popleft()

    @property
    def images_per_s(self) -> float | None:
        """On average; None before the first outcome."""
        if not self._window:
            return None
        start = self._start()
        return _rate(start, self._window[-1], "images")

    @property
    def images_per_s_now(self) -> float | None:
        """Over the last ``WINDOW_S``; None where that would be all there is."""
        first, last = (self._window[0], self._window[-1]) if self._window else (None, None)
        if first is None or last is None or first is last or first is self._first:
            return None
        return _rate(first, last, "images")

    def left_s(self, now_s: float, progress: Progress) -> float | None:
        """Until all is done, at the average rate of evaluations; None where nobody can know."""
        if not self._window:
            return None
        last = self._window[-1]
        rate = _rate(self._start(), last, "evaluations")
        if not rate:
            return None
        return max(0.0, (progress.total.evaluations - last.evaluations) / rate - (now_s - last.at_s))

    def _start(self) -> Seen:
        assert self._first is not None
        return self._first if self._window[-1].at_s > self._first.at_s else self._began


def _rate(start: Seen, end: Seen, what: str) -> float | None:
    elapsed_s = end.at_s - start.at_s
    return (getattr(end, what) - getattr(start, what)) / elapsed_s if elapsed_s > 0 else None
