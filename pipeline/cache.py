"""Where Darkroom keeps what it need not find out twice; the one place below the verbs that reads the environment."""

import os
from pathlib import Path


def cache_folder() -> Path:
    """For digests of files, and models of object storage: the same for the command and for Python."""
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "darkroom"
