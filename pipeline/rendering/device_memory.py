"""Memory of a device that other processes hold.

It is not the job's fault, and often it is free again after a while. So an engine that is out of memory waits if other
processes hold some. It takes fewer rows only if its own allocations fill the device.
"""

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import torch

from pipeline.errors import DeviceHeldError, JobBrokenError

_log = logging.getLogger(__name__)

PAUSES_S = (10.0, 20.0, 40.0)
"""Seconds to wait before each retry. After the last one another process or node tries."""
DOZE_S = 1.0
"""Seconds of the longest single sleep. The watchdog would take a longer one for a hang."""
NOTICED_BYTES = 2_000_000_000
"""Memory of other processes that is ignored: this process's own context, kernels and libraries count as theirs."""


@dataclass(frozen=True, slots=True, kw_only=True)
class DeviceMemory:
    """The memory of a device at one moment, in bytes."""

    total: int
    free: int
    own: int
    """Bytes that this process's allocator has reserved."""

    @property
    def others(self) -> int:
        """Bytes that other processes hold."""
        return max(0, self.total - self.free - self.own)


def read_memory(device: str) -> DeviceMemory | None:
    """Return the memory of a GPU; None for ``cpu`` and on a machine without GPUs."""
    if device == "cpu" or not torch.cuda.is_available():
        return None
    own = torch.cuda.memory_reserved(device)
    try:
        free, total = torch.cuda.mem_get_info(device)
    except RuntimeError:  # the call itself needs a context, for which there is no memory
        free, total = 0, torch.cuda.get_device_properties(device).total_memory
    return DeviceMemory(total=total, free=free, own=own)


class Patience:
    """The pauses of one engine after out-of-memory errors, while other processes hold memory."""

    def __init__(
        self,
        read: Callable[[], DeviceMemory | None],
        *,
        pauses_s: Sequence[float] = PAUSES_S,
        clock: Callable[[], float] = time.monotonic,
        sleep: Callable[[float], None] = time.sleep,
    ) -> None:
        """``read`` returns the device's memory, or None if it is unknown what other processes hold."""
        self._read, self._pauses_s, self._clock, self._sleep = read, pauses_s, clock, sleep
        self._taken, self._until = 0, float("-inf")

    def held(self) -> DeviceMemory | None:
        """Return the device's memory if other processes hold more than ``NOTICED_BYTES``, else None."""
        memory = self._read()
        return memory if memory is not None and memory.others > NOTICED_BYTES else None

    @property
    def pausing(self) -> bool:
        """Whether a pause is in progress."""
        return self._clock() < self._until

    def begin_pause(self) -> bool:
        """Begin the next pause if other processes hold memory and a pause is left; return whether one began."""
        memory = self.held()
        if memory is None or self._taken == len(self._pauses_s):
            return False
        pause_s = self._pauses_s[self._taken]
        self._taken += 1
        self._until = self._clock() + pause_s
        _log.warning("out of memory; %s; trying again in %g s", _shares(memory), pause_s)
        return True

    def doze(self) -> bool:
        """Sleep for a moment if a pause is in progress; return whether it was."""
        left_s = self._until - self._clock()
        if left_s <= 0:
            return False
        self._sleep(min(left_s, DOZE_S))
        return True

    def wait_for_others(self, error: BaseException) -> bool:
        """Begin the next pause and return True if other processes hold memory; return False if fewer rows are needed.

        After the last pause, a process that holds more than the others needs fewer rows. For one that holds less, raise
        ``DeviceHeldError``.
        """
        if self.pausing or self.begin_pause():
            return True
        memory = self.held()
        if memory is None or memory.own >= memory.others:
            return False
        raise DeviceHeldError(f"{_shares(memory)}: {error}") from error

    def progressed(self) -> None:
        """Note that an image is finished: all pauses are there again."""
        self._taken = 0

    def too_small(self, what: str, error: BaseException) -> JobBrokenError:
        """Return the error of an engine that cannot take fewer rows. It ends the launch unless others hold memory."""
        memory = self.held()
        if memory is None:
            return JobBrokenError(f"{what}: {error}")
        return DeviceHeldError(f"{what}; {_shares(memory)}: {error}")


def _shares(memory: DeviceMemory) -> str:
    others, own, total = (f"{part / 2**30:.1f}" for part in (memory.others, memory.own, memory.total))
    return f"other processes hold {others} GiB of the device's {total} GiB, this one {own} GiB"
