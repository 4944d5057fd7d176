"""``darkroom render``: plan, render what is missing, commit, finalize."""

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from jobs import options
from jobs.prompt import NO_MANIFEST, with_prompt
from jobs.words import duration
from pipeline.distributed.parcel import RAYS_FOLDER, check_output
from pipeline.overview import nothing_in
from pipeline.planning.spending import Spending
from pipeline.prepare import prepare

if TYPE_CHECKING:
    from pipeline.distributed.report import Report

SHOWN_MANIFESTS = 10


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
    address: Annotated[
        str | None,
        typer.Option("--address", help="Ray cluster to use; also RAY_ADDRESS. Without, a Ray is started here."),
    ] = None,
) -> None:
    """Render every image of a job that is not committed yet. The same command again continues.

    Example: darkroom render jobs/demo.yaml
    """
    options.check_rate(rate, price)
    spending = Spending(max_images=max_images, max_cost=max_cost, price_per_hour=price)
    options.check_prompt(prompt, negative_prompt, manifest)
    given = options.load(
        job, settings, manifest=NO_MANIFEST if prompt is not None else manifest, model__id=model, sweep__seeds=seeds,
        sweep__guidance_scales=guidance_scales, sweep__num_inference_steps=steps, sweep__schedulers=schedulers,
        sweep__sizes=sizes, output__uri=output,
    )  # fmt: skip
    if prompt is not None:
        given = with_prompt(given, prompt, negative_prompt)
    if RAYS_FOLDER in Path.cwd().parts:  # of a job that was submitted, in whatever way
        check_output(given.output.uri or "")
    prepared = prepare(given, skip_bad_rows=skip_bad_rows, cache_folder=options.cache_folder())
    options.print_warnings(prepared.warnings)
    options.print_own_values(prepared.own_values)
    for row in prepared.rejected:
        typer.echo(f"skipped: {row}", err=True)
    if not prepared.count.rows:
        typer.echo(f"warning: {nothing_in(prepared)}", err=True)
        from pipeline.distributed.launch import nothing_asked

        report = nothing_asked(prepared)
        typer.echo(report.as_json() if as_json else _as_text(report))
        return

    address = address or os.environ.get("RAY_ADDRESS")
    # Imported late: bad input is told about before torch and Ray are loaded, which takes seconds.
    from jobs.progress import Display
    from pipeline.distributed.launch import LaunchOptions, launch

    chosen = LaunchOptions(
        address=address,
        cache_folder=options.cache_folder(),
        limit=limit,
        sample=sample,
        retry_failed=retry_failed,
        spending=spending,
        images_per_s=rate,
    )
    with Display() as display:
        report = launch(prepared, chosen, display.tell, display.update)
    typer.echo(report.as_json() if as_json else _as_text(report))
    if report.stopped == "interrupted":
        raise typer.Exit(130)
    if report.failed > given.render.allowed_failures:
        raise typer.Exit(3)


def _as_text(report: "Report") -> str:
    pace = f" ({report.images_per_s:.2f} images/s, loading the model included)" if report.images_per_s else ""
    lines = [
        f"rendered   {report.ok:,} images in {duration(report.elapsed_s)}{pace}",
        f"committed  {report.finalized.ok:,} images in {report.output_uri}",
        f"workers    {report.workers}, the model was loaded {_times(report.model_loads)}",
    ]
    if len(report.added_by_manifest) > 1:
        added = sorted(report.added_by_manifest.items())
        lines += [f"  + {number:,} of {name}" for name, number in added[-SHOWN_MANIFESTS:]]
        lines += [f"  + {len(added) - SHOWN_MANIFESTS:,} manifests more"] if len(added) > SHOWN_MANIFESTS else []
    if report.added_key:
        lines.append(f"added      {report.added_key} lists them")
    traffic = report.traffic
    retried = f", {traffic.retries:,} of them again" if traffic.retries else ""
    lines.append(f"store      {traffic.requests:,} requests{retried}; {traffic.bytes_put / 1e6:,.1f} MB written")
    lines += _engines(report)
    if report.cost is not None:
        lines.append(f"cost       {report.cost:,.2f}")
    if report.verdicts:
        counts = sorted(report.verdicts.items(), key=lambda count: -count[1])
        lines.append(f"verdicts   {', '.join(f'{number:,} {verdict}' for verdict, number in counts)}")
    if report.worker_deaths:
        lines.append(f"deaths     {report.worker_deaths} worker deaths; what they had in hand was rendered again")
    if report.stopped:
        lines.append(f"remaining  {report.remaining:,} images: stopped before they were begun")
    if report.rejected_rows:
        lines.append(f"skipped    {report.rejected_rows:,} manifest rows that cannot be used")
    if report.already_failed:
        lines.append(f"failed     {report.already_failed:,} images in earlier launches; not tried again")
    if report.failed:
        lines.append(f"failed     {report.failed:,} images in this launch:")
        lines += [
            f"  - {row['prompt_id']} ({row['task_id']}): {row['verdict']}, {row['error']}" for row in report.failures
        ]
    return "\n".join(lines)


def _times(number: int) -> str:
    return "once" if number == 1 else f"{number} times"


def _engines(report: "Report") -> list[str]:
    from jobs.progress import time_split

    if not report.engine.denoiser_calls:
        return []
    skew = f"; the slowest worker at {report.slowest_worker:.0%} of the median" if report.slowest_worker else ""
    return [f"engines    {time_split(report.engine)}; {report.engine.real_rows:.1%} of rows were images'{skew}"]
