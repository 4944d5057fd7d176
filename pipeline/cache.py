"""Where Darkroom keeps what it need not find out twice; the one place below the verbs that reads the environment."""

import os
from pathlib import Path

from pipeline.errors import InputError


def cache_folder() -> Path:
    """Return the folder for digests of files and for models of object storage, the same for the command and for Python.

    Raises ``InputError`` for a user without a home.
    """
    return Path(os.environ.get("XDG_CACHE_HOME") or _home() / ".cache") / "darkroom"


def _home() -> Path:
    try:
        return Path.home()
    except RuntimeError:
        raise InputError(
            "this user has no home folder for the cache", where="XDG_CACHE_HOME", allowed="a folder that can be written"
        ) from None
