"""When a launch gives up on workers: too many deaths, or starts that fail while nobody gets on."""

from collections import Counter, deque
from collections.abc import Callable

from pipeline.distributed.events import GaveUp
from pipeline.errors import DarkroomError, JobBrokenError

MOST_DEATHS = 20
WORKERS_PER_DEATH = 10
"""Launches of many workers may have more deaths than ``MOST_DEATHS``: one for so many workers."""
SPAN_S = 600.0
"""A launch ends with more deaths than that within this time."""
QUIET_S = 600.0
"""As long as any worker gets on within this time, those that cannot begin end nothing."""
FIRST_PAUSE_S, MOST_PAUSE_S = 5.0, 60.0
"""Before a worker is started in place of one that could not begin; each further pause is twice as long."""


class Limits:
    """Counts what goes wrong with workers. Its methods raise when it is too much."""

    def __init__(self, most_failed_starts: int, workers: int, clock: Callable[[], float]) -> None:
        """``workers``: at most."""
        self._most_failed_starts, self._clock = most_failed_starts, clock
        self._most_deaths = max(MOST_DEATHS, workers // WORKERS_PER_DEATH)
        self._failed_starts = self._held = 0
        self._ready_at = self._rendered_at = self._start_at = clock()
        self._without_room: Counter[str] = Counter()
        self._died_at: deque[float] = deque()

    @property
    def may_start(self) -> bool:
        """Whether a worker may be started now, after those that failed."""
        return self._clock() >= self._start_at

    def ready(self) -> None:
        """Note that a worker has loaded the model: where others cannot, it is not the launch's fault."""
        self._failed_starts, self._ready_at = 0, self._clock()

    def rendered(self) -> None:
        """Note that a worker has committed something."""
        self.ready()
        self._held, self._rendered_at = 0, self._ready_at

    def gave_up(self, event: GaveUp, node_id: str) -> None:
        """Note that a worker ended through no task's fault.

        Raises its error where the model fits on no device: two nodes say so, or two processes of the only
        one. Raises
        ``JobBrokenError`` for too many in a row while no worker has loaded the model, or committed anything, for long.
        """
        if event.why == "room":
            self._without_room[node_id] += 1
            if len(self._without_room) > 1 or (event.only_node and self._without_room[node_id] > 1):
                raise event.error
        if event.why == "held":
            self._held += 1
            if self._held > self._most_failed_starts and self._quiet_since(self._rendered_at):
                raise _too_many(event.error)
        self.failed_start(event.error)

    def failed_start(self, error: DarkroomError) -> None:
        """Note that a worker could not begin. Raises ``JobBrokenError`` as ``gave_up`` does."""
        self._failed_starts += 1
        self._start_at = self._clock() + min(MOST_PAUSE_S, FIRST_PAUSE_S * 2 ** min(self._failed_starts - 1, 9))
        if self._failed_starts > self._most_failed_starts and self._quiet_since(self._ready_at):
            raise _too_many(error)

    def died(self, reason: str) -> None:
        """Note that a process died of its work. Raises ``JobBrokenError`` for too many lately."""
        now = self._clock()
        self._died_at.append(now)
        while self._died_at[0] < now - SPAN_S:
            self._died_at.popleft()
        if len(self._died_at) > self._most_deaths:
            raise JobBrokenError(
                f"{len(self._died_at)} worker processes died within {SPAN_S / 60:g} minutes, the last: {reason}; "
                "their logs may tell why: out of memory, a broken driver, a library that crashes"
            )

    def _quiet_since(self, moment_s: float) -> bool:
        return self._clock() - moment_s > QUIET_S


def _too_many(error: DarkroomError) -> JobBrokenError:
    return JobBrokenError(f"too many workers in a row could not begin, the last of them: {error}")
