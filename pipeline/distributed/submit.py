"""A cluster's jobs through Ray's job API: submitting one, following it to its end, listing and stopping them."""

import asyncio
import logging
import secrets
import shlex
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any
from urllib.parse import quote

import aiohttp
import ray
import requests
from ray.job_submission import JobDetails, JobStatus, JobSubmissionClient, JobType

import pipeline
from pipeline.distributed.address import await_dashboard, check_dashboard, checked_address, refused_token
from pipeline.distributed.dispatcher import GRACE_S
from pipeline.distributed.parcel import JOB_FOLDER
from pipeline.distributed.report import Tell
from pipeline.errors import InputError, JobBrokenError, JobFileError

_INTERRUPTED = 130
OWN_CODES = (0, 1, 2, 3, _INTERRUPTED)
"""What ``darkroom render`` ends with."""
PATIENCE_S = 120.0
"""So long a cluster may not answer while its job is followed."""
AGENT_PATIENCE_S = 60.0
"""Seconds within which a head that has just started must take a job."""
_AGENT_STARTS = ("No available agent", "Cannot connect to host")
"""Parts of what a dashboard says while the head's agent, which takes jobs, has not joined or does not listen yet."""
_TAKEN = "already exists"
"""Part of what a dashboard says of a job whose id it has."""
TAG = "darkroom"
"""Key of Ray's job metadata that marks Darkroom's jobs; its value is the version that submitted the job."""
_NOT_STARTED = datetime.max.replace(tzinfo=UTC)
_POLL_S = 1.0
_NOT_FOUND = (126, 127)
"""What a shell ends with when there is no such command."""
_GONE = (RuntimeError, OSError, aiohttp.ClientError, ray.exceptions.RayError)
"""What Ray's client raises when the cluster does not answer as it should; errors of ``requests`` are OSErrors."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Ended:
    """How a submitted job ended, as Ray reports it."""

    stopped: bool
    exit_code: int | None
    """The driver's; None when it was stopped, or never ran."""
    message: str


@dataclass(frozen=True, slots=True, kw_only=True)
class ClusterJob:
    """A job that was submitted to a cluster, as Ray reports it."""

    job: str
    """Ray's submission id."""
    status: str
    """Ray's word: PENDING, RUNNING, STOPPED, SUCCEEDED or FAILED."""
    exit_code: int | None
    """The driver's, or 130 where it was stopped; None while it runs, and where it never ran."""
    started_at: datetime | None
    ended_at: datetime | None
    command: str
    darkroom_version: str | None
    """Version that submitted the job; None for a job that `darkroom submit` did not submit."""

    @property
    def has_ended(self) -> bool:
        """Return whether nothing of the job runs any more."""
        return bool(JobStatus(self.status).is_terminal())


