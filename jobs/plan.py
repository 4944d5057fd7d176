"""``darkroom plan``: what a job amounts to, before anything is spent. Loads neither torch nor Ray."""

import json
from typing import Annotated, Any

import typer

from jobs import options
from pipeline.errors import InputError, StoreError
from pipeline.identity import IdSet
from pipeline.output.index import load_index
from pipeline.output.run import read_run
from pipeline.planning.count import Amount
from pipeline.planning.shards import shard_size
from pipeline.planning.tasks import Space, planned_amount
from pipeline.prepare import Prepared, numbered_batches, prepare, s3_settings, select
from pipeline.storage.location import open_store


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
    prepared = prepare(given, skip_bad_rows=skip_bad_rows)
    facts = describe(prepared, *_amounts(prepared, limit, sample))
    typer.echo(json.dumps(facts, indent=1) if as_json else _as_text(facts))


def _amounts(prepared: Prepared, limit: int | None, sample: int | None) -> tuple[Amount, Amount | None]:
    """What is planned, and what is missing; None before the output holds a run."""
    uri = prepared.job.output.uri
    assert uri is not None  # load_job fills it in
    store = open_store(uri, s3_settings(prepared.job))
    try:
        run = read_run(store)
        index = load_index(store) if run else None
    except StoreError as error:
        raise InputError(f"the output cannot be read: {error}", where="output.uri", value=uri) from None
    if index is None and limit is None and sample is None:
        return prepared.count.amount, None
    digest = run.constants.digest() if run else b"\0" * 16
    space = Space(axes=prepared.axes, family=prepared.model.family, run_digest=digest)
    selection = select(prepared, limit=limit, sample=sample)
    committed = index.all() if index else IdSet()
    whole, missing = planned_amount(numbered_batches(prepared.manifest), space, selection, committed)
    return whole, missing if index else None


def describe(prepared: Prepared, whole: Amount, missing: Amount | None) -> dict[str, Any]:
    """The plan as plain values."""
    open_ = whole if missing is None else missing
    axes = prepared.axes
    size = shard_size(open_, 1, 8)
    shards = max(1, round(open_.megapixel_evaluations / size.megapixel_evaluations)) if open_.images else 0
    return {
        "manifest": prepared.job.manifest,
        "output": prepared.job.output.uri,
        "model": prepared.source.model_id,
        "prompt_rows": prepared.count.rows,
        "rejected_rows": len(prepared.rejected_rows),
        "repeated_rows": len(prepared.count.repeated),
        "sweep": {
            "seeds": len(axes.seeds),
            "guidance_scales": list(axes.guidance_scales),
            "num_inference_steps": list(axes.num_inference_steps),
            "schedulers": list(axes.schedulers),
            "sizes": [f"{width}x{height}" for width, height in axes.sizes],
            "points": prepared.points,
            "replaced_by_columns": list(prepared.count.overrides),
        },
        "images_planned": whole.images,
        "images_committed": None if missing is None else whole.images - missing.images,
        "images_to_render": open_.images,
        "evaluations": open_.evaluations,
        "megapixel_evaluations": round(open_.megapixel_evaluations, 3),
        "megapixel_steps": round(open_.megapixel_steps, 3),
        "shards_at_least": min(shards, open_.images),
        "objects_at_least": open_.images + min(shards, open_.images),
        "raw_bytes_at_most": open_.images * 3 * max(width * height for width, height in axes.sizes),
    }


def _as_text(facts: dict[str, Any]) -> str:
    sweep = facts["sweep"]
    committed = facts["images_committed"]
    lines = [
        ("manifest", f"{facts['manifest']}: {facts['prompt_rows']:,} prompt rows"
         + (f", {facts['rejected_rows']:,} rejected" if facts["rejected_rows"] else "")
         + (f", {facts['repeated_rows']:,} repeated" if facts["repeated_rows"] else "")),
        ("model", facts["model"]),
        ("sweep", f"{sweep['points']:,} points: {sweep['seeds']:,} seeds × guidance "
         f"{_listed(sweep['guidance_scales'])} × steps {_listed(sweep['num_inference_steps'])} × "
         f"{_listed(sweep['schedulers'])} × {_listed(sweep['sizes'])}"),
        ("columns", f"replace the sweep in their rows: {', '.join(sweep['replaced_by_columns'])}"
         if sweep["replaced_by_columns"] else "none replaces an axis"),
        ("output", facts["output"]),
        ("planned", f"{facts['images_planned']:,} images"),
        ("committed", "the output holds no run yet" if committed is None else f"{committed:,} images"),
        ("to render", f"{facts['images_to_render']:,} images, {facts['evaluations']:,} evaluations, "
         f"{facts['megapixel_evaluations']:,} megapixel-evaluations, {facts['megapixel_steps']:,} megapixel-steps"),
        ("objects", f"at least {facts['objects_at_least']:,} ({facts['shards_at_least']:,} shards), "
         f"at most {facts['raw_bytes_at_most'] / 1e9:,.2f} GB of pixels before compression"),
    ]  # fmt: skip
    return "\n".join(f"{name:<10} {text}" for name, text in lines)


def _listed(values: list[Any]) -> str:
    shown = ", ".join(f"{value:g}" if isinstance(value, float) else str(value) for value in values[:8])
    return f"{{{shown}{', …' if len(values) > 8 else ''}}}"
