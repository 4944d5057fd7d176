"""Ends a process whose engine hangs; Ray starts another one in its place."""

import logging
import os
import threading
import time
from typing import NoReturn

from pipeline.distributed.runner import LeaseRunner

EXIT_CODE = 70
_log = logging.getLogger(__name__)


def watch(runner: LeaseRunner, limit_s: float) -> None:
    """From now on, one step of the engine may take so long; the first with a new shape compiles on GPUs."""
    threading.Thread(target=_watch, args=(runner, limit_s), name="watchdog", daemon=True).start()


def _watch(runner: LeaseRunner, limit_s: float) -> None:
    while True:
        time.sleep(min(5.0, limit_s / 4))
        if runner.step_s > limit_s:
            die(f"one step of the engine took more than {limit_s:g} s")


def die(reason: str) -> NoReturn:
    """End this process at once; Ray starts another one, and what was in hand is charged with a death."""
    _log.error("%s: the process ends, another one takes over", reason)
    logging.shutdown()
    os._exit(EXIT_CODE)


def leave() -> NoReturn:
    """End this process, which has nothing in hand: Ray starts another one elsewhere."""
    logging.shutdown()
    os._exit(0)
