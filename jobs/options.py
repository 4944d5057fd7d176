"""Options that verbs share: a job file, keys put over it, or a job without a file; how to reach an S3 server."""

import re
from collections.abc import Iterable
from contextlib import suppress
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cache import cache_folder as cache_folder  # the verbs find these two beside the options
from pipeline.config import Job, job_keys, load_job, parse_setting
from pipeline.errors import InputError
from pipeline.manifest.survey import OwnValues
from pipeline.planning.spending import check_rate as check_rate
from pipeline.schedulers import SCHEDULERS
from pipeline.storage.s3_settings import S3Settings


def _completed_list(incomplete: str, names: Iterable[str]) -> list[str]:
    """Return completions of the last name in a comma-separated list."""
    before, comma, last = incomplete.rpartition(",")
    return [f"{before}{comma}{name}" for name in names if name.startswith(last)]


JobFile = Annotated[Path | None, typer.Argument(metavar="JOB", help="Job file (YAML).", show_default=False)]
Settings = Annotated[
    list[str] | None,
    typer.Option(
        "--set",
        metavar="KEY=VALUE",
        help="Override a key of the job.",
        autocompletion=lambda incomplete: [f"{key}=" for key in job_keys() if key.startswith(incomplete)],
    ),
]
ManifestOption = Annotated[str | None, typer.Option("--manifest", help="manifest: file, directory, glob or s3://")]
Model = Annotated[str | None, typer.Option("--model", help="model.id")]
Seeds = Annotated[str | None, typer.Option("--seeds", help='sweep.seeds, such as "0-3" or "1,5,9"')]
GuidanceScales = Annotated[
    str | None, typer.Option("--guidance-scales", help='sweep.guidance_scales, such as "1,4,7.5"')
]
Steps = Annotated[str | None, typer.Option("--steps", help='sweep.num_inference_steps, such as "10,25"')]
Schedulers = Annotated[
    str | None,
    typer.Option(
        "--schedulers",
        help='sweep.schedulers, such as "ddim,euler"',
        autocompletion=lambda incomplete: _completed_list(incomplete, SCHEDULERS),
    ),
]
Sizes = Annotated[str | None, typer.Option("--sizes", help='sweep.sizes, such as "96x96,128x96"')]
Output = Annotated[str | None, typer.Option("--output", "-o", help="output.uri: local path or s3://bucket/prefix")]
Prompt = Annotated[
    str | None, typer.Option("--prompt", metavar="TEXT", help="Render this prompt; no manifest is needed.")
]
NegativePrompt = Annotated[str | None, typer.Option("--negative-prompt", metavar="TEXT", help="With --prompt.")]
Date = Annotated[
    str | None,
    typer.Option("--date", metavar="YYYY-MM-DD", help="Fill {date} in output.uri with this date, not with today's."),
]
SkipBadRows = Annotated[
    bool, typer.Option("--skip-bad-rows", help="Go on without the manifest rows that cannot be used.")
]
Limit = Annotated[int | None, typer.Option("--limit", min=1, metavar="N", help="Only the first N images.")]
Sample = Annotated[
    int | None,
    typer.Option("--sample", min=1, metavar="N", help="Only N images, spread over the manifest and every sweep point."),
]
RetryFailed = Annotated[
    bool, typer.Option("--retry-failed", help="Render images again that earlier launches committed as failed.")
]
AsJson = Annotated[
    bool, typer.Option("--json", help="Print JSON instead of a text; progress and warnings go to stderr.")
]
Verbose = Annotated[
    bool, typer.Option("-v", "--verbose", help="Say more at the end: workers, storage, the engines' time, manifests.")
]
Rate = Annotated[
    float | None,
    typer.Option(
        "--rate", metavar="R", help="Images/s of all workers together; else as an earlier launch of the run measured."
    ),
]
Price = Annotated[float | None, typer.Option("--price-per-hour", metavar="P", help="Of all workers together.")]
MaxImages = Annotated[
    int | None, typer.Option("--max-images", min=0, metavar="N", help="Exit with 2 if there is more to render.")
]
MaxCost = Annotated[
    float | None, typer.Option("--max-cost", min=0, metavar="C", help="Exit with 2 if it would cost more.")
]
EndpointUrl = Annotated[
    str | None, typer.Option("--endpoint-url", metavar="URL", help="S3 server to use instead of AWS.")
]
Region = Annotated[str | None, typer.Option("--region", help="Region of the S3 bucket.")]


