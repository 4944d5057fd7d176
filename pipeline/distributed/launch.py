"""A launch: from a prepared job to committed images, then the tables of all that is committed."""

import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import TYPE_CHECKING

import pipeline
from pipeline.distributed.binding import ModelFiles, bind, find_model
from pipeline.distributed.report import Progress, Report, Tell
from pipeline.distributed.spec import Pool, WorkerSpec
from pipeline.errors import JobFileError, OutputError, StoreError
from pipeline.output.finalize import Finalized, finalize
from pipeline.output.index import CommittedIndex, load_index
from pipeline.output.launch_note import LaunchNote, write_note
from pipeline.output.part import RunFacts
from pipeline.output.run import Run, read_run
from pipeline.planning.amount import Amount
from pipeline.planning.selection import Selection
from pipeline.planning.tasks import Space, planned_amount
from pipeline.prepare import Prepared, check_run, numbered_batches, s3_settings, select
from pipeline.storage.base import ObjectStore
from pipeline.storage.location import open_store

if TYPE_CHECKING:
    from pipeline.distributed.waves import Waves


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchOptions:
    """What a launch is told beside the job."""

    address: str | None
    """Of a Ray cluster; None starts one here."""
    cache_folder: Path
    """For digests of model files."""
    limit: int | None = None
    sample: int | None = None


