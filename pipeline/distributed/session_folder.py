"""The folder for Ray's session: sockets lie in it, and the path of a socket has a limit."""

import os
import sys
import tempfile
from pathlib import Path

from pipeline.errors import JobFileError

_MOST_BYTES = 103 if sys.platform == "darwin" else 107
"""Length that the system allows for the path of a Unix socket."""
_SOCKET = "ray/session_2026-11-30_12-00-00_000000_{pid}/sockets/plasma_store"
"""Path of Ray's longest socket below its temporary folder."""
_SHORT = (Path("/tmp"), Path("/var/tmp"))


def session_folder() -> Path | None:
    """Return a folder for Ray's sessions, or None where Ray's own choice can be used.

    Ray takes RAY_TMPDIR, TMPDIR or `/tmp`. `JobFileError` where no folder is short enough and can be written.
    """
    wanted = Path(os.environ.get("RAY_TMPDIR") or os.environ.get("TMPDIR") or "/tmp")
    if _fits(wanted):
        return None
    for folder in filter(_fits, _SHORT):
        return folder / "ray"
    raise JobFileError(
        "no folder can hold the session of Ray",
        where="RAY_TMPDIR",
        value=str(wanted),
        allowed=f"a folder that can be written, with a path of at most {_MOST_BYTES - len(_socket()) - 1} bytes",
    )


def _fits(folder: Path) -> bool:
    return len(os.fsencode(folder.absolute() / _socket())) <= _MOST_BYTES and _is_writable(folder)


def _socket() -> str:
    return _SOCKET.format(pid=os.getpid())


def _is_writable(folder: Path) -> bool:
    """Return whether Ray can make its folder there; another user's `ray` folder may be closed to this one."""
    try:
        (folder / "ray").mkdir(parents=True, exist_ok=True)
        with tempfile.TemporaryFile(dir=folder / "ray"):
            return True
    except OSError:
        return False
