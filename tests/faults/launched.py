"""Darkroom as a process that faults happen to."""

import os
import subprocess
import sys
import time
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

import psutil

ROOT = Path(__file__).parent.parent.parent
INJECT = Path(__file__).parent / "inject"


class Launch:
    """One ``darkroom`` command in a session of its own, its output in files."""

    def __init__(
        self, folder: Path, words: Sequence[str], environment: Mapping[str, str] | None = None, *, harmful: bool = True
    ) -> None:
        """``harmful``: with the words of ``inject/sitecustomize.py``."""
        self.folder, self.words = folder, tuple(words)
        folder.mkdir(parents=True, exist_ok=True)
        token = folder / "ray-token"
        token.write_text("a" * 64)
        clean = {name: value for name, value in os.environ.items() if name != "RAY_ADDRESS"}
        self.out, self.err = folder / "stdout", folder / "stderr"
        with self.out.open("w") as out, self.err.open("w") as err:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "jobs", *words],
                cwd=folder,
                env={
                    **clean,
                    "PYTHONPATH": f"{INJECT}{os.pathsep}{ROOT}" if harmful else str(ROOT),
                    "RAY_AUTH_TOKEN_PATH": str(token),
                    "XDG_CACHE_HOME": str(folder / "cache"),
                    **(environment or {}),
                },
                stdout=out,
                stderr=err,
                start_new_session=True,
            )

    @property
    def running(self) -> bool:
        return self.process.poll() is None

    def wait(self, timeout_s: float = 600) -> int:
        """The exit code."""
        return self.process.wait(timeout_s)

    def workers(self) -> list[psutil.Process]:
        """Processes of render workers that have loaded their code."""
        found = []
        for child in psutil.Process(self.process.pid).children(recursive=True):
            try:
                if "RenderWorker" in " ".join(child.cmdline()):
                    found.append(child)
            except psutil.Error:
                continue
        return found

    def rendering(self) -> list[psutil.Process]:
        """Those of them that have begun a shard since they last ended one, as Ray's titles of processes say."""
        try:
            return [worker for worker in self.workers() if " ".join(worker.cmdline()).strip().endswith(".submit")]
        except psutil.Error:
            return []

    def kill(self) -> None:
        """SIGKILL the driver and everything it started."""
        tree = [psutil.Process(self.process.pid)]
        tree += tree[0].children(recursive=True)
        for process in tree:
            try:
                process.kill()
            except psutil.Error:
                continue
        self.process.wait()


def stop_all(folder: Path) -> int:
    """SIGKILL whatever launches in this folder and below started and left running; returns how many processes."""
    stopped = 0
    while left := [process for process in psutil.process_iter() if _belongs(process, folder)]:
        for process in left:
            with suppress(psutil.NoSuchProcess):
                process.kill()
        stopped += len(psutil.wait_procs(left, timeout=10)[0])
    return stopped


def _belongs(process: psutil.Process, folder: Path) -> bool:
    try:
        home = process.environ().get("XDG_CACHE_HOME", "")
        return Path(home).is_relative_to(folder) and process.status() != psutil.STATUS_ZOMBIE
    except psutil.Error:
        return False


def wait_until(true: Callable[[], bool], timeout_s: float = 120, every_s: float = 0.05) -> bool:
    """Whether it became true in time."""
    until = time.monotonic() + timeout_s
    while time.monotonic() < until:
        if true():
            return True
        time.sleep(every_s)
    return False
