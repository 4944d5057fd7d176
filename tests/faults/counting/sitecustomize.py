"""On the path of a process, notes each picture that its engine begins: a line with its task and the process
in the file that ``LEDGER`` names.

``PAUSE_S`` in the environment makes each take that long besides, so that there is something to disturb.
So a picture counts again whether its process was killed while it was made, before it was stored, or before the commit.
Python imports this module at start. Darkroom itself has no such hook.
"""

import os
import sys
import time
from importlib.abc import MetaPathFinder
from importlib.machinery import PathFinder
from typing import Any

_TARGET = "pipeline.rendering.batch"


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
            module.Batch.admit = _noted(module.Batch.admit)

        spec.loader.exec_module = exec_module  # type: ignore[method-assign]
        return spec


def _noted(begin: Any) -> Any:
    def wrapped(batch: Any, slot: Any) -> None:
        # One write at the end of the file: lines of several processes never mix, and a kill leaves none by halves.
        with open(os.environ["LEDGER"], "ab", buffering=0) as ledger:
            ledger.write(f"{slot.pending.task.task_id} {os.getpid()}\n".encode())
        time.sleep(float(os.environ.get("PAUSE_S", "0")))
        begin(batch, slot)

    return wrapped


if "LEDGER" in os.environ:
    sys.meta_path.insert(0, _Finder())
