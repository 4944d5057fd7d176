"""Settings of torch that decide last bits, the same in every process that renders. This module loads torch late.

They are kept in ``run.json`` (``NumericsProfile``). Each gives up some speed so that two processes on machines alike
compute the same bytes.
"""

import os
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from typing import Any

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


def set_up_process() -> None:
    """Apply ``SETTINGS`` to this process, before it first uses a GPU. Values of the environment that are set stay."""
    import torch

    os.environ.setdefault("CUBLAS_WORKSPACE_CONFIG", SETTINGS["cublas_workspace"])
    os.environ.setdefault("PYTORCH_ALLOC_CONF", SETTINGS["allocator"])
    torch.backends.cuda.matmul.allow_tf32 = SETTINGS["matmul_tf32"]
    torch.backends.cudnn.allow_tf32 = SETTINGS["cudnn_tf32"]
    torch.backends.cudnn.benchmark = SETTINGS["cudnn_benchmark"]


@contextmanager
def settings_restored() -> Iterator[None]:
    """Leave torch's settings and the environment as they were, for programs that use Darkroom as a library."""
    import torch

    environment = {name: os.environ.get(name) for name in ("CUBLAS_WORKSPACE_CONFIG", "PYTORCH_ALLOC_CONF")}
    matmul, cudnn = torch.backends.cuda.matmul, torch.backends.cudnn
    before = matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark
    try:
        yield
    finally:
        matmul.allow_tf32, cudnn.allow_tf32, cudnn.benchmark = before
        for name, value in environment.items():
            os.environ.pop(name, None)
            if value is not None:
                os.environ[name] = value
