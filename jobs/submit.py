"""``darkroom submit``: the same job on a cluster, through Ray's job API."""

import tempfile
from contextlib import ExitStack
from functools import partial
from pathlib import Path
from typing import Annotated, Any

import typer
import yaml

from jobs import following, options
from pipeline.distributed.parcel import (
    JOB_FOLDER,
    below_job_folder,
    check_output,
    left_out,
    pack,
    parcel_of,
    shipped_name,
)
from pipeline.errors import InputError
from pipeline.planning.selection import check_choice

_KEYS = {option: key.replace(".", "__") for key, option in options.OPTIONS.items()}
"""Keys of the job by their options, as ``options.load`` takes them."""
RuntimeEnv = Annotated[
    Path | None, typer.Option("--runtime-env", metavar="FILE", help="Ray's runtime environment, YAML.")
]
WorkingDir = Annotated[
    Path | None, typer.Option("--working-dir", help="Ship all of this directory, not only what the job names.")
]
Image = Annotated[
    str | None,
    typer.Option("--image", metavar="URI", help="Run in this container image, ship nothing; JOB is a path in it."),
]


def submit(
    job: options.JobFile = None,
    settings: options.Settings = None,
    manifest: options.ManifestOption = None,
    model: options.Model = None,
    seeds: options.Seeds = None,
    guidance_scales: options.GuidanceScales = None,
    steps: options.Steps = None,
    schedulers: options.Schedulers = None,
    sizes: options.Sizes = None,
    output: options.Output = None,
    date: options.Date = None,
    skip_bad_rows: options.SkipBadRows = False,
    limit: options.Limit = None,
    sample: options.Sample = None,
    retry_failed: options.RetryFailed = False,
    max_images: options.MaxImages = None,
    max_cost: options.MaxCost = None,
    price: options.Price = None,
    rate: options.Rate = None,
    as_json: options.AsJson = False,
    verbose: options.Verbose = False,
    address: following.Address = None,
    runtime_env: RuntimeEnv = None,
    working_dir: WorkingDir = None,
    image: Image = None,
    follow: Annotated[
        bool, typer.Option("--follow/--no-wait", help="Follow the job to its end, or return once it is submitted.")
    ] = True,
) -> None:
    """Render a job on a Ray cluster, follow its log and end with its exit code.

    Example: darkroom submit job.yaml --address http://head:8265
    """
    check_choice(limit, sample)
    options.check_rate(rate, price)
    options.parse_date(date)
    given = {
        "--manifest": manifest, "--model": model, "--seeds": seeds, "--guidance-scales": guidance_scales,
        "--steps": steps, "--schedulers": schedulers, "--sizes": sizes, "--output": output, "--date": date,
        "--limit": limit, "--sample": sample, "--max-images": max_images, "--max-cost": max_cost,
        "--price-per-hour": price, "--rate": rate,
    }  # fmt: skip
    flags = {
        "--skip-bad-rows": skip_bad_rows, "--retry-failed": retry_failed, "--json": as_json, "--verbose": verbose,
    }  # fmt: skip
    words = [word for key, value in given.items() if value is not None for word in (key, str(value))]
    words += [word for text in settings or () for word in ("--set", text)]
    words += [flag for flag, is_set in flags.items() if is_set]
    keys = {_KEYS[option]: None if value is None else str(value) for option, value in given.items() if option in _KEYS}
    with ExitStack() as stack:
        environment, name, folder = _shipment(
            stack, job, settings, date, keys, _runtime_env(runtime_env), working_dir, image
        )
        cluster = following.cluster_at(address, partial(typer.echo, err=True))
        command = ["darkroom", "render", *([name] if name else []), *words]
        submitted = cluster.submit(command, environment, folder, partial(typer.echo, err=True))
    if not follow:
        following.tell_submitted(cluster, submitted, as_json=as_json)
        return
    raise typer.Exit(following.follow(cluster, submitted, as_json=as_json, submitted=True))


