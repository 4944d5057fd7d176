"""How fast a launch is and when it will end, from evaluations: images of many steps take longer than others."""

from collections import deque
from dataclasses import dataclass

from pipeline.distributed.report import Progress

WINDOW_S = 60.0
"""What counts as now."""
SILENT_S = 600.0
"""A process that has told nothing for so long, and for ten times as long as it took before, is taken for gone."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Seen:
    at_s: float
    images: int


class Pace:
    """Remembers how outcomes came: in lumps, a shard at a time."""

    def __init__(self, began_s: float) -> None:
        """``began_s``: when rendering began, loading included, by the clock of ``note``."""
        self._began = _Seen(at_s=began_s, images=0)
        self._first: _Seen | None = None
        self._window: deque[_Seen] = deque()

    def note(self, now_s: float, progress: Progress) -> None:
        """Outcomes arrived."""
        seen = _Seen(at_s=now_s, images=progress.images)
        self._first = self._first or seen
        self._window.append(seen)
        while len(self._window) > 2 and self._window[1].at_s <= now_s - WINDOW_S:
            self._window.popleft()

    @property
    def images_per_s(self) -> float | None:
        """On average, from the first lump on where there are two; None before the first."""
        if not self._window or self._first is None:
            return None
        last = self._window[-1]
        return _rate(self._first if last.at_s > self._first.at_s else self._began, last)

    @property
    def images_per_s_now(self) -> float | None:
        """Over the last ``WINDOW_S``; None where that would be all there is."""
        if len(self._window) < 2 or self._window[0] is self._first:
            return None
        return _rate(self._window[0], self._window[-1])


def left_s(now_s: float, progress: Progress) -> float | None:
    """Seconds until all is done; None where nobody can know.

    What engines have under way counts as they told last, and as they went on since at their rate.
    """
    rate, ahead = 0.0, 0.0
    for telling in progress.tellings:
        silent_s = now_s - telling.at_s
        if silent_s < max(SILENT_S, 10 * (telling.at_s - telling.first_at_s)):
            rate += telling.rate
            ahead += telling.evaluations - telling.committed + telling.rate * silent_s
    if not rate:
        return None
    return max(0.0, (progress.total.evaluations - progress.evaluations - ahead) / rate)


def _rate(start: _Seen, end: _Seen) -> float | None:
    elapsed_s = end.at_s - start.at_s
    return (end.images - start.images) / elapsed_s if elapsed_s > 0 else None
