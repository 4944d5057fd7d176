"""What a worker writes to its log: one line of JSON per event, one event per shard.

The standard error of a worker is a file of its own in Ray's log directory, which Ray's dashboard shows by worker and
log collectors pick up. Lines hold names, counts and times: no prompt, and nothing that could be a credential.
"""

import json
import logging
import sys
from collections.abc import Mapping
from datetime import UTC, datetime
from typing import TextIO

from pipeline.errors import without_credentials

LOGGER = "darkroom.worker"
Fact = str | int | float | None


class Lines(logging.StreamHandler[TextIO]):
    """Writes messages as they are."""


class WorkerLog:
    """The log of one worker."""

    def __init__(self, identity: Mapping[str, Fact]) -> None:
        """``identity`` is in every line: job, launch, node, worker."""
        self._identity = dict(identity)
        self._logger = logging.getLogger(LOGGER)
        self._logger.setLevel(logging.INFO)
        self._logger.propagate = False
        if not any(isinstance(handler, Lines) for handler in self._logger.handlers):
            self._logger.addHandler(Lines(sys.stderr))

    def ready(self, *, device: str, rows: int | str, seconds: float) -> None:
        """The model is loaded."""
        self._write(logging.INFO, "ready", device=device, rows=rows, seconds=round(seconds, 3))

    def shard(self, part_id: str, *, images: int, failed: int, seconds: float) -> None:
        """A shard is committed. ``seconds`` since it was begun: two shards may be under way at once."""
        self._write(logging.INFO, "shard", part=part_id, images=images, failed=failed, seconds=round(seconds, 3))

    def broken(self, reason: str, part_id: str | None = None) -> None:
        """The worker, or the shard, cannot go on; the driver learns of it too."""
        lines = without_credentials(reason).strip().splitlines() or [""]
        self._write(logging.ERROR, "broken", part=part_id, reason=lines[0])

    def _write(self, level: int, event: str, **facts: Fact) -> None:
        line = {
            "time": datetime.now(UTC).isoformat(timespec="milliseconds"),
            "level": logging.getLevelName(level).lower(),
            "event": event,
            **self._identity,
            **facts,
        }
        self._logger.log(level, json.dumps(line))
