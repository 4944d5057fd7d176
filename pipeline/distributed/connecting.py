"""Joining a Ray cluster, or starting a Ray of our own on this machine."""

import json
import logging
import os
import secrets
from collections.abc import Iterator
from contextlib import contextmanager
from importlib.machinery import PathFinder
from pathlib import Path
from typing import Any

import ray
from ray import cloudpickle
from ray.job_config import JobConfig

import pipeline
from pipeline import import_path
from pipeline.distributed.cluster_address import check_alive, no_ray_here
from pipeline.distributed.cpus import usable_cpus
from pipeline.distributed.report import Tell
from pipeline.distributed.session_folder import session_folder
from pipeline.errors import JobBrokenError, JobFileError

_QUIET = {"logging_level": logging.ERROR, "log_to_driver": False}


class _NothingAdded(JobConfig):  # type: ignore[misc]  # Ray ships no types
    """Job configuration that keeps the driver's working directory and script folder off the workers' import path.

    Ray adds both, unless the job has a working directory of its own: `ray/_private/worker.py`, `connect`.
    """

    def _runtime_env_has_working_dir(self) -> bool:
        return True


def connect(address: str | None, tell: Tell = lambda _: None) -> None:
    """Join the cluster at ``address``, or start a Ray of our own on this machine's loopback.

    Raises ``JobFileError`` where there is no Ray at the address, ``JobBrokenError`` where one cannot be used.
    """
    logging.getLogger("ray").setLevel(logging.ERROR)
    if ray.is_initialized():
        return
    try:
        _start(tell) if address is None else _join(address)
    except (ray.exceptions.RayError, OSError, ValueError, RuntimeError) as error:
        raise JobBrokenError(f"Ray at {address or 'this machine'} cannot be used: {error}") from error


def _start(tell: Tell) -> None:
    _check_own_package()
    folder = session_folder()
    if folder is not None:
        tell(f"Ray's files are in {folder}: its usual folder cannot be written, or its path is too long for sockets")
    with _environment(import_path.child_environment() | _token()), _core_silenced():
        ray.init(
            address="local",
            num_cpus=usable_cpus(),
            include_dashboard=False,
            job_config=_NothingAdded(),
            _node_ip_address="127.0.0.1",
            _temp_dir=None if folder is None else str(folder),
            **_QUIET,
        )


def _join(address: str) -> None:
    found = _found(address)
    check_alive(found, given=address)
    with _setup() as runtime_env:
        ray.init(address=found, job_config=_NothingAdded(), runtime_env=runtime_env, **_QUIET)


def _found(address: str) -> str:
    """Return the address of the Ray that `auto` means."""
    if address != "auto":
        return address
    try:
        return str(ray._private.services.canonicalize_bootstrap_address(address))
    except ConnectionError:
        raise no_ray_here() from None


@contextmanager
def _setup() -> Iterator[dict[str, Any] | None]:
    """Yield a runtime environment with which workers take the job's working directory off their import path.

    Ray puts it there for a job that has one. None for other jobs, and for those with a setup of their own.
    """
    given = json.loads(os.environ.get(import_path.JOB_OF_RAY, "{}")).get("runtime_env") or {}
    if not given.get("working_dir") or "worker_process_setup_hook" in given:
        yield None
        return
    # Sent as it is: its name would be looked up on the path that it is to change.
    cloudpickle.register_pickle_by_value(import_path)
    try:
        yield {"worker_process_setup_hook": import_path.leave_job_directory}
    finally:
        cloudpickle.unregister_pickle_by_value(import_path)


def _check_own_package() -> None:
    """Raise ``JobFileError`` if workers would import another `pipeline`: the name is common."""
    own = Path(pipeline.__file__).resolve().parent
    given = import_path.child_environment()["PYTHONPATH"]
    found = PathFinder.find_spec("pipeline", given.split(os.pathsep)) if given else None
    places = (
        [Path(place).resolve() for place in (found.submodule_search_locations or [found.origin or ""])] if found else []
    )
    if places and own not in places:
        raise JobFileError(
            "workers would import another package `pipeline` than Darkroom's",
            where="PYTHONPATH",
            value=str(places[0]),
            allowed=f"no package of this name before {own}",
        )


def _token() -> dict[str, str]:
    """Return a token for a Ray that finds no place to keep one: Ray's own is in the user's home."""
    if any(os.environ.get(name) for name in ("RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH")):
        return {}
    try:
        folder = Path.home() / ".ray"
        folder.mkdir(parents=True, exist_ok=True)
        if os.access(folder / "auth_token", os.R_OK) or os.access(folder, os.W_OK):
            return {}
    except (OSError, RuntimeError):  # no home, or not one of this user's
        pass
    return {"RAY_AUTH_TOKEN": secrets.token_hex(32)}


@contextmanager
def _environment(added: dict[str, str]) -> Iterator[None]:
    """Add variables to the environment of what is started meanwhile."""
    before = {name: os.environ.get(name) for name in added}
    os.environ.update(added)
    try:
        yield
    finally:
        for name, value in before.items():
            if value is None:
                del os.environ[name]
            else:
                os.environ[name] = value


@contextmanager
def _core_silenced() -> Iterator[None]:
    """Ray's core writes to the terminal past Python while it starts; what goes wrong is an exception all the same."""
    kept, nowhere = os.dup(2), os.open(os.devnull, os.O_WRONLY)
    try:
        os.dup2(nowhere, 2)
        yield
    finally:
        os.dup2(kept, 2)
        os.close(kept)
        os.close(nowhere)