def print_warnings(warnings: Iterable[str]) -> None:
    """Print each warning as one line on stderr."""
    for warning in warnings:
        typer.echo(f"warning: {warning}", err=True)


def print_own_values(own_values: Iterable[OwnValues]) -> None:
    """Say on stderr which settings come from the manifest's columns."""
    for own in own_values:
        typer.echo(f"note: {own}", err=True)


def s3_settings(endpoint_url: str | None, region: str | None) -> S3Settings:
    """How a verb without a job file reaches S3; what is not given comes the usual AWS way."""
    try:
        return S3Settings(endpoint_url=endpoint_url, region=region)
    except InputError as error:
        error.where = "--endpoint-url"
        raise


OPTIONS = {
    "manifest": "--manifest",
    "model.id": "--model",
    "sweep.seeds": "--seeds",
    "sweep.guidance_scales": "--guidance-scales",
    "sweep.num_inference_steps": "--steps",
    "sweep.schedulers": "--schedulers",
    "sweep.sizes": "--sizes",
    "output.uri": "--output",
}
"""Options by the job key that they set."""


def parse_date(text: str | None) -> date | None:
    """Return the date of a ``--date``; ``InputError`` for what is not one."""
    if text is None:
        return None
    with suppress(ValueError):
        found = date.fromisoformat(text)
        if found.isoformat() == text:
            return found
    raise InputError("invalid date", where="--date", value=text, allowed="YYYY-MM-DD, such as 2026-11-30")


def load(path: Path | None, settings: list[str] | None, day: str | None = None, **keys: str | None) -> Job:
    """Return the job of a command line; ``keys`` are dotted job keys with ``__`` for the dot.

    ``day`` is the value of ``--date``.

    Raises ``InputError`` that names the option where the value came from one.
    """
    by_option = {name.replace("__", "."): value for name, value in keys.items() if value is not None}
    set_keys = dict(parse_setting(text) for text in settings or ())
    given = [(key, _value_of(key, value)) for key, value in by_option.items()]
    try:
        return load_job(path, [*given, *set_keys.items()], date.today(), chosen_date=parse_date(day))
    except InputError as error:
        key = next((key for key in {**by_option, **set_keys} if _is_about(error, key)), None)
        if key is not None:
            error.where = f"--set {key}" if key in set_keys else OPTIONS[key]
        raise


def _value_of(key: str, text: str) -> Any:
    """Return an option's value as the job file would have it: YAML in brackets or braces, or comma-separated names."""
    if key.startswith("sweep.") and text.lstrip().startswith(("[", "{")):
        try:
            return parse_setting(f"{key}={text}")[1]
        except InputError as error:
            error.where, error.value, error.allowed = OPTIONS[key], repr(text), "YAML, as in a job file"
            raise
    return text.split(",") if key in ("sweep.schedulers", "sweep.sizes") else text


def _is_about(error: InputError, key: str) -> bool:
    """Return whether an error's place ends with the key, or with an entry of its list."""
    return error.where is not None and re.sub(r"(\[\d+\])+$", "", error.where).endswith(f": {_full(key)}")


def _full(key: str) -> str:
    return "sweep.num_inference_steps" if key == "sweep.steps" else key


def check_prompt(prompt: str | None, negative_prompt: str | None, manifest: str | None) -> None:
    """``InputError`` for options that do not go together."""
    if prompt is None and negative_prompt is not None:
        raise InputError("--negative-prompt goes with --prompt", allowed="both, or neither")
    if prompt is not None and manifest is not None:
        raise InputError("--prompt and --manifest exclude each other", allowed="one of them")
