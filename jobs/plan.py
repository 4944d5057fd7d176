"""``darkroom plan``: what a job amounts to, before anything is spent. Loads neither torch nor Ray."""

import json
from dataclasses import dataclass
from typing import Annotated, Any

import typer

from jobs import options
from pipeline.config import PoolSection
from pipeline.errors import InputError, StoreError
from pipeline.identity import IdSet
from pipeline.model.rows import CPU_ROWS
from pipeline.output.index import load_index
from pipeline.output.launch_note import measured_rate, read_notes
from pipeline.output.run import Run, read_run
from pipeline.planning.amount import Amount
from pipeline.planning.count import MAX_ROWS_COMPARED
from pipeline.planning.shards import shard_count, shard_size
from pipeline.planning.spending import Pace
from pipeline.planning.tasks import Space, planned_amount
from pipeline.prepare import Prepared, check_run, numbered_batches, prepare, s3_settings, select
from pipeline.storage.location import open_store

SHOWN_VALUES = 8


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
    skip_bad_rows: options.SkipBadRows = False,
    limit: options.Limit = None,
    sample: options.Sample = None,
    rate: options.Rate = None,
    price: options.Price = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Count what a job would render.

    Example: darkroom plan jobs/demo.yaml --set sweep.seeds=0-9
    """
    given = options.load(
        job, settings, manifest=manifest, model__id=model, sweep__seeds=seeds, sweep__guidance_scales=guidance_scales,
        sweep__num_inference_steps=steps, sweep__schedulers=schedulers, sweep__sizes=sizes, output__uri=output,
    )  # fmt: skip
    if limit is not None and sample is not None:
        raise InputError("--limit and --sample exclude each other", allowed="one of them")
    options.check_rate(rate, price)
    prepared = prepare(given, skip_bad_rows=skip_bad_rows, cache_folder=options.cache_folder())
    figures = _figures(prepared, limit, sample)
    facts = describe(prepared, figures) | _time_and_cost(figures, rate, price)
    typer.echo(json.dumps(facts, indent=1) if as_json else _as_text(facts))


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """A plan held against the run at its output."""

    run: Run | None
    """None where nothing is committed."""
    whole: Amount
    to_render: Amount
    evaluations_per_s: float | None = None
    """Of the last launch of this run that tells."""
    workers: int = 0
    """Of that launch."""


def _figures(prepared: Prepared, limit: int | None, sample: int | None) -> Figures:
    uri = prepared.job.output.uri
    assert uri is not None  # load_job fills it in
    store = open_store(uri, s3_settings(prepared.job).impatient(), where="output.uri")
    try:
        run = read_run(store)
        committed = load_index(store).all() if run else IdSet()
    except StoreError as error:
        raise InputError(f"the output cannot be read: {error}", where="output.uri", value=uri) from None
    run = run if len(committed) else None
    if run is not None:
        check_run(run, prepared, store.uri)
    elif limit is None and sample is None:
        return Figures(run=None, whole=prepared.count.amount, to_render=prepared.count.amount)
    digest = run.constants.digest() if run else b"\0" * 16
    space = Space(axes=prepared.axes, family=prepared.model.family, run_digest=digest)
    selection = select(prepared, limit=limit, sample=sample)
    whole, missing = planned_amount(numbered_batches(prepared.manifest), space, selection, committed)
    notes = [note for note in read_notes(store) if note.evaluations_per_s]
    return Figures(
        run=run,
        whole=whole,
        to_render=missing,
        evaluations_per_s=measured_rate(notes),
        workers=notes[-1].workers if notes else 0,
    )


def describe(prepared: Prepared, figures: Figures) -> dict[str, Any]:
    """The plan as plain values."""
    open_, axes, counted = figures.to_render, prepared.axes, prepared.count
    shards = _shards(prepared, figures)
    return {
        "manifest": prepared.job.manifest,
        "output": prepared.job.output.uri,
        "model": prepared.source.model_id,
        "dtype": figures.run.constants.dtype if figures.run else prepared.job.model.dtype,
        "prompt_rows": counted.rows,
        "rejected_rows": len(prepared.rejected_rows),
        "repeats_looked_for": counted.compared,
        "repeated_rows": len(counted.repeated),
        "repeated_images_of_other_rows": len(counted.repeats),
        "sweep": {
            "seeds": len(axes.seeds),
            "first_seeds": list(axes.seeds[:SHOWN_VALUES]),
            "guidance_scales": list(axes.guidance_scales),
            "num_inference_steps": list(axes.num_inference_steps),
            "schedulers": list(axes.schedulers),
            "sizes": [f"{width}x{height}" for width, height in axes.sizes],
            "points": prepared.points,
            "replaced_by_columns": list(counted.overrides),
        },
        "images_planned": figures.whole.images,
        "images_committed": None if figures.run is None else figures.whole.images - open_.images,
        "images_to_render": open_.images,
        "evaluations": open_.evaluations,
        "megapixels": round(open_.megapixels, 3),
        "megapixel_evaluations": round(open_.megapixel_evaluations, 3),
        "megapixel_steps": round(open_.megapixel_steps, 3),
        "shards": shards,
        "objects": shards + (open_.images if prepared.packing.layout == "files" else shards),
        "raw_bytes": round(open_.megapixels * 3e6),
    }


def _shards(prepared: Prepared, figures: Figures) -> int:
    """About as many as ``render`` makes; ``auto`` counts as one worker, and as the rows of a CPU before a run says."""
    render, given = prepared.job.render, prepared.job.workers.count
    rows = CPU_ROWS if render.rows == "auto" else render.rows
    if render.rows == "auto" and figures.run:
        rows = figures.run.batch_rows.most(prepared.count.sizes)
    slots, images = max(1, rows // 2), figures.to_render.images
    most = 1 if given == "auto" else given.max if isinstance(given, PoolSection) else given
    workers = min(most, max(1, -(-images // slots)))
    fixed = None if render.shard_images == "auto" else render.shard_images
    return shard_count(figures.to_render, shard_size(figures.to_render, workers, slots, fixed))


def _time_and_cost(figures: Figures, rate: float | None, price: float | None) -> dict[str, float]:
    pace = Pace(images_per_s=rate, evaluations_per_s=figures.evaluations_per_s)
    hours = pace.hours(figures.to_render)
    if hours is None:
        return {}
    facts = {"images_per_s": rate} if rate is not None else {"measured_evaluations_per_s": figures.evaluations_per_s}
    facts |= {"hours": round(hours, 3), "workers": figures.workers, "worker_hours": round(hours * figures.workers, 3)}
    known = {name: value for name, value in facts.items() if value}
    return known if price is None else known | {"price_per_hour": price, "cost": round(hours * price, 2)}


def _as_text(facts: dict[str, Any]) -> str:
    sweep, committed = facts["sweep"], facts["images_committed"]
    lines = [
        ("manifest", _rows_text(facts)),
        ("model", f"{facts['model']}, dtype {facts['dtype']}"),
        ("sweep", f"{sweep['points']:,} points: seeds {_listed(sweep['first_seeds'], sweep['seeds'])} × guidance "
         f"{_listed(sweep['guidance_scales'])} × steps {_listed(sweep['num_inference_steps'])} × "
         f"{_listed(sweep['schedulers'])} × {_listed(sweep['sizes'])}"),
        ("columns", f"replace the sweep in their rows: {', '.join(sweep['replaced_by_columns'])}"
         if sweep["replaced_by_columns"] else "none replaces an axis"),
        ("output", facts["output"]),
        ("planned", f"{facts['images_planned']:,} images"),
        ("committed", "the output holds no image yet" if committed is None else f"{committed:,} images"),
        ("to render", f"{facts['images_to_render']:,} images, {facts['evaluations']:,} evaluations, "
         f"{facts['megapixel_evaluations']:,} megapixel-evaluations, {facts['megapixel_steps']:,} megapixel-steps"),
        ("objects", f"about {facts['objects']:,} ({facts['shards']:,} shards), "
         f"{facts['raw_bytes'] / 1e9:,.2f} GB of pixels before compression"),
    ]  # fmt: skip
    if "hours" in facts:
        cost = f", {facts['cost']:,.2f} at {facts['price_per_hour']:g} per hour" if "cost" in facts else ""
        lines.append(("time", f"{_hours(facts)} at {_rate(facts)}{cost}"))
    return "\n".join(f"{name:<10} {text}" for name, text in lines)


def _hours(facts: dict[str, Any]) -> str:
    whole = f"{facts.get('hours', 0):,.3f} hours"
    if "workers" not in facts:
        return whole
    return f"{whole} of {facts['workers']} worker(s), so {facts['worker_hours']:,.3f} worker hours,"


def _rate(facts: dict[str, Any]) -> str:
    if "images_per_s" in facts:
        return f"{facts['images_per_s']:g} images/s"
    return f"{facts['measured_evaluations_per_s']:,.1f} evaluations/s, as the last launch here measured"


def _rows_text(facts: dict[str, Any]) -> str:
    parts = [f"{facts['prompt_rows']:,} prompt rows"]
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
