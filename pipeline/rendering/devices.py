"""The name of a device, and the errors that are the machine's fault and not a task's."""

import torch

_OUT_OF_MEMORY = (
    "out of memory",
    "can't allocate memory",
    "_STATUS_ALLOC_FAILED",
    "cublasCreate",
    "unable to find an engine",
)
"""Texts in the out-of-memory errors of torch, cuBLAS and cuDNN, which are mostly plain ``RuntimeError``s."""
_DEVICE = ("CUDA error", "cuDNN error", "CUBLAS_STATUS", "CUDNN_STATUS")


def device_name(device: str) -> str:
    """Return ``cpu`` or the GPU's name. Pixels of different GPUs may differ in last bits."""
    return device if device == "cpu" else torch.cuda.get_device_name(device)


def out_of_memory(error: BaseException) -> bool:
    """Return whether an error means that the device or the host is out of memory."""
    if isinstance(error, torch.OutOfMemoryError | MemoryError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _OUT_OF_MEMORY)


def device_error(error: BaseException) -> bool:
    """Return whether an error means that memory is short or that the device has failed."""
    if out_of_memory(error) or isinstance(error, torch.AcceleratorError):
        return True
    return isinstance(error, RuntimeError) and any(text in str(error) for text in _DEVICE)
