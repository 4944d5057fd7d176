"""A network compiled for the shapes of its batches."""

from typing import Any

import torch

from pipeline.rendering.determinism import COMPILE_OPTIONS

MAX_SHAPES = 4
"""The most shapes that are kept compiled. Each holds code and, on a GPU, memory."""


class Compiled:
    """A network behind ``torch.compile``, which compiles it for each shape of its first input."""

    def __init__(self, network: Any) -> None:
        self._compiled: Any = torch.compile(network, dynamic=False, options=dict(COMPILE_OPTIONS))
        self._shapes: set[torch.Size] = set()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        first = args[0] if args else kwargs["hidden_states"]
        if first.shape not in self._shapes:
            if len(self._shapes) == MAX_SHAPES:
                # Beyond a limit of its own torch would run uncompiled and only log it, so begin anew before that.
                torch.compiler.reset()
                self._shapes.clear()
            self._shapes.add(first.shape)
        return self._compiled(*args, **kwargs)
