"""Handing a job to a cluster through Ray's job API, and following it to its end."""

import asyncio
import logging
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import aiohttp
import ray
from ray.job_submission import JobStatus, JobSubmissionClient

from pipeline.distributed.address import check_dashboard, checked_address, refused_token
from pipeline.distributed.dispatcher import GRACE_S
from pipeline.distributed.report import Tell
from pipeline.errors import JobBrokenError, JobFileError

OWN_CODES = (0, 1, 2, 3, 130)
"""What ``darkroom render`` ends with."""
PATIENCE_S = 120.0
"""So long a cluster may not answer while its job is followed."""
AGENT_PATIENCE_S = 60.0
"""Seconds within which a head that has just started must take a job."""
_NO_AGENT = "No available agent"
"""Part of what a dashboard says while no node's agent has joined."""
_POLL_S = 1.0
_NOT_FOUND = (126, 127)
"""What a shell ends with when there is no such command."""
_GONE = (RuntimeError, OSError, aiohttp.ClientError, ray.exceptions.RayError)
"""What Ray's client raises when the cluster does not answer as it should; errors of ``requests`` are OSErrors."""


def _silent(_: str) -> None:
    """Tell nobody."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a submitted job ended, as Ray reports it."""

    stopped: bool
    exit_code: int | None
    """The driver's; None when it was stopped, or never ran."""
    message: str


class Cluster:
    """The job API at an address."""

    def __init__(self, address: str) -> None:
        """``JobFileError`` where the address is not that of a dashboard that takes us."""
        self.address = checked_address(address)
        check_dashboard(self.address)
        for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
            logging.getLogger(name).setLevel(logging.ERROR)
        try:
            self._client = JobSubmissionClient(self.address)
        except ray.exceptions.AuthenticationError as error:
            raise refused_token(self.address, str(error)) from None
        except _GONE as error:
            raise JobBrokenError(f"the cluster at {self.address} does not take jobs: {_line(error)}") from None

    def submit(
        self, words: Sequence[str], runtime_env: Mapping[str, Any], folder: str | None = None, tell: Tell = _silent
    ) -> str:
        """Submit a command and return Ray's id of the job. What the runtime environment names is uploaded first.

        ``folder``: where the command runs, below the job's working directory.
        """
        environment = dict(runtime_env.get("env_vars") or {})
        # Ray gives a job that is stopped 3 seconds by default; workers may take this long for what they have begun.
        environment.setdefault("RAY_JOB_STOP_WAIT_TIME_S", str(int(GRACE_S) + 30))
        entrypoint = shlex.join(words) if folder is None else f"cd {shlex.quote(folder)} && exec {shlex.join(words)}"
        try:
            return self._submitted(entrypoint, {**runtime_env, "env_vars": environment}, tell)
        except ray.exceptions.AuthenticationError as error:
            raise refused_token(self.address, str(error)) from None
        except (ValueError, TypeError) as error:
            raise JobFileError(f"Ray refuses the runtime environment: {_line(error)}", where="--runtime-env") from None
        except _GONE as error:
            raise JobBrokenError(f"the cluster at {self.address} did not take the job: {_line(error)}") from None

    def _submitted(self, entrypoint: str, runtime_env: Mapping[str, Any], tell: Tell) -> str:
        """Wait for the head's agent, which takes jobs some seconds after the dashboard answers."""
        until = time.monotonic() + AGENT_PATIENCE_S
        said = False
        while True:
            try:
                return str(self._client.submit_job(entrypoint=entrypoint, runtime_env=dict(runtime_env)))
            except RuntimeError as error:
                if _NO_AGENT not in str(error) or time.monotonic() > until:
                    raise
            if not said:
                tell(f"the cluster does not take jobs yet; trying again for up to {AGENT_PATIENCE_S:.0f} s")
            said = True
            time.sleep(_POLL_S)

    def follow(self, job: str, write: Callable[[str], None]) -> Ended:
        """Pass on the driver's log until the job has ended.

        ``JobBrokenError`` when the cluster does not answer for ``PATIENCE_S``; the job may go on then.
        """
        log, heard = _Log(write), time.monotonic()
        while True:
            log.begin()
            try:
                asyncio.run(self._tail(job, log))
                heard = time.monotonic()
                ended = self._ended(job)
                if ended is not None:
                    return ended
            except _GONE as error:
                if time.monotonic() - heard > PATIENCE_S:
                    raise JobBrokenError(
                        f"the cluster at {self.address} answers no more; its job {job} may go on: {_line(error)}"
                    ) from None
            time.sleep(_POLL_S)

    async def _tail(self, job: str, log: "_Log") -> None:
        async for text in self._client.tail_job_logs(job):
            log.take(text)

    def _ended(self, job: str) -> Ended | None:
        info = self._client.get_job_info(job)
        if not info.status.is_terminal():
            return None
        return Ended(
            stopped=info.status == JobStatus.STOPPED, exit_code=info.driver_exit_code, message=info.message or ""
        )


def exit_code_of(ended: Ended) -> int:
    """The driver's own code where it is one of ours; ``JobBrokenError`` says what else ended it."""
    if ended.exit_code in OWN_CODES:
        return ended.exit_code
    if ended.stopped:
        return 130
    if ended.exit_code in _NOT_FOUND:
        raise JobBrokenError("the cluster has no `darkroom`: its nodes, or the job's image, must have it installed")
    if ended.exit_code is None:
        said = ended.message.strip().splitlines() or ["Ray does not say why"]
        raise JobBrokenError(f"the job did not run: {said[-1]}")
    raise JobBrokenError(f"the job's driver was killed or broke: exit code {ended.exit_code}; the same command goes on")


class _Log:
    """Ray sends a log from its beginning each time it is asked; what was passed on is left out."""

    def __init__(self, write: Callable[[str], None]) -> None:
        self._write = write
        self._written = self._seen = 0

    def begin(self) -> None:
        self._seen = 0

    def take(self, text: str) -> None:
        fresh = text[max(0, self._written - self._seen) :]
        self._seen += len(text)
        if fresh:
            self._written += len(fresh)
            self._write(fresh)


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
