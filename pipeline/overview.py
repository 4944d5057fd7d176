"""A job held against its output: what there is to render, as ``darkroom plan`` tells it.

This module loads neither torch nor Ray.
"""

from collections.abc import Iterable
from dataclasses import dataclass, field, replace
from typing import Any

from pipeline.config import PoolSection
from pipeline.errors import InputError, StoreError
from pipeline.identity import IdSet
from pipeline.model.rows import CPU_ROWS
from pipeline.output.index import load_index
from pipeline.output.launch_note import LaunchNote, last_measured, read_notes
from pipeline.output.run import Run, read_run
from pipeline.planning.amount import Amount
from pipeline.planning.shards import shard_count, shard_size
from pipeline.planning.spending import Pace
from pipeline.planning.tasks import Space, planned_amount
from pipeline.prepare import Prepared, check_run, numbered_batches, s3_settings, select
from pipeline.storage.location import open_store

SHOWN_VALUES = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Figures:
    """A plan held against the run at its output."""

    run: Run | None
    """None where nothing is committed."""
    whole: Amount
    to_render: Amount
    pace: Pace = field(default_factory=Pace)


def figures_of(prepared: Prepared, limit: int | None = None, sample: int | None = None) -> Figures:
    """Count what a job renders, and what of it is not committed at its output. ``InputError`` as ``render``."""
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
        whole = prepared.count.amount
        return Figures(run=None, whole=whole, to_render=whole, pace=pace_of(prepared, None, whole, ()))
    digest = run.constants.digest() if run else b"\0" * 16
    space = Space(axes=prepared.axes, family=prepared.model.family, run_digest=digest)
    selection = select(prepared, limit=limit, sample=sample)
    whole, missing = planned_amount(numbered_batches(prepared.manifest), space, selection, committed)
    pace = pace_of(prepared, run, missing, read_notes(store))
    return Figures(run=run, whole=whole, to_render=missing, pace=pace)


def nothing_in(prepared: Prepared) -> str:
    """Of a job without a row, why."""
    why = "every row of the manifest was skipped" if prepared.manifest.rows else "the manifest is empty"
    return f"{why}; there is nothing to render"


def pace_of(prepared: Prepared, run: Run | None, work: Amount, notes: Iterable[LaunchNote]) -> Pace:
    """How fast the workers this job asks for will be together, by the last launch that measured."""
    last = last_measured(notes)
    if last is None or last.megapixel_evaluations_per_s is None:
        return Pace(workers=_workers(prepared, run, work))
    workers = _workers(prepared, run, work, last.room) or last.workers
    rate = last.megapixel_evaluations_per_s * workers / max(1, last.workers)
    return Pace(megapixel_evaluations_per_s=rate, workers=workers, measured_images=last.ok)


def time_and_cost(figures: Figures, rate: float | None, price: float | None) -> dict[str, float]:
    """Of what is to render, at ``rate`` images/s or as measured, and ``price`` per hour, both of all workers together.

    Empty where nobody knows how fast they are.
    """
    pace = replace(figures.pace, images_per_s=rate)
    hours = pace.hours(figures.to_render)
    if hours is None:
        return {}
    facts = {
        "images_per_s": rate,
        "measured_megapixel_evaluations_per_s": pace.megapixel_evaluations_per_s if rate is None else None,
        "measured_images": pace.measured_images if rate is None else None,
        "hours": round(hours, 3),
        "seconds": round(hours * 3600, 1),
        "workers": pace.workers,
        "worker_hours": None if pace.workers is None else round(hours * pace.workers, 3),
        "price_per_hour": price,
        "cost": None if price is None else round(hours * price, 2),
    }
    return {name: value for name, value in facts.items() if value is not None}


def describe(prepared: Prepared, figures: Figures) -> dict[str, Any]:
    """The plan as plain values: ``darkroom plan --json``."""
    open_, axes, counted = figures.to_render, prepared.axes, prepared.count
    shards = _shards(prepared, figures)
    return {
        "manifest": prepared.job.manifest,
        "output": prepared.job.output.uri,
        "model": prepared.source.model_id,
        "dtype": figures.run.constants.dtype if figures.run else prepared.job.model.dtype,
        "precision": prepared.job.model.precision,
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
            "own_values": {own.setting: own.values for own in prepared.own_values},
        },
        "images_requested": counted.requested,
        "images_distinct": counted.amount.images if counted.compared else None,
        "no_effect": prepared.no_effect.facts(),
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
        "warnings": list(prepared.warnings),
    }


def _shards(prepared: Prepared, figures: Figures) -> int:
    """About as many as ``render`` makes; ``auto`` counts as one worker."""
    shard_images, open_ = prepared.job.render.shard_images, figures.to_render
    workers = _workers(prepared, figures.run, open_) or 1
    fixed = None if shard_images == "auto" else shard_images
    return shard_count(open_, shard_size(open_, workers, _slots(prepared, figures.run), fixed))


def _workers(prepared: Prepared, run: Run | None, work: Amount, room: int = 0) -> int | None:
    """That a launch starts: no more than can fill a batch. None where nobody knows what there is ``room`` for."""
    given = prepared.job.workers.count
    most = room if given == "auto" else given.max if isinstance(given, PoolSection) else given
    if not most:
        return None
    return min(most, max(1, -(-work.images // _slots(prepared, run))))


def _slots(prepared: Prepared, run: Run | None) -> int:
    """Images in a batch; before a run says, as many as a CPU takes."""
    given = prepared.job.render.rows
    if given != "auto":
        rows = given
    else:
        rows = run.batch_rows(prepared.model.family).most(prepared.count.sizes) if run else CPU_ROWS
    return max(1, rows // 2)
