"""A job held against its output: what there is to render, as ``darkroom plan`` tells it.

This module loads neither torch nor Ray.
"""

from dataclasses import dataclass
from typing import Any

from pipeline.config import PoolSection
from pipeline.errors import InputError, StoreError
from pipeline.identity import IdSet
from pipeline.model.rows import CPU_ROWS
from pipeline.output.index import load_index
from pipeline.output.launch_note import measured_rate, read_notes
from pipeline.output.run import Run, read_run
from pipeline.planning.amount import Amount
from pipeline.planning.shards import shard_count, shard_size
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
    evaluations_per_s: float | None = None
    """Of the last launch of this run that tells."""
    workers: int = 0
    """Of that launch."""
    measured_images: int = 0
    """That it rendered."""


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
        measured_images=notes[-1].ok if notes else 0,
    )


def describe(prepared: Prepared, figures: Figures) -> dict[str, Any]:
    """The plan as plain values: ``darkroom plan --json``."""
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
