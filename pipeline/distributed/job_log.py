"""The log of a submitted job: Darkroom's own lines, apart from those that Ray adds and from the launch's summary."""

import json
import re
from collections import deque
from collections.abc import Callable

CORES_LINE = re.compile(r"\[\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+ [DIWE] \d+ \d+\] ")
"""The beginning of a line that Ray's core writes beside what the driver prints. Its fatal lines (F, C) are others."""
JOB_APIS_LINE = re.compile(
    r"\d{4}-\d\d-\d\d \d\d:\d\d:\d\d,\d+\t(?:DEBUG|INFO) \S+\.py:\d+ -- "
    r"|Running entrypoint for job .+?: "
)
"""The beginning of a line that Ray's job API writes before the driver starts."""
_KEPT = 20
_SUMMARY_KEYS = {"output", "launch", "added"}


class JobLog:
    """Pass on the lines of a log that comes in pieces. ``close`` it at the log's end."""

    def __init__(self, write: Callable[[str], None], *, hold_summary: bool = False) -> None:
        """``hold_summary`` keeps the summary of ``render --json`` for the caller instead of writing it."""
        self._write, self._hold = write, hold_summary
        self._rest = ""
        self.summary: str | None = None
        """The line with the launch's summary, once it has come."""
        self.rays = deque[str](maxlen=_KEPT)
        """The last lines of Ray's core, which are not passed on; worth reading only if the job broke."""

    def take(self, text: str) -> None:
        """Take the next piece; a line is passed on when it is complete."""
        *lines, self._rest = (self._rest + text).split("\n")
        for line in lines:
            self._pass_on(line)

    def close(self) -> None:
        """Pass on a last line without a line break."""
        if self._rest:
            self._pass_on(self._rest)
        self._rest = ""

    def _pass_on(self, line: str) -> None:
        if CORES_LINE.match(line):
            self.rays.append(line)
        elif JOB_APIS_LINE.match(line):
            return
        elif self._hold and is_summary(line):
            if self.summary is not None:  # only the last one is the launch's
                self._write(f"{self.summary}\n")
            self.summary = line
        else:
            self._write(f"{line}\n")


def is_summary(line: str) -> bool:
    """Return whether a line is the JSON object that ``darkroom render --json`` prints."""
    if not line.startswith('{"output"'):
        return False
    try:
        found = json.loads(line)
    except ValueError:
        return False
    return isinstance(found, dict) and found.keys() >= _SUMMARY_KEYS
