"""Options that verbs share: a job file, keys put over it, or a job without a file; how to reach an S3 server."""

from collections.abc import Iterable
from datetime import date
from pathlib import Path
from typing import Annotated, Any

import typer

from pipeline.cache import cache_folder as cache_folder  # the verbs find these two beside the options
from pipeline.config import Job, load_job, parse_setting
from pipeline.errors import InputError
from pipeline.planning.spending import check_rate as check_rate
from pipeline.storage.s3_settings import S3Settings

JobFile = Annotated[Path | None, typer.Argument(metavar="[JOB]", help="Job file (YAML).", show_default=False)]
Settings = Annotated[
    list[str] | None, typer.Option("--set", metavar="KEY=VALUE", help="Put a value over a key of the job.")
]
ManifestOption = Annotated[str | None, typer.Option("--manifest", help="manifest: file, directory, glob or s3://")]
Model = Annotated[str | None, typer.Option("--model", help="model.id")]
Seeds = Annotated[str | None, typer.Option("--seeds", help='sweep.seeds, such as "0-3" or "1,5,9"')]
GuidanceScales = Annotated[
    str | None, typer.Option("--guidance-scales", help='sweep.guidance_scales, such as "1,4,7.5"')
]
Steps = Annotated[str | None, typer.Option("--steps", help='sweep.num_inference_steps, such as "10,25"')]
Schedulers = Annotated[str | None, typer.Option("--schedulers", help='sweep.schedulers, such as "ddim,euler"')]
Sizes = Annotated[str | None, typer.Option("--sizes", help='sweep.sizes, such as "96x96,128x96"')]
Output = Annotated[str | None, typer.Option("--output", "-o", help="output.uri: local path or s3://bucket/prefix")]
Prompt = Annotated[
    str | None, typer.Option("--prompt", metavar="TEXT", help="Render this prompt; no manifest is needed.")
]
NegativePrompt = Annotated[str | None, typer.Option("--negative-prompt", metavar="TEXT", help="With --prompt.")]
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
    bool, typer.Option("--json", help="Print JSON instead of a text; what is said meanwhile is no part of it.")
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


def s3_settings(endpoint_url: str | None, region: str | None) -> S3Settings:
    """How a verb without a job file reaches S3; what is not given comes the usual AWS way."""
    try:
        return S3Settings(endpoint_url=endpoint_url, region=region)
    except InputError as error:
        error.where = "--endpoint-url"
        raise


def load(path: Path | None, settings: list[str] | None, **keys: str | None) -> Job:
    """The job of a command line; ``keys`` are dotted job keys with ``__`` for the dot."""
    given: list[tuple[str, Any]] = []
    for name, value in keys.items():
        if value is not None:
            key = name.replace("__", ".")
            given.append((key, value.split(",") if key in ("sweep.schedulers", "sweep.sizes") else value))
    given += [parse_setting(text) for text in settings or ()]
    return load_job(path, given, date.today())


def check_prompt(prompt: str | None, negative_prompt: str | None, manifest: str | None) -> None:
    """``InputError`` for options that do not go together."""
    if prompt is None and negative_prompt is not None:
        raise InputError("--negative-prompt goes with --prompt", allowed="both, or neither")
    if prompt is not None and manifest is not None:
        raise InputError("--prompt and --manifest exclude each other", allowed="one of them")
