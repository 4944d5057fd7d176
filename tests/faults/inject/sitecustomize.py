"""On the path of a process, makes words in prompts harmful: "deadly" kills it, "endless" hangs it, "failing" fails.

Python imports this module at start. Darkroom itself has no such hook.
"""

import os
import signal
import sys
import time
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from typing import Any

_TARGET = "pipeline.rendering.preparation"


class _Finder(MetaPathFinder):
    def find_spec(self, name: str, path: Any, target: Any = None) -> Any:
        if name != _TARGET:
            return None
        spec = PathFinder.find_spec(name, path)
        assert spec is not None
        assert spec.loader is not None
        load = spec.loader.exec_module

        def exec_module(module: Any) -> None:
            load(module)
            module.Preparation._prepare = _deadly(module.Preparation._prepare, module.failure)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _deadly(prepare: Any, failure: Any) -> Any:
    def wrapped(preparation: Any, pending: Any, *more: Any) -> Any:
        words = pending.task.recipe.prompt.split()
        if "deadly" in words:
            os.kill(os.getpid(), signal.SIGKILL)
        if "endless" in words:
            time.sleep(3600)
        if "failing" in words:
            return failure(pending.task, "denoise", RuntimeError("this prompt fails"))
        return prepare(preparation, pending, *more)

    return wrapped


sys.meta_path.insert(0, _Finder())
