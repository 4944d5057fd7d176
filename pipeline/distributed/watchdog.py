"""End a process whose engine hangs; the dispatcher starts another worker in its place."""

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
    """End this process at once. It counts as a death of the tasks that are in flight."""
    _log.error("%s: the process ends, another one takes over", reason)
    logging.shutdown()
    os._exit(EXIT_CODE)
