"""A launch: from a prepared job to committed images, then the tables of all that is committed."""

import os
import time
import uuid
from collections.abc import Callable
from dataclasses import dataclass, field, replace
from datetime import UTC, datetime, timedelta
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING

import pipeline
from pipeline.distributed.binding import ModelFiles, bind, check_still_bound, find_model
from pipeline.distributed.outcomes import Tally
from pipeline.distributed.pace import megapixel_evaluations_per_s
from pipeline.distributed.report import Progress, Report, Tell
from pipeline.distributed.spec import Pool, WorkerSpec
from pipeline.errors import OutputError, StoreError
from pipeline.identity import IdSet
from pipeline.model.resolve import in_any_home
from pipeline.output.finalize import Finalized, finalize
from pipeline.output.index import CommittedIndex, load_index
from pipeline.output.launch_note import LaunchNote, kept_alive, read_notes, write_note
from pipeline.output.layout import ATTEMPTS_PREFIX, REPORT_KEY
from pipeline.output.part import RunFacts
from pipeline.output.requests import has_requests, write_requests
from pipeline.output.run import Run, note_license, read_run
from pipeline.overview import pace_of
from pipeline.planning.amount import Amount
from pipeline.planning.requests import requests
from pipeline.planning.selection import Selection
from pipeline.planning.spending import Spending
from pipeline.planning.tasks import Space, planned_amount
from pipeline.prepare import Prepared, check_run, numbered_batches, s3_settings, select
from pipeline.storage.base import ObjectStore
from pipeline.storage.location import open_store

if TYPE_CHECKING:
    from pipeline.distributed.waves import Waves


