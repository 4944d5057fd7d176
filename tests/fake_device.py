"""A GPU that is none: an allocator, others that hold memory until a moment, and a clock that only sleeping moves."""

from collections.abc import Callable
from typing import Any

import torch

from pipeline.rendering.device_memory import DeviceMemory, Patience

GB = 10**9
TOTAL, MODEL = 80 * GB, 5 * GB
NEEDED = 10 * GB
"""What a call takes beside the model."""
ERROR = torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")


class FakeDevice:
    """Others hold ``others`` bytes until ``until_s``, this process ``own``."""

    def __init__(self, others: int, until_s: float, own: int = MODEL) -> None:
        self.others, self.until_s, self.own = others, until_s, own
        self.now_s, self.longest_s = 0.0, 0.0
        self.patience = Patience(self.read, clock=lambda: self.now_s, sleep=self.sleep)

    def sleep(self, seconds: float) -> None:
        self.now_s += seconds
        self.longest_s = max(self.longest_s, seconds)

    def read(self) -> DeviceMemory:
        others = self.others if self.now_s < self.until_s else 0
        return DeviceMemory(total=TOTAL, free=TOTAL - self.own - others, own=self.own)

    def allocate(self) -> None:
        """Raise what torch raises if a call does not fit now."""
        if self.read().free < NEEDED:
            raise ERROR

    def on(self, function: Callable[..., Any]) -> Callable[..., Any]:
        """The same function, which needs memory."""

        def allocating(*args: Any, **named: Any) -> Any:
            self.allocate()
            return function(*args, **named)

        return allocating
