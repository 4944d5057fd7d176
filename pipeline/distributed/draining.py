"""Machines that are about to leave: their workers commit what they have begun and go, so that others take the rest.

Ray knows of it from ``ray drain-node``, from its autoscaler, and from SIGTERM to a node's own process.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from typing import Any

import ray
from ray._private.state import state

from pipeline.distributed.report import Tell

POLL_S = 2.0


def draining_nodes() -> set[str]:
    """Ids of the nodes that are about to leave. Ray has no public call that tells."""
    return set(state.get_draining_nodes())


@contextmanager
def watched(board: Any, tell: Tell) -> Iterator[None]:
    """While waves run, workers on such nodes are told by the board (``stopping.py``)."""
    over = threading.Event()
    threading.Thread(target=_watch, args=(board, tell, over), name="drain", daemon=True).start()
    try:
        yield
    finally:
        over.set()


def _watch(board: Any, tell: Tell, over: threading.Event) -> None:
    known: set[str] = set()
    with suppress(ray.exceptions.RayError):
        while not over.wait(POLL_S):
            for node in sorted(draining_nodes() - known):
                known.add(node)
                tell(f"node {node[:8]} is about to leave: its workers commit what they have begun")
                ray.get(board.leave.remote(node))