START_S_PER_WORKER = 0.05
MOST_START_S = 30.0
"""Over so long at most the workers of a launch begin to fetch its model."""
ABANDONED = timedelta(days=1)
"""Of notes that killed launches of earlier versions left: none is of use after so long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchOptions:
    """What a launch is told beside the job."""

    address: str | None
    """Of a Ray cluster; None starts one here."""
    cache_folder: Path
    """For digests of model files, and for models of object storage; on workers' machines the same path, or below a home
    the same below theirs."""
    limit: int | None = None
    sample: int | None = None
    retry_failed: bool = False
    """Tasks that earlier launches committed as failed are rendered again."""
    spending: Spending = field(default_factory=Spending)
    images_per_s: float | None = None
    """Of all workers, where somebody knows; else what an earlier launch measured counts."""


def launch(prepared: Prepared, options: LaunchOptions, tell: Tell, on_progress: Callable[[Progress], None]) -> Report:
    """Render everything the job asks for that is not committed, then finalize.

    ``tell`` gets sentences for people, ``on_progress`` the counts after every committed shard, and meanwhile
    what workers have drawn.
    Raises ``InputError`` before anything is rendered, ``StoreError`` or ``JobBrokenError`` for what breaks later.
    """
    return _Launch(prepared, options, tell, on_progress).run()


def nothing_asked(prepared: Prepared) -> Report:
    """Of a job without a row: what is committed stays as it is."""
    began, store = time.monotonic(), open_store(prepared.job.output.uri or "", s3_settings(prepared.job))
    index = load_index(store)
    committed = Finalized(ok=len(index.ok), failed=len(index.failed), parts=0)
    return Report(
        output_uri=store.uri,
        finalized=committed,
        requested=0,
        already_failed=committed.failed,
        rejected_rows=len(prepared.rejected_rows),
        warnings=prepared.warnings,
        traffic=store.traffic,
        elapsed_s=time.monotonic() - began,
    )


class _Launch:
    """One launch, step by step."""

    def __init__(
        self, prepared: Prepared, options: LaunchOptions, tell: Tell, on_progress: Callable[[Progress], None]
    ) -> None:
        self._prepared, self._options, self._tell, self._on_progress = prepared, options, tell, on_progress
        self._began = time.monotonic()
        self._finished: LaunchNote | None = None
        self._store = _open_output(prepared)
        self._notes = list(read_notes(self._store))

    def run(self) -> Report:
        prepared, store, tell = self._prepared, self._store, self._tell
        alive = [note for note in self._notes if note.is_alive(datetime.now(UTC))]
        for note in alive:
            tell(f"warning: the launch {note.launch_id} seems to be at work on this output too; "
                 "what both render is work wasted, and nothing is lost")  # fmt: skip
        selection = select(prepared, limit=self._options.limit, sample=self._options.sample)
        tell(f"resolving model {prepared.source.model_id}")
        seen, index = read_run(store), load_index(store)
        model = find_model(prepared, seen, self._options.cache_folder, tell)
        # What nothing was made by, or is about to be, binds nobody.
        known = seen if len(index.all()) or alive else None
        if known is not None:
            check_run(known, prepared, store.uri, model.fingerprint)
        work = self._work(selection, known, index)
        pace = pace_of(prepared, known, work.missing, self._notes)
        self._options.spending.check(work.missing, replace(pace, images_per_s=self._options.images_per_s))
        waves = None
        if work.missing.images:
            waves = self._render(work, seen, known, model)
        elif known is not None:
            self._keep_requests(work, _space(prepared, known))
        note_license(store, prepared.job.output.license)
        tell("finalizing")
        report = self._report(work, waves, finalize(store))
        if waves is not None:
            store.put(REPORT_KEY, report.as_json().encode())
        return report

    def _work(self, selection: Selection, known: Run | None, index: CommittedIndex) -> "_Work":
        prepared = self._prepared
        committed = index.ok if self._options.retry_failed else index.all()
        whole = missing = prepared.count.amount
        if known is not None or selection.picks is not None:
            batches, space = numbered_batches(prepared.manifest), _space(prepared, known)
            whole, missing = planned_amount(batches, space, selection, committed)
        return _Work(selection=selection, index=index, committed=committed, whole=whole, missing=missing)

    def _keep_requests(self, work: "_Work", space: Space) -> None:
        """Store which rows ask for which pictures, for ``requests.parquet``, where some ask for the same.

        Once a run has requests, every launch adds its own: without those of a mended manifest, old ones would stand.
        """
        prepared, store = self._prepared, self._store
        if len(prepared.count.repeated) or len(prepared.count.repeats) or has_requests(store):
            self._tell("noting which rows ask for the same images")
            read = partial(numbered_batches, prepared.manifest)
            write_requests(store, requests(read, space, work.selection, prepared.rejected_rows))

    def _render(self, work: "_Work", seen: Run | None, known: Run | None, model: ModelFiles) -> "Waves | None":
        """All waves, between the two notes of the launch; None when its time is over before there is a GPU."""
        if self._options.address is None:
            # Ray's switch for machines that are no cluster: it stays on loopback. Else it listens on every interface.
            os.environ["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
            # Its core warns on the terminal of what Ray Data does by design; set it to `warning` to see it.
            os.environ.setdefault("RAY_BACKEND_LOG_LEVEL", "fatal")
        # A thread that is late shall not start a Ray of its own when ours has ended.
        os.environ["RAY_ENABLE_AUTO_CONNECT"] = "0"
        # Imported here: Ray takes seconds, which only a launch that has something to render should pay.
        from pipeline.distributed.added import Added
        from pipeline.distributed.cluster import device_of, pool_of
        from pipeline.distributed.connecting import connect
        from pipeline.distributed.ray_crew import RayCrew
        from pipeline.distributed.stopping import Stop
        from pipeline.distributed.waves import Waves, Work

        prepared, store, tell = self._prepared, self._store, self._tell
        tell("connecting to the Ray cluster" if self._options.address else "starting Ray on this machine")
        connect(self._options.address, tell)
        pool = pool_of(prepared.job.workers, local=self._options.address is None)
        left_s = self._seconds_left()
        if (left_s is not None and left_s <= 0) or (device := device_of(pool, tell, left_s)) is None:
            tell("the time of render.stop_after is over before the first image has begun")
            return None
        run = bind(store, seen, known, prepared, model, pool, device, tell)
        # A worker that could not fill its batch once would only cost the loading of another model.
        slots = run.batch_rows(prepared.model.family).most(prepared.count.sizes) // 2
        workers = min(pool.workers, max(1, -(-work.missing.images // slots)))
        done = work.whole.images - work.missing.images
        missing = work.missing.images
        tell(f"{missing:,} image{'s' * (missing != 1)} to render, {done:,} already committed")
        space, note = _space(prepared, run), self._note(work, workers, pool.workers)
        self._keep_requests(work, space)
        wanted = Work(
            prepared=prepared,
            space=space,
            selection=work.selection,
            committed=work.committed,
            missing=work.missing,
            retry_failed=self._options.retry_failed,
        )
        stop = Stop(tell)
        spec = self._spec(run, model, pool, note.launch_id)
        with Added() as added:
            pool = replace(pool, workers=workers)
            crew = RayCrew(spec, pool, tell)
            waves = Waves(wanted, spec, pool, store, crew, stop, tell, self._on_progress, added)
            tell(_loading(workers, compiled=run.numerics.compiled))
            with kept_alive(store, note), stop.listening(self._seconds_left()):
                waves.run()
            check_still_bound(store, run)
            self._finished = _finished(note, waves, added.store(store, note.launch_id))
        write_note(store, self._finished)
        store.sweep(ATTEMPTS_PREFIX, datetime.now(UTC) - ABANDONED)
        return waves

    def _seconds_left(self) -> float | None:
        """Until ``render.stop_after``."""
        stop_after = self._prepared.job.render.stop_after
        return None if stop_after is None else stop_after - (time.monotonic() - self._began)

    def _spec(self, run: Run, model: ModelFiles, pool: Pool, launch_id: str) -> WorkerSpec:
        facts = RunFacts(
            model_id=run.model_id,
            model_fingerprint=model.fingerprint,
            dtype=run.constants.dtype,
            darkroom_version=pipeline.__version__,
            packing=run.packing,
            attempt=sum(note.retry_failed for note in self._notes) + 1 if self._options.retry_failed else 0,
        )
        return WorkerSpec(
            model=model.source,
            facts=facts,
            output_uri=self._store.uri,
            s3=s3_settings(self._prepared.job),
            device="cuda" if pool.gpus else "cpu",
            rows=run.batch_rows(self._prepared.model.family),
            compiled=run.numerics.compiled,
            call=run.constants.call,
            precision=run.constants.precision,
            threads=pool.cpus,
            cache_folder=in_any_home(self._options.cache_folder),
            launch_id=launch_id,
            watchdog_s=self._prepared.job.render.watchdog,
            start_within_s=0.0 if model.source.here else min(MOST_START_S, pool.workers * START_S_PER_WORKER),
            drop_flagged=self._prepared.job.render.safety_checker == "drop",
        )

    def _note(self, work: "_Work", workers: int, room: int) -> LaunchNote:
        now = datetime.now(UTC)
        return LaunchNote(
            launch_id=f"{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}",
            started_at=now.isoformat(),
            alive_at=now.isoformat(),
            planned=work.whole.images,
            to_render=work.missing.images,
            committed_before=len(work.committed),
            rejected_rows=len(self._prepared.rejected_rows),
            workers=workers,
            room=room,
            retry_failed=self._options.retry_failed,
        )

    def _cost(self, waves: "Waves | None") -> float | None:
        price = self._options.spending.price_per_hour
        return None if price is None or waves is None else waves.busy_s / 3600 * price

    def _report(self, work: "_Work", waves: "Waves | None", finalized: Finalized) -> Report:
        tally = waves.tally if waves else Tally.of(Amount())
        progress = tally.progress
        return Report(
            output_uri=self._store.uri,
            launch_id=self._finished.launch_id if self._finished else None,
            planned=work.whole.images,
            requested=self._prepared.count.requested if work.selection.picks is None else None,
            no_effect=self._prepared.no_effect,
            added_key=self._finished.added_key if self._finished else None,
            added_by_manifest=waves.added.by_manifest if waves else {},
            already_failed=0 if self._options.retry_failed else len(work.index.failed),
            ok=progress.ok,
            failed=progress.failed,
            failures=tuple(tally.failures),
            rejected_rows=len(self._prepared.rejected_rows),
            warnings=self._prepared.warnings,
            workers=progress.workers,
            model_loads=tally.model_loads,
            engine=tally.worked.engine,
            image_encode_s=tally.encode_s,
            worker_rates=tuple(sorted(telling.mean_rate for telling in progress.tellings)),
            cost=self._cost(waves),
            traffic=tally.worked.traffic + self._store.traffic,
            verdicts=tally.verdicts,
            worker_deaths=waves.deaths if waves else 0,
            elapsed_s=time.monotonic() - self._began,
            images_per_s=waves.per_second(progress.images) if waves else None,
            finalized=finalized,
            stopped=waves.stop.reason if waves else "time" if work.missing.images else None,
            remaining=(waves or work).missing.images,
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What a launch is about and how much of it is there already."""

    selection: Selection
    index: CommittedIndex
    committed: IdSet
    """What is not rendered again."""
    whole: Amount
    missing: Amount


def _space(prepared: Prepared, run: Run | None) -> Space:
    """Before there is a run, ids are no task's, but as many."""
    digest = run.constants.digest() if run else b"\0" * 16
    return Space(axes=prepared.axes, family=prepared.model.family, run_digest=digest)


def _finished(note: LaunchNote, waves: "Waves", added_key: str | None) -> LaunchNote:
    progress = waves.tally.progress
    return replace(
        note,
        added_key=added_key,
        finished_at=datetime.now(UTC).isoformat(),
        ok=progress.ok,
        failed=progress.failed,
        images_per_s=waves.per_second(progress.images),
        megapixel_evaluations_per_s=megapixel_evaluations_per_s(progress.tellings)
        or waves.per_second(progress.megapixel_evaluations),
        workers=progress.workers,
        remaining=waves.missing.images,
    )


def _loading(workers: int, *, compiled: bool) -> str:
    """What happens until the first image, which a compiled model's first batches keep waiting for minutes."""
    what = "loading and compiling" if compiled else "loading"
    return f"{what} the model on up to {workers} workers" if workers > 1 else f"{what} the model on one worker"


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