def _shipment(
    stack: ExitStack,
    job: Path | None,
    settings: list[str] | None,
    date: str | None,
    keys: dict[str, str | None],
    environment: dict[str, Any],
    working_dir: Path | None,
    image: str | None,
) -> tuple[dict[str, Any], str | None, str | None]:
    """Return the runtime environment with what is shipped, the job file's path on the cluster, and the folder of it."""
    there = None if job is None else str(job)
    if image is not None:
        return _in_image(environment, image, working_dir), there, None
    own = environment.get("working_dir")
    if working_dir is None and own is not None:
        if not Path(str(own)).is_dir():  # an archive, which Ray unpacks itself
            return environment, there, None
        return _with_directory(stack, environment, Path(own)), there, JOB_FOLDER
    asked = options.load(job, settings, date, **keys)
    assert asked.output.uri is not None  # load_job fills it in
    check_output(asked.output.uri)
    if working_dir is not None:
        name = _inside(working_dir, job)
        excludes = [*(environment.get("excludes") or []), *left_out(working_dir)]
        return _with_directory(stack, {**environment, "excludes": excludes}, working_dir), name, JOB_FOLDER
    folder = _temporary(stack)
    pack(parcel_of(asked, job), folder)
    return {**environment, "working_dir": str(folder)}, None if job is None else shipped_name(job), JOB_FOLDER


def _temporary(stack: ExitStack) -> Path:
    return Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="darkroom-submit-")))


def _runtime_env(path: Path | None) -> dict[str, Any]:
    if path is None:
        return {}
    allowed = "a YAML mapping with the keys of Ray's runtime environments, such as env_vars and pip"
    try:
        read = yaml.safe_load(path.read_text("utf-8"))
    except (OSError, UnicodeDecodeError, yaml.YAMLError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not YAML"
        raise InputError(
            f"the runtime environment cannot be read: {reason}", where="--runtime-env", value=str(path), allowed=allowed
        ) from None
    if not isinstance(read, dict):  # no value here and below: such files hold secrets
        raise InputError("this is no runtime environment", where="--runtime-env", value=str(path), allowed=allowed)
    if read.get("env_vars") is not None:
        _check_variables(read["env_vars"], path)
    return read


def _check_variables(read: object, path: Path) -> None:
    """Ray takes texts alone; what YAML has made of `012`, `no` or nothing could only be guessed back."""
    allowed = 'NAME: value, texts; "in quotes" where YAML reads a number, yes or no, or null'
    if not isinstance(read, dict):
        raise InputError("the variables are no mapping of names to values", where=f"{path}, env_vars", allowed=allowed)
    for name, value in read.items():
        if not isinstance(name, str) or not isinstance(value, str):
            where = f"{path}, env_vars.{str(name).partition('=')[0]}"
            raise InputError("this variable is no text", where=where, allowed=allowed)


def _in_image(environment: dict[str, Any], image: str, working_dir: Path | None) -> dict[str, Any]:
    if working_dir is not None or "working_dir" in environment:
        raise InputError(
            "a job in an image ships nothing: Ray takes one or the other",
            where="--image, --working-dir",
            allowed="one of them",
        )
    return {**environment, "image_uri": image}


def _with_directory(stack: ExitStack, environment: dict[str, Any], folder: Path) -> dict[str, Any]:
    """Return the environment that ships the directory as ``JOB_FOLDER``; Ray follows the link to it."""
    above = _temporary(stack)
    (above / JOB_FOLDER).symlink_to(folder.resolve(), target_is_directory=True)
    excludes = [below_job_folder(str(pattern)) for pattern in environment.get("excludes") or []]
    return {**environment, "working_dir": str(above), "excludes": excludes}


def _inside(folder: Path, job: Path | None) -> str | None:
    """Return the job file's path in the directory that is shipped."""
    if not folder.is_dir():
        raise InputError("there is no such directory", where="--working-dir", value=str(folder))
    if job is None:
        return None
    if not job.resolve().is_relative_to(folder.resolve()):
        raise InputError(
            "the job file is not in the directory that is shipped", where="JOB", value=str(job), allowed=str(folder)
        )
    return job.resolve().relative_to(folder.resolve()).as_posix()
