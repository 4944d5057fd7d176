"""Memory of a device that other processes hold.

It is not the job's fault and often free again after a while. So an engine without memory waits as long as others hold
some, and takes fewer rows only where its own allocations fill the device.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from pipeline.errors import DeviceHeldError, JobBrokenError

_log = logging.getLogger(__name__)

PAUSES_S = (10.0, 20.0, 40.0)
"""Before each further try; then another process or node tries."""
DOZE_S = 1.0
"""The longest single sleep, so that an engine that waits is not taken for one that hangs."""
NOTICED_BYTES = 2_000_000_000
"""Others that hold less do not count: the own context, kernels and libraries are in no allocator's figures."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """The memory of a device at one moment, in bytes."""

    total: int
    free: int
    own: int
    """Reserved by this process's allocator."""

    @property
    def others(self) -> int:
        """What other processes hold."""
        return max(0, self.total - self.free - self.own)


def read_memory(device: str) -> DeviceMemory | None:
    """Return the memory of a GPU; None for ``cpu``, and where there is no GPU."""
    if device == "cpu" or not torch.cuda.is_available():
        return None
    own = torch.cuda.memory_reserved(device)
    try:
        free, total = torch.cuda.mem_get_info(device)
    except RuntimeError:  # too full for the context that the question itself needs
        free, total = 0, torch.cuda.get_device_properties(device).total_memory
    return DeviceMemory(total=total, free=free, own=own)


class Patience:
    """Waits for memory that other processes hold, after out-of-memory errors of one engine."""

    def __init__(
        self,
        read: Callable[[], DeviceMemory | None],
        *,
        pauses_s: Sequence[float] = PAUSES_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """``read`` returns the device's memory, None where nobody knows what others hold."""
        self._read, self._pauses_s, self._clock, self._sleep = read, pauses_s, clock, sleep
        self._taken, self._until, self._failed = 0, float("-inf"), False

    def held(self) -> DeviceMemory | None:
        """Return the device's memory where other processes hold a part that counts, else None."""
        memory = self._read()
        return memory if memory is not None and memory.others > NOTICED_BYTES else None

    @property
    def pausing(self) -> bool:
        """Whether a pause lasts."""
        return self._clock() < self._until

    def begin_pause(self) -> bool:
        """Begin the next pause where others hold memory; return whether there was one left to begin."""
        memory = self.held()
        if memory is None or self._taken == len(self._pauses_s):
            return False
        pause_s = self._pauses_s[self._taken]
        self._taken += 1
        self._until = self._clock() + pause_s
        _log.warning("out of memory; %s; trying again in %g s", _shares(memory), pause_s)
        return True

    def doze(self) -> bool:
        """Sleep for a moment while a pause lasts; return whether it does."""
        left_s = self._until - self._clock()
        if left_s <= 0:
            return False
        self._sleep(min(left_s, DOZE_S))
        return True

    def wait_for_others(self, error: BaseException) -> bool:
        """Begin the next pause and return True where others hold memory; return False where fewer rows must do.

        After the last pause, fewer rows must do for a process that holds more than the others do. Raises
        ``DeviceHeldError`` for one that holds less.
        """
        self._failed = True
        if self.pausing or self.begin_pause():
            return True
        memory = self.held()
        if memory is None or memory.own >= memory.others:
            return False
        raise DeviceHeldError(f"{_shares(memory)}: {error}") from error

    def step_done(self) -> None:
        """Note that a step of the engine is over: after one that had memory, all pauses are there again."""
        if not self._failed:
            self._taken = 0
        self._failed = False

    def too_small(self, what: str, error: BaseException) -> JobBrokenError:
        """Return the error of an engine that can take no fewer rows: the launch ends unless others hold memory."""
        memory = self.held()
        if memory is None:
            return JobBrokenError(f"{what}: {error}")
        return DeviceHeldError(f"{what}; {_shares(memory)}: {error}")


def _shares(memory: DeviceMemory) -> str:
    others, own, total = (f"{part / 2**30:.1f}" for part in (memory.others, memory.own, memory.total))
    return f"other processes hold {others} GiB of the device's {total} GiB, this one {own} GiB"
