"""How long each image took: its share of the denoiser's calls, measured on the device without waiting for it."""

import time
from collections import deque
from dataclasses import dataclass
from typing import Any, Protocol

import torch


class Mark(Protocol):
    """A moment of the device's work."""

    def reached(self) -> bool:
        """Return whether the device has done all it was given before."""

    def wait(self) -> None:
        """Return when it is reached."""

    def seconds_since(self, earlier: "Mark") -> float:
        """Return the seconds between two moments that are reached."""


@dataclass(frozen=True, slots=True)
class HostMark:
    """A moment of a CPU, which does everything when it is told."""

    at_s: float

    def reached(self) -> bool:
        return True

    def wait(self) -> None:
        pass

    def seconds_since(self, earlier: Mark) -> float:
        assert isinstance(earlier, HostMark)
        return self.at_s - earlier.at_s


@dataclass(frozen=True, slots=True)
class CudaMark:
    """A moment of a GPU's current stream."""

    event: Any
    """torch.cuda.Event"""

    def reached(self) -> bool:
        return bool(self.event.query())

    def wait(self) -> None:
        self.event.synchronize()

    def seconds_since(self, earlier: Mark) -> float:
        assert isinstance(earlier, CudaMark)
        return float(earlier.event.elapsed_time(self.event)) / 1e3


def mark(device: torch.device) -> Mark:
    """Return the moment at which the device will have done what it was given so far."""
    if device.type != "cuda":
        return HostMark(time.perf_counter())
    event: Any = torch.cuda.Event(enable_timing=True)  # type: ignore[no-untyped-call]  # torch has no types for it
    event.record()
    return CudaMark(event)


@dataclass(slots=True, eq=False)
class Call:
    """One call of the denoiser with the step after it."""

    began: Mark
    ended: Mark
    rows: int
    """Rows of tasks in it."""
    total_s: float | None = None
    """Seconds per row of this call and all before it; None until the device has done it."""

    def seconds_since(self, earlier: "Call") -> float:
        """Return the seconds per row of the calls after an earlier one, up to this one."""
        assert self.total_s is not None
        assert earlier.total_s is not None
        return self.total_s - earlier.total_s


class RowTime:
    """The time that a row of the batch has taken so far, call by call."""

    def __init__(self, device: torch.device) -> None:
        now = mark(device)
        self._per_row_s = 0.0
        self.last = Call(now, now, 1, 0.0)
        """The latest call."""
        self._unsettled: deque[Call] = deque()

    def note(self, began: Mark, ended: Mark, rows: int) -> None:
        """Add a call."""
        self.last = Call(began, ended, rows)
        self._unsettled.append(self.last)

    def settle(self) -> float:
        """Take in the calls that the device has done; returns their seconds in all."""
        seconds = 0.0
        while self._unsettled and self._unsettled[0].ended.reached():
            call = self._unsettled.popleft()
            took_s = call.ended.seconds_since(call.began)
            seconds += took_s
            self._per_row_s += took_s / call.rows
            call.total_s = self._per_row_s
        return seconds