class Cluster:
    """The job API at an address."""

    def __init__(self, address: str, starting: Tell | None = None) -> None:
        """``JobFileError`` where the address is not that of a dashboard that takes us.

        With ``starting``, a cluster that may be starting is waited for, and told of.
        """
        self.address = checked_address(address)
        check_dashboard(self.address) if starting is None else await_dashboard(self.address, starting)
        for name in ("ray", "ray.dashboard.modules.dashboard_sdk", "ray.dashboard.modules.job.sdk"):
            logging.getLogger(name).setLevel(logging.ERROR)
        self._client = self._asked(lambda: JobSubmissionClient(self.address), "does not take jobs")

    def submit(
        self,
        words: Sequence[str],
        runtime_env: Mapping[str, Any],
        folder: str | None = None,
        tell: Tell = lambda _: None,
    ) -> str:
        """Submit a command and return Ray's id of the job. What the runtime environment names is uploaded first.

        ``folder``: where the command runs, below the job's working directory.
        """
        environment = dict(runtime_env.get("env_vars") or {})
        # Ray gives a job that is stopped 3 seconds by default; workers may take this long for what they have begun.
        environment.setdefault("RAY_JOB_STOP_WAIT_TIME_S", str(int(GRACE_S) + 30))
        entrypoint = shlex.join(words) if folder is None else f"cd {shlex.quote(folder)} && exec {shlex.join(words)}"
        try:
            taken = {**runtime_env, "env_vars": environment}
            return str(self._asked(lambda: self._submitted(entrypoint, taken, tell), "did not take the job"))
        except (ValueError, TypeError) as error:
            raise JobFileError(f"Ray refuses the runtime environment: {_line(error)}", where="--runtime-env") from None

    def _submitted(self, entrypoint: str, runtime_env: Mapping[str, Any], tell: Tell) -> str:
        """Wait for the head's agent, which takes jobs some seconds after the dashboard answers.

        The id is ours, so that a job which was taken although the answer was lost is not submitted twice.
        """
        job = f"raysubmit_{secrets.token_hex(8)}"
        until = time.monotonic() + AGENT_PATIENCE_S
        said = False
        while True:
            try:
                return str(
                    self._client.submit_job(
                        entrypoint=entrypoint,
                        runtime_env=dict(runtime_env),
                        submission_id=job,
                        metadata={TAG: pipeline.__version__},
                    )
                )
            except (RuntimeError, requests.exceptions.ConnectionError) as error:
                if said and _TAKEN in str(error):
                    return job
                if not _may_be_starting(error) or time.monotonic() > until:
                    raise
            if not said:
                tell(f"the cluster does not take jobs yet; trying again for up to {AGENT_PATIENCE_S:.0f} s")
            said = True
            time.sleep(_POLL_S)

    def jobs(self, *, of_others: bool = False) -> list[ClusterJob]:
        """Return the jobs that `darkroom submit` has submitted, newest first; with ``of_others`` all submitted jobs."""
        listed = self._asked(self._client.list_jobs, "does not list its jobs")
        found = [_cluster_job(details) for details in listed if details.type == JobType.SUBMISSION]
        found = [job for job in found if of_others or job.darkroom_version is not None]
        return sorted(found, key=lambda job: (job.started_at or _NOT_STARTED, job.job), reverse=True)

    def find(self, job: str) -> ClusterJob:
        """Return a job by Ray's id of it, that of the submission or of its driver; ``InputError`` if there is none."""
        if job.strip("./") == "":
            raise _no_job(job)
        try:
            details = self._asked(lambda: self._client.get_job_info(quote(job, safe="")), "does not tell of its job")
        except JobBrokenError as error:
            if "status code 404" not in str(error):
                raise
            raise _no_job(job) from None
        if details.type != JobType.SUBMISSION:
            raise InputError(
                "this driver was not submitted as a job; Ray has no log of it and cannot stop it",
                where="JOB",
                value=job,
                allowed="a job that was submitted to the cluster",
            )
        return _cluster_job(details)

    def log(self, job: str) -> str:
        """Return all that the driver and Ray have logged of a job so far."""
        return str(self._asked(lambda: self._client.get_job_logs(quote(job, safe="")), "does not send the log"))

    def stop(self, job: str) -> bool:
        """Ask for a job's end: SIGTERM to its driver, which commits what has begun. Return whether it was running."""
        return bool(self._asked(lambda: self._client.stop_job(quote(job, safe="")), "did not stop the job"))

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
            except _NotWrittenError as error:
                raise error.reason from None
            except _GONE as error:
                if time.monotonic() - heard > PATIENCE_S:
                    raise JobBrokenError(
                        f"the cluster at {self.address} answers no more; its job {job} may go on: {_line(error)}"
                    ) from None
            time.sleep(_POLL_S)

    async def _tail(self, job: str, log: "_Log") -> None:
        async for text in self._client.tail_job_logs(quote(job, safe="")):
            log.take(text)

    def _ended(self, job: str) -> Ended | None:
        info = self._client.get_job_info(quote(job, safe=""))
        if not info.status.is_terminal():
            return None
        return Ended(
            stopped=info.status == JobStatus.STOPPED, exit_code=info.driver_exit_code, message=info.message or ""
        )

    def _asked(self, ask: Callable[[], Any], failure: str) -> Any:
        """Return what Ray's client answers; its errors become Darkroom's."""
        try:
            return ask()
        except ray.exceptions.AuthenticationError as error:
            raise refused_token(self.address, str(error)) from None
        except _GONE as error:
            raise JobBrokenError(f"the cluster at {self.address} {failure}: {_line(error)}") from None


def _may_be_starting(error: Exception) -> bool:
    return isinstance(error, requests.exceptions.ConnectionError) or any(words in str(error) for words in _AGENT_STARTS)


def _no_job(job: str) -> InputError:
    return InputError(
        "no such job", where="JOB", value=job, allowed="an id that `darkroom jobs list --all` prints for this cluster"
    )


def _cluster_job(details: JobDetails) -> ClusterJob:
    stopped = details.status == JobStatus.STOPPED
    return ClusterJob(
        job=str(details.submission_id),
        status=details.status.value,
        exit_code=_INTERRUPTED if stopped and details.driver_exit_code is None else details.driver_exit_code,
        started_at=_moment(details.start_time),
        ended_at=_moment(details.end_time),
        command=details.entrypoint.removeprefix(f"cd {JOB_FOLDER} && exec "),
        darkroom_version=(details.metadata or {}).get(TAG),
    )


def _moment(milliseconds: int | None) -> datetime | None:
    return datetime.fromtimestamp(milliseconds / 1000, UTC) if milliseconds else None


def exit_code_of(ended: Ended) -> int:
    """The driver's own code where it is one of ours; ``JobBrokenError`` says what else ended it."""
    if ended.exit_code in OWN_CODES:
        return ended.exit_code
    if ended.stopped:
        return _INTERRUPTED
    if ended.exit_code in _NOT_FOUND:
        raise JobBrokenError("the cluster has no `darkroom`: its nodes, or the job's image, must have it installed")
    if ended.exit_code is None:
        said = ended.message.strip().splitlines() or ["Ray does not say why"]
        raise JobBrokenError(f"the job did not run: {said[-1]}")
    raise JobBrokenError(f"the job's driver was killed or broke: exit code {ended.exit_code}; the same command goes on")


class _NotWrittenError(Exception):
    """A piece of the log could not be written on this side, which is no fault of the cluster."""

    def __init__(self, reason: OSError) -> None:
        super().__init__(str(reason))
        self.reason = reason


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
            try:
                self._write(fresh)
            except OSError as error:
                raise _NotWrittenError(error) from None


def _line(error: BaseException) -> str:
    lines = str(error).strip().splitlines()
    return lines[-1] if lines else type(error).__name__
