"""``darkroom jobs``: the jobs of a cluster, listed, read and stopped through Ray's job API."""

import json
import time
from datetime import UTC, datetime
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs import following, options
from jobs.help import Command
from jobs.words import duration

if TYPE_CHECKING:
    from pipeline.distributed.submit import Cluster, ClusterJob

_POLL_S = 1.0
app = typer.Typer(help="List, read and stop the jobs of a Ray cluster.", no_args_is_help=True)
JobId = Annotated[str, typer.Argument(metavar="JOB", help="Ray's id of the job, as `darkroom jobs list` prints it.")]


@app.command("list", cls=Command)
def list_jobs(
    address: following.Address = None,
    every: Annotated[
        bool, typer.Option("--all", help="List all submitted jobs, not only those of `darkroom submit`.")
    ] = False,
    as_json: options.AsJson = False,
) -> None:
    """List the jobs that `darkroom submit` has submitted to a cluster, newest first.

    Example: darkroom jobs list --address http://head:8265
    """
    cluster = following.cluster_at(address)
    found = cluster.jobs(of_others=every)
    if as_json:
        typer.echo(json.dumps({"address": cluster.address, "jobs": [_facts(job) for job in found]}))
    elif found:
        typer.echo("\n".join(_table(found)))
    else:
        others = "" if every else "; --all lists those that were submitted in other ways"
        typer.echo(f"No jobs of {'anybody' if every else '`darkroom submit`'} at {cluster.address}{others}.")


@app.command("logs", cls=Command)
def logs(
    job: JobId,
    follow: Annotated[
        bool, typer.Option("-f", "--follow", help="Follow the log to the job's end; exit with the job's code.")
    ] = False,
    address: following.Address = None,
    as_json: options.AsJson = False,
) -> None:
    """Print the log of a job.

    Example: darkroom jobs logs raysubmit_4LamXRuQpYdSMg7J --follow --address http://head:8265
    """
    cluster = following.cluster_at(address)
    if not follow:
        following.show(cluster, job, as_json=as_json)
        return
    found = cluster.find(job)
    raise typer.Exit(following.follow(cluster, found.job, as_json=as_json))


@app.command("stop", cls=Command)
def stop(
    job: JobId,
    wait: Annotated[
        bool, typer.Option("--wait/--no-wait", help="Wait for the job's end, or return once it is asked for.")
    ] = True,
    address: following.Address = None,
    as_json: options.AsJson = False,
) -> None:
    """Stop a job: what it has begun is finished and committed. A job that has ended is left as it is.

    Example: darkroom jobs stop raysubmit_4LamXRuQpYdSMg7J --address http://head:8265
    """
    cluster = following.cluster_at(address)
    found = cluster.find(job)
    had_ended = found.has_ended
    if not had_ended:
        found = _stopped(cluster, found, wait=wait)
    if as_json:
        typer.echo(json.dumps({"address": cluster.address, **_facts(found)}))
    elif had_ended:
        typer.echo(f"{found.job} had ended already: {_ending(found)}")
    else:
        typer.echo(f"{found.job} {'has ended: ' + _ending(found) if found.has_ended else 'is asked to stop'}")


def _stopped(cluster: "Cluster", job: "ClusterJob", *, wait: bool) -> "ClusterJob":
    """Ask for a job's end, again while its driver has not started, and return how the job is then."""
    asked = cluster.stop(job.job)
    if wait:
        typer.echo(f"waiting for {job.job}, which finishes and commits what it has begun", err=True)
    while (wait or not asked) and not (job := cluster.find(job.job)).has_ended:
        time.sleep(_POLL_S)
        asked = asked or cluster.stop(job.job)
    return job


def _facts(job: "ClusterJob") -> dict[str, Any]:
    return {
        "job": job.job,
        "status": job.status,
        "exit_code": job.exit_code,
        "started_at": job.started_at and job.started_at.isoformat(timespec="milliseconds"),
        "ended_at": job.ended_at and job.ended_at.isoformat(timespec="milliseconds"),
        "command": job.command,
        "darkroom_version": job.darkroom_version,
    }


def _table(jobs: "list[ClusterJob]") -> list[str]:
    rows = [("job", "status", "exit code", "started (UTC)", "time", "command"), *map(_row, jobs)]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True)).rstrip() for row in rows]


def _row(job: "ClusterJob") -> tuple[str, ...]:
    started = f"{job.started_at:%Y-%m-%d %H:%M:%S}" if job.started_at else ""
    seconds = ((job.ended_at or datetime.now(UTC)) - job.started_at).total_seconds() if job.started_at else None
    return (
        _one_line(job.job),
        job.status,
        "" if job.exit_code is None else str(job.exit_code),
        started,
        "" if seconds is None else duration(seconds),
        _one_line(job.command),
    )


def _one_line(text: str) -> str:
    """Return a text of others without line breaks and control characters, which would break the table."""
    return " ".join("".join(sign if sign.isprintable() else " " for sign in text).split())


def _ending(job: "ClusterJob") -> str:
    return job.status if job.exit_code is None else f"{job.status}, exit code {job.exit_code}"
