"""The virtual environment OpenStack Swift runs from: its own, so that it never meets Darkroom's dependencies."""

import fcntl
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

REQUIREMENTS = ("swift==2.38.3", "pyeclib==1.8.0")
ENVIRONMENT = Path(__file__).parents[2] / ".work" / "swift-venv"
_INSTALL_LIMIT_S = 900


def swift_python(environment: Path = ENVIRONMENT) -> Path:
    """Return the interpreter of an environment holding Swift, installing it (about a minute) the first time.

    Safe to call from several test runs at once: one installs, the others wait.

    Raises:
        RuntimeError: the registry could not be reached or a wheel is missing; the text is pip's own.
    """
    marker = environment / ".installed"
    environment.parent.mkdir(parents=True, exist_ok=True)
    with _only_one(environment.with_suffix(".lock")):
        if not marker.exists() or marker.read_text() != "\n".join(REQUIREMENTS):
            _install(environment)
            marker.write_text("\n".join(REQUIREMENTS))
    return environment / "bin" / "python"


def _install(environment: Path) -> None:
    shutil.rmtree(environment, ignore_errors=True)
    _run(sys.executable, "-m", "venv", str(environment))
    _run(str(environment / "bin" / "python"), "-m", "pip", "install", "--quiet", *REQUIREMENTS)


def _run(*command: str) -> None:
    done = subprocess.run(command, capture_output=True, text=True, timeout=_INSTALL_LIMIT_S)
    if done.returncode != 0:
        raise RuntimeError(f"{' '.join(command)} failed:\n{done.stderr[-4000:]}")


@contextmanager
def _only_one(lock: Path) -> Iterator[None]:
    with lock.open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


if __name__ == "__main__":
    print(swift_python())