def launch(prepared: Prepared, options: LaunchOptions, tell: Tell, on_progress: Callable[[Progress], None]) -> Report:
    """Render everything the job asks for that is not committed, then finalize.

    ``tell`` gets sentences for people, ``on_progress`` the counts after every committed shard.
    Raises ``InputError`` before anything is rendered, ``StoreError`` or ``JobBrokenError`` for what breaks later.
    """
    began = time.monotonic()
    store = _open_output(prepared)
    tell(f"resolving model {prepared.source.model_id}")
    known, index = read_run(store), load_index(store)
    model = find_model(prepared, known, options.cache_folder, tell)
    if known is not None and not len(index.all()):
        known = None  # nothing was made by those settings
    if known is not None:
        check_run(known, prepared, store.uri, model.fingerprint)
    selection = select(prepared, limit=options.limit, sample=options.sample)
    work = _work(prepared, known, selection, index)
    waves = None
    if work.missing.images:
        waves = _render(prepared, work, known, model, store, options, tell, on_progress)
    tell("finalizing")
    return _report(store, prepared, work, waves, finalize(store), time.monotonic() - began)


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What a launch is about and how much of it is there already."""

    selection: Selection
    index: CommittedIndex
    whole: Amount
    missing: Amount


def _work(prepared: Prepared, known: Run | None, selection: Selection, index: CommittedIndex) -> _Work:
    whole = missing = prepared.count.amount
    if known is not None or selection.picks is not None:
        digest = known.constants.digest() if known else b"\0" * 16
        space = Space(axes=prepared.axes, family=prepared.model.family, run_digest=digest)
        whole, missing = planned_amount(numbered_batches(prepared.manifest), space, selection, index.all())
    return _Work(selection=selection, index=index, whole=whole, missing=missing)


def _render(
    prepared: Prepared,
    work: _Work,
    known: Run | None,
    model: ModelFiles,
    store: ObjectStore,
    options: LaunchOptions,
    tell: Tell,
    on_progress: Callable[[Progress], None],
) -> "Waves":
    """All waves, between the two notes of the launch."""
    # Imported here: torch and Ray take seconds, which only a launch that has something to render should pay.
    from pipeline.distributed.graph import connect, device_of
    from pipeline.distributed.waves import Waves, Work

    connect(options.address)
    pool = _pool(prepared, local=options.address is None)
    run = bind(store, known, prepared, model, pool, device_of(pool), tell)
    # A worker that could not fill its batch once would only cost the loading of another model.
    workers = min(pool.workers, max(1, -(-work.missing.images // (run.numerics.rows // 2))))
    done = work.whole.images - work.missing.images
    tell(f"{work.missing.images:,} images to render, {done:,} already committed; {workers} worker(s)")
    note = _note(prepared, work, workers)
    write_note(store, note)
    spec = _spec(prepared, run, model, pool, store, options.cache_folder)
    space = Space(axes=prepared.axes, family=prepared.model.family, run_digest=run.constants.digest())
    wanted = Work(
        prepared=prepared, space=space, selection=work.selection, committed=work.index.all(), missing=work.missing
    )
    waves = Waves(wanted, spec, replace(pool, workers=workers), store, tell, on_progress)
    tell(f"loading the model on {workers} worker(s)")
    waves.run()
    finished = replace(
        note,
        finished_at=datetime.now(UTC).isoformat(),
        ok=waves.progress.ok,
        failed=waves.progress.failed,
        images_per_s=waves.per_second(waves.progress.images),
        evaluations_per_s=waves.per_second(waves.progress.evaluations),
    )
    write_note(store, finished)
    return waves


def _spec(
    prepared: Prepared, run: Run, model: ModelFiles, pool: Pool, store: ObjectStore, cache_folder: Path
) -> WorkerSpec:
    facts = RunFacts(
        model_id=run.model_id,
        model_fingerprint=model.fingerprint,
        dtype=run.constants.dtype,
        darkroom_version=pipeline.__version__,
    )
    return WorkerSpec(
        model=model.source,
        facts=facts,
        output_uri=store.uri,
        s3=s3_settings(prepared.job),
        device="cuda" if pool.gpus else "cpu",
        rows=run.numerics.rows,
        compiled=run.numerics.compiled,
        call=run.constants.call,
        threads=pool.cpus,
        cache_folder=cache_folder,
    )


def _note(prepared: Prepared, work: _Work, workers: int) -> LaunchNote:
    now = datetime.now(UTC)
    return LaunchNote(
        launch_id=f"{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}",
        started_at=now.isoformat(),
        planned=work.whole.images,
        to_render=work.missing.images,
        committed_before=len(work.index.all()),
        rejected_rows=len(prepared.rejected_rows),
        workers=workers,
    )


def _report(
    store: ObjectStore, prepared: Prepared, work: _Work, waves: "Waves | None", finalized: Finalized, elapsed_s: float
) -> Report:
    progress = waves.progress if waves else Progress(total=Amount())
    return Report(
        output_uri=store.uri,
        already_failed=len(work.index.failed),
        ok=progress.ok,
        failed=progress.failed,
        failures=tuple(waves.failures) if waves else (),
        rejected_rows=len(prepared.rejected_rows),
        workers=len(waves.seen_workers) if waves else 0,
        model_loads=len(waves.seen_loads) if waves else 0,
        elapsed_s=elapsed_s,
        images_per_s=waves.per_second(progress.images) if waves else None,
        finalized=finalized,
    )


def _open_output(prepared: Prepared) -> ObjectStore:
    uri = prepared.job.output.uri
    assert uri is not None  # load_job fills it in
    settings = s3_settings(prepared.job)
    try:
        # A launch that cannot begin should say so soon; later, with work to lose, the store is patient.
        open_store(uri, settings.impatient(), where="output.uri").check_writable()
    except StoreError as error:
        raise OutputError(f"the output cannot be written: {error}", where="output.uri", value=uri) from None
    return open_store(uri, settings)


def _pool(prepared: Prepared, *, local: bool) -> Pool:
    """The workers this launch asks for; ``InputError`` where a Ray of our own could never place them."""
    from pipeline.distributed.graph import cluster_cpus, cluster_gpus

    workers = prepared.job.workers
    gpus = float(cluster_gpus() > 0) if workers.gpus == "auto" else workers.gpus
    room = int(cluster_gpus() / gpus if gpus else cluster_cpus() / workers.cpus)
    count = max(1, room) if workers.count == "auto" else workers.count
    if local and count > room:
        unit = f"{gpus:g} GPU(s)" if gpus else f"{workers.cpus} CPU(s)"
        raise JobFileError(
            "this machine has no room for the workers",
            where="workers",
            value=f"{count} × {unit}",
            allowed=f"up to {room} of them here" if room else f"less than {unit} per worker: there are not as many",
        )
    return Pool(workers=count, gpus=gpus, cpus=workers.cpus)
