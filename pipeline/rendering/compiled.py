"""A network compiled for the shapes of its batches."""

from typing import Any

import torch

from pipeline.rendering.determinism import COMPILE_OPTIONS

MAX_SHAPES = 4
"""Kept compiled; each holds code and, on a GPU, memory."""


class Compiled:
    """Calls a network through ``torch.compile``, which compiles it anew for each shape of its first input."""

    def __init__(self, network: Any) -> None:
        self._compiled: Any = torch.compile(network, dynamic=False, options=dict(COMPILE_OPTIONS))
        self._shapes: set[torch.Size] = set()

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        first = args[0] if args else kwargs["hidden_states"]
        if first.shape not in self._shapes:
            if len(self._shapes) == MAX_SHAPES:
                # Past its own limit torch would go on uncompiled and say so only in a log.
                torch.compiler.reset()
                self._shapes.clear()
            self._shapes.add(first.shape)
        return self._compiled(*args, **kwargs)
