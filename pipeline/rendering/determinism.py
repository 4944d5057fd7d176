"""Settings of torch that decide last bits, the same in every process that renders. This module loads torch late.

They are kept in ``run.json`` (``NumericsProfile``). Each gives up some speed so that two processes on machines alike
compute the same bytes.
"""

import os
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from functools import wraps
from threading import Lock
from typing import Any, ParamSpec, TypeVar

_Given = ParamSpec("_Given")
_Made = TypeVar("_Made")

ENGINE = 2
"""The version of the engine's arithmetic. 1 stepped a scheduler of diffusers for each image, in the network's dtype."""

SETTINGS: Mapping[str, Any] = {
    "matmul_tf32": False,
    "cudnn_tf32": False,
    "cudnn_benchmark": False,
    "cublas_workspace": ":4096:8",
    "allocator": "expandable_segments:True",
}
"""By their names in ``NumericsProfile``. TF32 would round float32 products to 10 bits. ``cudnn_benchmark`` would choose
algorithms by timing them in each process. The workspace is what cuBLAS needs to give the same sums in every run. The
allocator's segments grow, so that memory which is free can be used; no bit depends on that."""

COMPILE_OPTIONS: Mapping[str, Any] = {
    "emulate_precision_casts": True,
    "deterministic": True,
    "batch_invariant": True,
}
"""Options of inductor. The first rounds within fused operations as between separate ones, so that half precision is
what it is uncompiled. The second chooses reductions by rule, where inductor would time them in each process. The third
gives a row the same kernel whatever the size of its batch."""


_VARIABLES = {"CUBLAS_WORKSPACE_CONFIG": SETTINGS["cublas_workspace"], "PYTORCH_ALLOC_CONF": SETTINGS["allocator"]}
_OVERRIDE = "NVIDIA_TF32_OVERRIDE"
"""Where this variable is 1, NVIDIA's libraries use TF32 whatever torch says."""


def set_up_process() -> None:
    """Apply ``SETTINGS`` to this process, before it first uses a GPU. They go over what the environment says."""
    import torch

    os.environ.update(_VARIABLES)
    os.environ.pop(_OVERRIDE, None)
    torch.set_float32_matmul_precision("highest")  # on CPUs too, where products may be rounded to bfloat16
    torch.backends.cuda.matmul.allow_tf32 = SETTINGS["matmul_tf32"]
    torch.backends.cudnn.allow_tf32 = SETTINGS["cudnn_tf32"]
    torch.backends.cudnn.benchmark = SETTINGS["cudnn_benchmark"]
    torch.set_default_dtype(torch.float32)


def alone_with_torch(work: Callable[_Given, _Made]) -> Callable[_Given, _Made]:
    """Decorate work so that gradients and autocast of the program around it are off: autocast would round."""

    @wraps(work)
    def without_context(*args: _Given.args, **named: _Given.kwargs) -> _Made:
        import torch

        with torch.no_grad(), torch.autocast("cuda", enabled=False), torch.autocast("cpu", enabled=False):
            return work(*args, **named)

    return without_context


class _Borrowed:
    """The settings that this process had before Darkroom, while at least one user needs Darkroom's."""

    def __init__(self) -> None:
        self._users, self._lock = 0, Lock()
        self._give_back: Callable[[], None] = lambda: None

    def begin(self) -> None:
        with self._lock:
            if not self._users:
                self._give_back = _giving_back()
            self._users += 1

    def end(self) -> None:
        with self._lock:
            self._users -= 1
            if not self._users:
                self._give_back()


_borrowed = _Borrowed()


@contextmanager
def borrowed_settings() -> Iterator[None]:
    """Apply ``SETTINGS``, and give a program that uses Darkroom as a library its own ones back.

    They are the process's, so the program has Darkroom's for as long as any such block is open.
    """
    _borrowed.begin()
    try:
        set_up_process()
        yield
    finally:
        _borrowed.end()


def _giving_back() -> Callable[[], None]:
    """Return what makes torch's settings, its threads and the environment as they are now."""
    import torch
    from torch.backends import mkldnn

    environment = {name: os.environ.get(name) for name in (*_VARIABLES, _OVERRIDE)}
    cudnn: Any = torch.backends.cudnn
    on_cpu: Any = mkldnn
    allowed = _readable(lambda: cudnn.allow_tf32)
    precision = _readable(torch.get_float32_matmul_precision)
    parts: list[Any] = [torch.backends.cuda.matmul, on_cpu.matmul, cudnn.conv, cudnn.rnn]
    precisions = [part.fp32_precision for part in parts]
    benchmark, threads, dtype = cudnn.benchmark, torch.get_num_threads(), torch.get_default_dtype()

    def give_back() -> None:
        if allowed is not None:
            cudnn.allow_tf32 = allowed
        if precision is not None:
            torch.set_float32_matmul_precision(precision)
        for part, before in zip(parts, precisions, strict=True):
            if part.fp32_precision != before:
                part.fp32_precision = before
        cudnn.benchmark = benchmark
        torch.set_num_threads(threads)
        torch.set_default_dtype(dtype)
        for name, value in environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value

    return give_back


def _readable(read: Callable[[], _Made]) -> _Made | None:
    """Return a setting; None where torch refuses to read it, since it has a newer name by which it was set."""
    try:
        return read()
    except RuntimeError:
        return None
