"""Errors that are the machine's trouble and never a task's fault."""

import torch


def out_of_memory(error: BaseException) -> bool:
    """Of the device or, with torch's plain ``RuntimeError``, of the host."""
    return isinstance(error, torch.OutOfMemoryError | MemoryError) or "can't allocate memory" in str(error)


def device_error(error: BaseException) -> bool:
    """Out of memory, or the device gave up."""
    return out_of_memory(error) or isinstance(error, torch.AcceleratorError)
