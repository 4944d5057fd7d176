"""What a submitted job takes along: the job file and the files it names by relative paths, and nothing else.

A whole working directory would carry `.env` files, outputs and what `.gitignore` leaves out, Parquet manifests often
among it. Absolute paths, ``s3://`` and ids of the Hub mean the same on the cluster and stay there.
"""

import os
import shutil
from collections.abc import Iterator, Mapping
from pathlib import Path

from pipeline.config import Job
from pipeline.errors import InputError, JobFileError, ModelError
from pipeline.manifest.find import find_files
from pipeline.model.resolve import BUILT_IN
from pipeline.output.layout import RUN_KEY
from pipeline.storage.s3_settings import S3Settings

MOST_BYTES = 90 * 2**20
"""A dashboard takes uploads of 100 MiB."""
ALWAYS_LEFT_OUT = (".git", ".venv", "venv", "__pycache__", ".work", "*.egg-info", ".env", "auth_token")
"""Of a whole directory, in the words of a .gitignore."""

JOB_FOLDER = "darkroom-job"
"""Folder inside the job's working directory in which all files lie. Ray puts the working directory on the import path,
and no module has a name with a hyphen: so nothing that is shipped can be imported."""
_BLOCKLIST = "prompts.blocklist"

Parcel = Mapping[str, Path]
"""File by its path on the cluster, below ``JOB_FOLDER``."""


def parcel_of(job: Job, job_file: Path | None) -> Parcel:
    """The files to take along. ``InputError`` for what cannot be, because it is missing, too large or elsewhere."""
    found: dict[str, Path] = {}
    if job_file is not None:
        found[shipped_name(job_file)] = job_file
    if _is_relative(job.manifest):
        found |= {_inside(path, "manifest"): Path(path) for path in _manifest_files(job.manifest)}
    if job.prompts.blocklist and _is_relative(job.prompts.blocklist):
        found[_inside(job.prompts.blocklist, _BLOCKLIST)] = _block_list(job.prompts.blocklist)
    named = [("model.id", job.model.id)] + [("model.loras", lora.id) for lora in job.model.loras]
    for where, name in named:
        found |= {_inside(path, where): Path(path) for path in _model_files(name, where)}
    _check_size(found)
    return found


def shipped_name(job_file: Path) -> str:
    """Where the job file lies below the job's working directory."""
    inside = not job_file.is_absolute() and ".." not in job_file.parts
    return job_file.as_posix() if inside else job_file.name


def pack(parcel: Parcel, folder: Path) -> None:
    """Copy the files into a folder that becomes a job's working directory."""
    (folder / JOB_FOLDER).mkdir(parents=True)
    for name, path in parcel.items():
        target = folder / JOB_FOLDER / name
        target.parent.mkdir(parents=True, exist_ok=True)
        shutil.copyfile(path, target)


def check_output(uri: str) -> None:
    """``JobFileError`` for an output that would lie in the temporary working directory of one node."""
    if _is_relative(uri):
        raise JobFileError(
            "a submitted job has no place for a relative output: it would vanish with the job's folder on one node",
            where="output.uri",
            value=uri,
            allowed="s3://bucket/prefix, or an absolute path that all nodes share",
        )


def left_out(folder: Path) -> list[str]:
    """What of a whole directory is not shipped: outputs of Darkroom, besides what never is."""
    runs = []
    for above, folders, _ in os.walk(folder):
        folders[:] = [name for name in folders if name not in ALWAYS_LEFT_OUT]
        if (Path(above) / RUN_KEY).exists():
            runs.append(f"/{Path(above).relative_to(folder).as_posix()}")
            folders.clear()
    return [*ALWAYS_LEFT_OUT, *sorted(runs)]


def below_job_folder(pattern: str) -> str:
    """Return a pattern of a .gitignore for a directory that becomes ``JOB_FOLDER`` of another one."""
    negation = "!" if pattern.startswith("!") else ""
    body = pattern.removeprefix("!")
    if "/" not in body.rstrip("/"):  # it matches at any depth
        return pattern
    return f"{negation}/{JOB_FOLDER}/{body.lstrip('/')}"


def _is_relative(location: str) -> bool:
    return "://" not in location and not location.startswith(("/", "~"))


def _inside(path: str, where: str) -> str:
    """Its name on the cluster; the same relative path."""
    normal = os.path.normpath(path)
    if normal.startswith(".."):
        raise JobFileError(
            "a submitted job takes along what lies in the working directory, and this does not",
            where=where,
            value=path,
            allowed="a path below the working directory, an absolute path that all nodes share, or s3://",
        )
    return Path(normal).as_posix()


def _manifest_files(uri: str) -> Iterator[str]:
    """Paths as the cluster will look for them: relative, and without following links."""
    if Path(uri).is_file():
        yield uri
        return
    found = find_files(uri, S3Settings())
    above = os.path.relpath(found.store.uri)
    yield from (os.path.join(above, key) for key in found.keys)


def _block_list(name: str) -> Path:
    path = Path(name)
    if not path.is_file():
        raise JobFileError(
            "there is no such block list", where=_BLOCKLIST, value=name, allowed="a text file, one term a line"
        )
    return path


def _model_files(name: str, where: str) -> Iterator[str]:
    path = Path(name)
    if name in BUILT_IN or not _is_relative(name) or not path.exists():
        if name.startswith("."):
            raise ModelError("there is no such model", where=where, value=name)
        return
    files = [path] if path.is_file() else sorted(item for item in path.rglob("*") if item.is_file())
    yield from map(str, files)


def _check_size(parcel: Parcel) -> None:
    try:
        sizes = {name: path.stat().st_size for name, path in parcel.items()}
    except OSError as error:
        raise InputError(f"a file of the job cannot be read: {error.strerror}", value=error.filename) from None
    total = sum(sizes.values())
    if total > MOST_BYTES:
        largest = max(sizes, key=lambda name: sizes[name])
        raise JobFileError(
            f"this job is too large to be taken along: {total / 2**20:.0f} MiB, {largest} the largest file",
            where="manifest, model",
            allowed=f"{MOST_BYTES // 2**20} MiB; put large files into object storage, or where all nodes have them",
        )
