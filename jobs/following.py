"""Looking after a job on a cluster: where the cluster is, the job's log, how the job ended."""

import json
import os
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Annotated

import typer

from pipeline.distributed.job_log import JobLog
from pipeline.errors import InputError, JobBrokenError

if TYPE_CHECKING:
    from pipeline.distributed.submit import Cluster

_RAYS_OWN = ("RAY_API_SERVER_ADDRESS", "RAY_ADDRESS")
"""Ray's client takes an address from these before the one it is given."""
Address = Annotated[
    str | None,
    typer.Option("--address", metavar="URL", help="Ray's dashboard, http://host:8265; or RAY_API_SERVER_ADDRESS."),
]


def cluster_at(address: str | None, starting: Callable[[str], None] | None = None) -> "Cluster":
    """Return the cluster of ``--address``, or of Ray's own variable; ``InputError`` if there is none.

    With ``starting``, a cluster that may be starting is waited for, and told of.
    """
    named = address or os.environ.get("RAY_API_SERVER_ADDRESS")
    for name in _RAYS_OWN:
        os.environ.pop(name, None)
    if not named:
        raise InputError(
            "no cluster is named", where="--address", allowed="the address of Ray's dashboard: http://host:8265"
        )
    # Imported late: bad input is told about before Ray is loaded.
    from pipeline.distributed.submit import Cluster

    return Cluster(named, starting)


def tell_submitted(cluster: "Cluster", job: str, *, as_json: bool) -> None:
    """Print where a job is, and how to look after it."""
    if as_json:
        _print_outcome(cluster, job)
    else:
        typer.echo(f"submitted  {job} to {cluster.address}\n{_commands(cluster, job)}")


def follow(cluster: "Cluster", job: str, *, as_json: bool, submitted: bool = False) -> int:
    """Pass on a job's log until the job has ended, and return its exit code. ``submitted``: say first where it is.

    With ``as_json`` the log goes to stderr and one JSON object to stdout: the launch's summary, or what became of the
    job where there is none.
    """
    from pipeline.distributed.submit import exit_code_of

    log, code, error = JobLog(_to_stderr if as_json else _to_stdout, hold_summary=as_json), None, None
    try:
        if submitted:  # from now on, an interrupt ends the following alone
            typer.echo(f"submitted  {job} to {cluster.address}", err=True)
        code = exit_code_of(cluster.follow(job, log.take))
    except KeyboardInterrupt:
        typer.echo(f"\nthe job goes on; with Ray's own commands:\n{_commands(cluster, job)}", err=True)
        raise SystemExit(130) from None  # past `main`, which would say that the job was interrupted
    except JobBrokenError as broken:
        code, error = 1, str(broken)
        raise
    finally:
        log.close()
        if code == 1:
            _tell_of_ray(log)
        if as_json:
            _print_outcome(cluster, job, code, error, log.summary)
    return code


def show(cluster: "Cluster", job: str, *, as_json: bool) -> None:
    """Print what a job has logged so far, with ``as_json`` as ``follow`` does."""
    found = cluster.find(job)
    log = JobLog(_to_stderr if as_json else _to_stdout, hold_summary=as_json)
    log.take(cluster.log(found.job))
    log.close()
    if found.has_ended and found.exit_code in (None, 1):
        _tell_of_ray(log)
    if as_json:
        _print_outcome(cluster, found.job, found.exit_code, summary=log.summary)


def _print_outcome(
    cluster: "Cluster", job: str, code: int | None = None, error: str | None = None, summary: str | None = None
) -> None:
    facts = {"job": job, "address": cluster.address, "exit_code": code, "error": error}
    typer.echo(summary or json.dumps(facts))


def _tell_of_ray(log: JobLog) -> None:
    """Print the lines that were kept out of the log: they may say why the job broke."""
    for line in log.rays:
        typer.echo(line, err=True)


def _commands(cluster: "Cluster", job: str) -> str:
    """Ray's own, to look after the job."""
    verbs = ("status", "logs --follow", "stop")
    return "\n".join(f"  ray job {verb} --address {cluster.address} {job}" for verb in verbs)


def _to_stdout(text: str) -> None:
    sys.stdout.write(text)
    sys.stdout.flush()


def _to_stderr(text: str) -> None:
    sys.stderr.write(text)
    sys.stderr.flush()
