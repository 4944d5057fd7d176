"""``darkroom plan``: what a job amounts to, before anything is spent. Loads neither torch nor Ray."""

from typing import Any

import typer

from jobs import options
from jobs.words import counted, duration, requested, size
from pipeline.overview import SHOWN_VALUES, describe, figures_of, nothing_in, time_and_cost
from pipeline.planning.count import MAX_ROWS_COMPARED
from pipeline.planning.no_effect import NoEffect
from pipeline.prepare import prepare
from pipeline.strict_json import dumps


def plan(
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
    rate: options.Rate = None,
    price: options.Price = None,
    as_json: options.AsJson = False,
) -> None:
    """Count what a job would render.

    Example: darkroom plan jobs/demo.yaml --set sweep.seeds=0-9
    """
    given = options.load(
        job, settings, date, manifest=manifest, model__id=model, sweep__seeds=seeds,
        sweep__guidance_scales=guidance_scales, sweep__num_inference_steps=steps, sweep__schedulers=schedulers,
        sweep__sizes=sizes, output__uri=output,
    )  # fmt: skip
    options.check_rate(rate, price)
    prepared = prepare(given, skip_bad_rows=skip_bad_rows, cache_folder=options.cache_folder())
    if not prepared.count.rows:
        typer.echo(f"warning: {nothing_in(prepared)}", err=True)
    options.print_warnings(prepared.warnings)
    options.print_own_values(prepared.own_values)
    figures = figures_of(prepared, limit, sample)
    facts = describe(prepared, figures) | time_and_cost(figures, rate, price)
    typer.echo(dumps(facts, indent=1) if as_json else _as_text(facts, prepared.no_effect, priced=price is not None))


def _as_text(facts: dict[str, Any], no_effect: NoEffect, *, priced: bool) -> str:
    sweep, committed = facts["sweep"], facts["images_committed"]
    lines = [
        ("manifest", _rows_text(facts)),
        ("model", f"{facts['model']}, dtype {facts['dtype']}{' and fp8' if facts['precision'] else ''}"),
        ("sweep", _sweep_text(sweep)),
    ]
    if sweep["replaced_by_columns"]:
        lines.append(("columns", f"replace the sweep in their rows: {', '.join(sweep['replaced_by_columns'])}"))
    lines.append(("output", facts["output"]))
    if facts["images_distinct"] not in (None, facts["images_requested"]):
        lines.append(("requested", requested(facts["images_requested"], facts["images_distinct"])))
    if without := no_effect.summary():
        lines.append(("no effect", without))
    if no_effect.not_counted and not no_effect.effects.cut:
        lines.append(("not known", f"how many prompts are cut: {no_effect.not_counted}"))
    lines += [
        ("planned", counted(facts["images_planned"])),
        ("committed", "none yet" if committed is None else f"{committed:,} of these images"),
        ("to render", counted(facts["images_to_render"])),
    ]
    if facts["images_to_render"]:
        lines.append(("time", _time_text(facts)))
        lines.append(("storage", f"about {facts['objects']:,} objects, {size(facts['raw_bytes'])} before compression"))
    if "cost" in facts:
        price = f"{facts['hours']:,.3f} hours at {facts['price_per_hour']:g} for all workers together"
        lines.append(("cost", f"{facts['cost']:,.2f} ({price})"))
    elif priced:
        lines.append(("cost", "unknown, as the time is"))
    return "\n".join(f"{name:<10} {text}" for name, text in lines)


def _time_text(facts: dict[str, Any]) -> str:
    if "hours" not in facts:
        return "unknown: `darkroom render --sample 16` of this job measures it, or give --rate"
    return f"{_time(facts)} at {_rate(facts)}; starting and loading not counted"


def _time(facts: dict[str, Any]) -> str:
    whole = duration(facts["seconds"])
    if "workers" not in facts:
        return whole
    workers = facts["workers"]
    return f"{whole} on {workers} worker{'s' * (workers > 1)}, so {facts['worker_hours']:,.3f} worker hours,"


def _rate(facts: dict[str, Any]) -> str:
    if "images_per_s" in facts:
        return f"{facts['images_per_s']:g} images/s"
    per_image = facts["megapixel_evaluations"] / facts["images_to_render"]
    rate = facts["measured_megapixel_evaluations_per_s"] / per_image
    return f"{rate:,.2f} images/s, as measured over {counted(facts['measured_images'])} of the last launch here"


def _sweep_text(sweep: dict[str, Any]) -> str:
    axes = [f"seeds {_listed(sweep['first_seeds'], sweep['seeds'])}", f"guidance {_listed(sweep['guidance_scales'])}"]
    axes += [f"steps {_listed(sweep['num_inference_steps'])}", _listed(sweep["schedulers"]), _listed(sweep["sizes"])]
    return f"{sweep['points']:,} point{'s' * (sweep['points'] != 1)}: {' × '.join(axes)}"


def _rows_text(facts: dict[str, Any]) -> str:
    parts = [counted(facts["prompt_rows"], "prompt row")]
    parts += [f"{facts['rejected_rows']:,} rejected"] if facts["rejected_rows"] else []
    parts += [f"{facts['repeated_rows']:,} repeated"] if facts["repeated_rows"] else []
    again = facts["repeated_images_of_other_rows"]
    parts += [f"{again:,} images of others repeated"] if again else []
    if not facts["repeats_looked_for"]:
        parts.append(f"repeated rows were not looked for: more than {MAX_ROWS_COMPARED:,} rows")
    return f"{facts['manifest']}: {', '.join(parts)}"


def _listed(values: list[Any], number: int | None = None) -> str:
    shown = ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values[:SHOWN_VALUES])
    number = number or len(values)
    return f"{{{shown}{f', … {number:,} of them' if number > SHOWN_VALUES else ''}}}"
