"""``darkroom render``: plan, render what is missing, commit, finalize."""

import os
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from jobs import options
from jobs.prompt import NO_MANIFEST, with_prompt
from jobs.words import counted, duration, requested
from pipeline.distributed.cluster_address import checked_cluster
from pipeline.distributed.parcel import check_output
from pipeline.import_path import RAYS_FOLDER
from pipeline.overview import nothing_in
from pipeline.planning.spending import Spending
from pipeline.prepare import Prepared, prepare

if TYPE_CHECKING:
    from pipeline.distributed.report import Report

SHOWN_MANIFESTS = 10
_Line = tuple[str, str]
"""A line of the report: its name, which may be empty, and its text."""


def render(
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
    prompt: options.Prompt = None,
    negative_prompt: options.NegativePrompt = None,
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
    address: Annotated[
        str | None,
        typer.Option("--address", help="Ray cluster to use; also RAY_ADDRESS. Without, a Ray is started here."),
    ] = None,
) -> None:
    """Render every image of a job that is not committed yet. The same command again continues.

    Example: darkroom render jobs/demo.yaml
    """
    options.check_rate(rate, price)
    address = checked_cluster(address or os.environ.get("RAY_ADDRESS"))
    spending = Spending(max_images=max_images, max_cost=max_cost, price_per_hour=price)
    options.check_prompt(prompt, negative_prompt, manifest)
    given = options.load(
        job, settings, date, manifest=NO_MANIFEST if prompt is not None else manifest, model__id=model,
        sweep__seeds=seeds, sweep__guidance_scales=guidance_scales, sweep__num_inference_steps=steps,
        sweep__schedulers=schedulers, sweep__sizes=sizes, output__uri=output,
    )  # fmt: skip
    if prompt is not None:
        given = with_prompt(given, prompt, negative_prompt)
    if RAYS_FOLDER in Path.cwd().parts:  # of a job that was submitted, in whatever way
        check_output(given.output.uri or "")
    prepared = prepare(given, skip_bad_rows=skip_bad_rows, cache_folder=options.cache_folder())
    _tell_of_input(prepared)
    report = _launched(
        prepared,
        address=address, limit=limit, sample=sample, retry_failed=retry_failed, spending=spending, images_per_s=rate,
    )  # fmt: skip
    typer.echo(report.as_json() if as_json else _as_text(report, verbose=verbose))
    if report.stopped == "interrupted":
        raise typer.Exit(130)
    if report.failed > given.render.allowed_failures:
        raise typer.Exit(3)


def _tell_of_input(prepared: Prepared) -> None:
    options.print_warnings(prepared.warnings)
    options.print_own_values(prepared.own_values)
    for row in prepared.rejected:
        typer.echo(f"skipped: {row}", err=True)
    if not prepared.count.rows:
        options.print_warnings([nothing_in(prepared)])


def _launched(prepared: Prepared, **chosen: Any) -> "Report":
    """Return the report of a launch; ``chosen`` are fields of ``LaunchOptions``."""
    # Imported late: bad input is told about before torch and Ray are loaded, which takes seconds.
    from jobs.progress import Display
    from pipeline.distributed.launch import LaunchOptions, launch, nothing_asked

    if not prepared.count.rows:
        return nothing_asked(prepared)
    launch_options = LaunchOptions(cache_folder=options.cache_folder(), **chosen)
    with Display() as display:
        return launch(prepared, launch_options, display.tell, display.update)


def _as_text(report: "Report", *, verbose: bool = False) -> str:
    lines = [*_outcome(report), *(_details(report) if verbose else ()), *_what_to_know(report)]
    return "\n".join(f"{name:<10} {text}".rstrip() if name else text for name, text in lines)


def _outcome(report: "Report") -> Iterator[_Line]:
    """Yield the lines about images and cost."""
    if not (report.ok or report.failed or report.remaining):
        yield "", _nothing_to_render(report)
    else:
        pace = f" ({report.images_per_s:.2f} images/s, loading the model included)" if report.images_per_s else ""
        yield "rendered", f"{counted(report.ok)} in {duration(report.elapsed_s)}{pace}"
        yield "committed", f"{counted(report.finalized.ok)} in {report.output_uri}"
    if report.cost is not None:
        yield "cost", f"{report.cost:,.2f}"


def _nothing_to_render(report: "Report") -> str:
    if not report.planned:
        return f"Nothing to render: the job asks for no image. {report.output_uri} is as it was."
    one = report.planned == 1
    whole = "the image" if one else f"all {counted(report.planned)}"
    if report.already_failed:
        return f"Nothing to render: {whole} {'has' if one else 'have'} an outcome in {report.output_uri}."
    return f"Nothing to render: {whole} {'is' if one else 'are'} there, in {report.output_uri}."


def _details(report: "Report") -> Iterator[_Line]:
    """Yield the lines that only ``--verbose`` prints."""
    yield "workers", f"{report.workers}; the model was loaded {_times(report.model_loads)}"
    yield from _by_manifest(report)
    if report.added_key:
        yield "added", f"{report.added_key} lists the images of this launch"
    traffic = report.traffic
    retried = f", {traffic.retries:,} of them retries" if traffic.retries else ""
    yield "store", f"{traffic.requests:,} requests{retried}; {traffic.bytes_put / 1e6:,.1f} MB written"
    if report.engine.denoiser_calls:
        from jobs.progress import time_split

        yield "engines", f"{time_split(report.engine)}; batch fill {report.engine.real_rows:.1%}"
    if report.slowest_worker:
        yield "slowest", f"worker at {report.slowest_worker:.0%} of the median worker's rate"


def _by_manifest(report: "Report") -> Iterator[_Line]:
    added = sorted(report.added_by_manifest.items())
    if len(added) > 1:
        for name, number in added[-SHOWN_MANIFESTS:]:
            yield "", f"  + {number:,} of {name}"
        if len(added) > SHOWN_MANIFESTS:
            yield "", f"  + {len(added) - SHOWN_MANIFESTS:,} manifests more"


def _what_to_know(report: "Report") -> Iterator[_Line]:
    """Yield the lines that may call for action; none if everything is as it should be."""
    if report.requested is not None and report.requested != report.planned:
        yield "requested", requested(report.requested, report.planned)
    if without := report.no_effect.summary():
        yield "no effect", without
    if report.verdicts:
        counts = sorted(report.verdicts.items(), key=lambda count: -count[1])
        yield "verdicts", ", ".join(f"{number:,} {verdict}" for verdict, number in counts)
    if report.worker_deaths:
        yield "deaths", f"{report.worker_deaths} worker deaths; what they had in hand was rendered again"
    if report.stopped:
        yield "remaining", f"{counted(report.remaining)}: stopped before they were begun"
    if report.rejected_rows:
        yield "skipped", f"{report.rejected_rows:,} manifest rows that cannot be used"
    if report.already_failed:
        yield "failed", f"{counted(report.already_failed)} in earlier launches; --retry-failed tries them again"
    if report.failed:
        yield "failed", f"{counted(report.failed)} in this launch:"
        for row in report.failures:
            yield "", f"  - {row['prompt_id']} ({row['task_id']}): {row['verdict']}, {row['error']}"


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"
