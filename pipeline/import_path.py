"""The import path: nothing that lies in the working directory, or in a folder that Ray has unpacked, is importable.

A downloaded model folder is a usual working directory, and files in it may have the names of modules.
This module imports only `os` and `sys`, because other modules may still be found in the working directory.
"""

import os
import sys

RAYS_FOLDER = "working_dir_files"
"""Folder in which Ray unpacks the working directories of jobs; Ray deletes them when it likes."""
JOB_OF_RAY = "RAY_JOB_CONFIG_JSON_ENV_VAR"
"""Environment variable that Ray sets for the driver of a submitted job."""


def in_ray_job() -> bool:
    """Return whether Ray's job API started this process."""
    return JOB_OF_RAY in os.environ


def leave_working_directory(*, by_ray: bool) -> None:
    """Make the working directory unimportable for this process and for all that it starts.

    `by_ray`: Ray has put the job's working directory on the path, so absolute entries that name it are left out too.
    """
    here, given = _here(), _entries()
    if not sys.flags.safe_path and sys.path and _is(sys.path[0], here):
        del sys.path[0]
    stay = kept(given, here, by_ray=by_ray)
    for entry in given:
        for form in (entry, os.path.abspath(entry)):  # Python may have made it absolute
            if entry not in stay and os.path.abspath(entry) not in stay and form in sys.path:
                sys.path.remove(form)
    os.environ.update(child_environment(by_ray=by_ray))


def leave_job_directory() -> None:
    """Make the working directory of Ray's job unimportable; Ray calls this as a worker's setup."""
    leave_working_directory(by_ray=True)


def child_environment(*, by_ray: bool = False) -> dict[str, str]:
    """Return the variables with which a Python that is started from here imports nothing from its working directory."""
    stay = kept(_entries(), _here(), by_ray=by_ray)
    return {"PYTHONSAFEPATH": "1", "PYTHONPATH": os.pathsep.join(stay)}


def kept(entries: list[str], here: str, *, by_ray: bool = False) -> list[str]:
    """Return the entries of PYTHONPATH that do not name the working directory `here`.

    An empty entry and `.` name it. An absolute entry is the user's decision and stays, unless Ray has added it.
    """
    return [entry for entry in entries if not _names(entry, here, by_ray)]


def _names(entry: str, here: str, by_ray: bool) -> bool:
    if not os.path.isabs(entry):
        return _is(entry, here)
    return by_ray and (_is(entry, here) or RAYS_FOLDER in entry.split(os.sep))


def _is(entry: str, here: str) -> bool:
    return os.path.realpath(os.path.join(here, entry)) == os.path.realpath(here)


def _entries() -> list[str]:
    given = os.environ.get("PYTHONPATH", "")
    return given.split(os.pathsep) if given else []


def _here() -> str:
    try:
        return os.getcwd()
    except OSError:  # the working directory has been deleted
        return os.sep
