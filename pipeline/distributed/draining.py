"""Machines that are about to leave: their workers commit what they have begun and go, so that others take the rest.

Ray knows of it from ``ray drain-node``, from its autoscaler, and from SIGTERM to a node's own process. Of machines
whose workers cannot begin, people are told here too.
"""

import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import ray
from ray._private.state import state

from pipeline.distributed.report import Tell

ENDS_WITHIN_S = 15.0
POLL_S = 2.0


def draining_nodes() -> set[str]:
    """Ids of the nodes that are about to leave. Ray has no public call that tells."""
    return set(state.get_draining_nodes())


@contextmanager
def watched(board: Any, tell: Tell) -> Iterator[None]:
    """While waves run, workers on such nodes learn it by the board (``board.py``), and people what it has heard."""
    over = threading.Event()
    watcher = threading.Thread(target=_watch, args=(board, tell, over), name="drain", daemon=True)
    watcher.start()
    try:
        yield
    finally:
        over.set()
        watcher.join(ENDS_WITHIN_S)  # a thread that asks something of Ray when that has ended ends this process


def _watch(board: Any, tell: Tell, over: threading.Event) -> None:
    leaving: set[str] = set()
    failing: set[str] = set()
    try:
        while not over.wait(POLL_S):
            for node in sorted(draining_nodes() - leaving):
                leaving.add(node)
                tell(f"node {node[:8]} is about to leave: its workers commit what they have begun")
                ray.get(board.leave.remote(node))
            for node, reason in ray.get(board.complaints.remote()).items():
                if node not in failing:
                    tell(f"warning: a worker on node {node[:8]} cannot work and tries again: {reason}")
                failing.add(node)
    except ray.exceptions.RayError:
        if not over.is_set():
            tell(
                "warning: workers cannot be told any more to stop, or that their node is about to leave: "
                "what they have in hand then is rendered again"
            )
