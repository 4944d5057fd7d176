"""What models are on: its name, and errors that are the machine's trouble and never a task's fault."""

import torch

_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "_STATUS_ALLOC_FAILED",
    "cublasCreate",
    "unable to find an engine",
)
"""What torch, cuBLAS and cuDNN say of it, mostly in plain ``RuntimeError``s."""
_DEVICE = ("CUDA error", "cuDNN error", "CUBLAS_STATUS", "CUDNN_STATUS")


def device_name(device: str) -> str:
    """``cpu``, or a GPU's own name: pixels of unlike GPUs may differ in last bits."""
    return device if device == "cpu" else torch.cuda.get_device_name(device)


def out_of_memory(error: BaseException) -> bool:
    """Of the device or of the host."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


def device_error(error: BaseException) -> bool:
    """Out of memory, or the device gave up."""
    if out_of_memory(error) or isinstance(error, torch.AcceleratorError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _DEVICE)
