"""A launch: from a prepared job to committed images, in waves until nothing planned is missing."""

import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from types import ModuleType

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

import pipeline
from pipeline.distributed.spec import Pool, WorkerSpec
from pipeline.errors import JobBrokenError, OutputError, StoreError
from pipeline.identity import IdSet, ids_from_bytes
from pipeline.model.facts import weights_dtype
from pipeline.model.fingerprint import DigestCache, fingerprint
from pipeline.model.resolve import ModelSource
from pipeline.output.finalize import Finalized, finalize
from pipeline.output.index import CommittedIndex, load_index
from pipeline.output.launch_note import LaunchNote, write_note
from pipeline.output.part import RunFacts
from pipeline.output.run import NumericsProfile, Run, check_same_pixels, numerics_warnings, read_run, write_run
from pipeline.planning.count import Amount
from pipeline.planning.selection import Selection
from pipeline.planning.shards import shard_size
from pipeline.planning.tasks import Space, planned_amount
from pipeline.prepare import Prepared, library_versions, numbered_batches, s3_settings, select
from pipeline.storage.base import ObjectStore
from pipeline.storage.location import open_store

MAX_WAVES = 5
DEFAULT_ROWS = 16


@dataclass(frozen=True, slots=True, kw_only=True)
class LaunchOptions:
    address: str | None
    """Of a Ray cluster; None starts one here."""
    cache_folder: Path
    """For digests of model files."""
    limit: int | None = None
    sample: int | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a launch is; counts are of this launch."""

    total: Amount
    ok: int = 0
    failed: int = 0
    evaluations: int = 0

    @property
    def images(self) -> int:
        return self.ok + self.failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a launch did."""

    output_uri: str
    planned: int
    already_committed: int
    already_failed: int
    """Committed as failed by an earlier launch; not tried again."""
    ok: int
    failed: int
    failures: tuple[dict[str, object], ...]
    """The first failed rows of this launch."""
    rejected_rows: int
    workers: int
    model_loads: int
    elapsed_s: float
    images_per_s: float | None
    """From the first outcome's wave start on, None when nothing was rendered."""
    waves: int
    finalized: Finalized


Tell = Callable[[str], None]


def launch(prepared: Prepared, options: LaunchOptions, tell: Tell, on_progress: Callable[[Progress], None]) -> Report:
    """Render everything the job asks for that is not committed, then finalize.

    ``tell`` gets sentences for people, ``on_progress`` the counts after every committed shard.
    Raises ``InputError`` before anything is rendered, ``StoreError`` or ``JobBrokenError`` for what breaks later.
    """
    began = time.monotonic()
    store = _open_output(prepared)
    tell(f"resolving model {prepared.source.model_id}")
    model = _find_model(prepared, options)
    known = read_run(store)
    selection = select(prepared, limit=options.limit, sample=options.sample)
    waves = None
    work = None if known is None else _work(prepared, _same(known, prepared, model, store), selection, store)
    if work is None or work.missing.images:
        _waves_module().connect(options.address)
        pool = _pool(prepared)
        run = _bind(store, known, prepared, model, pool, tell)
        work = work or _work(prepared, run, selection, store)
        waves = _render(prepared, work, run, pool, store, options, model, tell, on_progress)
    tell("finalizing")
    return _report(store, prepared, work, waves, finalize(store), time.monotonic() - began)


@dataclass(frozen=True, slots=True, kw_only=True)
class _ModelFiles:
    source: ModelSource
    folder: Path
    fingerprint: str


@dataclass(frozen=True, slots=True, kw_only=True)
class _Work:
    """What a launch is about and how much of it is there already."""

    space: Space
    selection: Selection
    index: CommittedIndex
    whole: Amount
    missing: Amount


def _find_model(prepared: Prepared, options: LaunchOptions) -> _ModelFiles:
    source = prepared.source.pinned()
    folder = source.folder()
    digest = fingerprint(folder, DigestCache(options.cache_folder), source.lora_files())
    return _ModelFiles(source=source, folder=folder, fingerprint=digest)


def _same(known: Run, prepared: Prepared, model: _ModelFiles, store: ObjectStore) -> Run:
    """The known run, if this job's pixels are decided by the same settings."""
    wanted = prepared.job.model.dtype
    dtype = known.constants.dtype if wanted == "auto" else wanted
    check_same_pixels(known, prepared.constants(model.fingerprint, dtype), store.uri)
    return known


def _work(prepared: Prepared, run: Run, selection: Selection, store: ObjectStore) -> _Work:
    space = Space(axes=prepared.axes, family=prepared.model.family, run_digest=run.constants.digest())
    index = load_index(store)
    whole, missing = _amounts(prepared, space, selection, index.all())
    return _Work(space=space, selection=selection, index=index, whole=whole, missing=missing)


def _render(
    prepared: Prepared,
    work: _Work,
    run: Run,
    pool: Pool,
    store: ObjectStore,
    options: LaunchOptions,
    model: _ModelFiles,
    tell: Tell,
    on_progress: Callable[[Progress], None],
) -> "_Waves":
    """All waves, between the two notes of the launch."""
    rows = _rows(prepared, run)
    # A worker that could not fill its batch once would only cost the loading of another model.
    workers = min(pool.workers, max(1, -(-work.missing.images // (rows // 2))))
    done = work.whole.images - work.missing.images
    tell(f"{work.missing.images:,} images to render, {done:,} already committed; {workers} worker(s)")
    note = _note(prepared, work, workers)
    write_note(store, note)
    spec = WorkerSpec(
        model=model.source,
        facts=RunFacts(
            model_id=run.model_id,
            model_fingerprint=model.fingerprint,
            dtype=run.constants.dtype,
            darkroom_version=pipeline.__version__,
        ),
        output_uri=store.uri,
        s3=s3_settings(prepared.job),
        device="cuda" if pool.gpus else "cpu",
        rows=rows,
        compiled=run.numerics.compiled,
        call=prepared.job.model.call,
        threads=pool.cpus,
        cache_folder=options.cache_folder,
    )
    waves = _Waves(prepared, work, spec, replace(pool, workers=workers), on_progress)
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


def _note(prepared: Prepared, work: _Work, workers: int) -> LaunchNote:
    now = datetime.now(UTC)
    return LaunchNote(
        launch_id=f"{now:%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}",
        started_at=now.isoformat(),
        planned=work.whole.images,
        to_render=work.missing.images,
        rejected_rows=len(prepared.rejected_rows),
        workers=workers,
    )


def _report(
    store: ObjectStore, prepared: Prepared, work: _Work, waves: "_Waves | None", finalized: Finalized, elapsed_s: float
) -> Report:
    progress = waves.progress if waves else Progress(total=Amount())
    return Report(
        output_uri=store.uri,
        planned=work.whole.images,
        already_committed=work.whole.images - work.missing.images,
        already_failed=len(work.index.failed),
        ok=progress.ok,
        failed=progress.failed,
        failures=tuple(waves.failures) if waves else (),
        rejected_rows=len(prepared.rejected_rows),
        workers=len(waves.seen_workers) if waves else 0,
        model_loads=len(waves.seen_loads) if waves else 0,
        elapsed_s=elapsed_s,
        images_per_s=waves.per_second(progress.images) if waves else None,
        waves=waves.count if waves else 0,
        finalized=finalized,
    )


def _waves_module() -> ModuleType:
    """Loads torch and Ray, several seconds: only a launch that has something to render pays for it."""
    from pipeline.distributed import waves

    return waves


class _Waves:
    """Runs waves until every planned task has an outcome, counting as outcomes come."""

    def __init__(
        self,
        prepared: Prepared,
        work: _Work,
        spec: WorkerSpec,
        pool: Pool,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self._prepared, self._work, self._spec, self._pool = prepared, work, spec, pool
        self._on_progress = on_progress
        self.progress = Progress(total=work.missing)
        self.failures: list[dict[str, object]] = []
        self.seen_workers: set[str] = set()
        self.seen_loads: set[str] = set()
        self.count = 0
        self._done: list[NDArray[np.uint64]] = []
        self._busy_s = 0.0

    def per_second(self, amount: int) -> float | None:
        """An amount over the time of all waves, loading included."""
        return amount / self._busy_s if self._busy_s else None

    def run(self) -> None:
        """Ends when nothing is missing; Ray reporting success proves nothing, the ids do."""
        committed, missing = self._work.index.all(), self._work.missing
        while missing.images:
            if self.count == MAX_WAVES:
                raise JobBrokenError(f"{missing.images} images have no outcome after {MAX_WAVES} waves")
            self.count += 1
            began = time.monotonic()
            for outcomes in self._wave(committed, missing):
                self._take(outcomes)
            self._busy_s += time.monotonic() - began
            committed = committed.union(self._done)
            self._done = []
            missing = _amounts(self._prepared, self._work.space, self._work.selection, committed)[1]

    def _wave(self, committed: IdSet, missing: Amount) -> Iterator[pa.Table]:
        images = self._prepared.job.render.shard_images
        plan = _waves_module().ShardPlan(
            manifest=self._prepared.manifest,
            space=self._work.space,
            selection=self._work.selection,
            size=shard_size(
                missing, self._pool.workers, max(1, self._spec.rows // 2), None if images == "auto" else images
            ),
        )
        outcomes: Iterator[pa.Table] = _waves_module().run_wave(
            plan, self._prepared.points, committed, self._spec, self._pool
        )
        return outcomes

    def _take(self, outcomes: pa.Table) -> None:
        self._done.append(ids_from_bytes(bytes.fromhex("".join(outcomes["task_id"].to_pylist()))))
        failed = outcomes.filter(pc.equal(outcomes["status"], "failed"))
        self.failures += failed.slice(0, max(0, 10 - len(self.failures))).to_pylist()
        self.seen_workers.update(outcomes["worker"].unique().to_pylist())
        self.seen_loads.update(outcomes["model_load"].unique().to_pylist())
        self.progress = replace(
            self.progress,
            ok=self.progress.ok + outcomes.num_rows - failed.num_rows,
            failed=self.progress.failed + failed.num_rows,
            evaluations=self.progress.evaluations + (pc.sum(outcomes["evaluations"]).as_py() or 0),
        )
        self._on_progress(self.progress)


def _open_output(prepared: Prepared) -> ObjectStore:
    uri = prepared.job.output.uri
    assert uri is not None  # load_job fills it in
    settings = s3_settings(prepared.job)
    try:
        # A launch that cannot begin should say so soon; later, with work to lose, the store is patient.
        open_store(uri, replace(settings, max_attempts=3, patience_s=0)).check_writable()
    except StoreError as error:
        raise OutputError(f"the output cannot be written: {error}", where="output.uri", value=uri) from None
    return open_store(uri, settings)


def _pool(prepared: Prepared) -> Pool:
    workers = prepared.job.workers
    cluster_gpus, cluster_cpus = _waves_module().cluster_gpus, _waves_module().cluster_cpus
    gpus = float(cluster_gpus() > 0) if workers.gpus == "auto" else workers.gpus
    available = cluster_gpus() / gpus if gpus else cluster_cpus() / workers.cpus
    count = max(1, int(available)) if workers.count == "auto" else workers.count
    return Pool(workers=count, gpus=gpus, cpus=workers.cpus)


def _rows(prepared: Prepared, run: Run) -> int:
    """Rows of the denoiser's batch: as the job says, else as when the run began."""
    given = prepared.job.render.rows
    return run.numerics.rows if given == "auto" else given


def _dtype(prepared: Prepared, folder: Path, pool: Pool) -> str:
    """``auto`` is resolved once, when the run starts; it never looks at the kind of GPU."""
    wanted = prepared.job.model.dtype
    if wanted != "auto":
        return wanted
    if not pool.gpus:
        return "float32"
    stored = weights_dtype(folder)
    return stored if stored != "float32" else "bfloat16"


def _bind(store: ObjectStore, known: Run | None, prepared: Prepared, model: _ModelFiles, pool: Pool, tell: Tell) -> Run:
    """The run at this output: the known one, with a warning where this launch computes otherwise, else a new one."""
    given = prepared.job.render.rows
    rows = (known.numerics.rows if known else DEFAULT_ROWS) if given == "auto" else given
    device = "cuda" if pool.gpus else "cpu"
    wanted = prepared.job.render.compile
    numerics = NumericsProfile(
        rows=rows,
        compiled=bool(pool.gpus) if wanted == "auto" else wanted,
        threads=pool.cpus,
        device=device,
        versions=library_versions(),
    )
    if known is not None:
        for warning in numerics_warnings(known, numerics):
            tell(f"warning: {warning}")
        return known
    run = Run(
        model_id=prepared.source.model_id,
        model_revision=model.source.revision,
        constants=prepared.constants(model.fingerprint, _dtype(prepared, model.folder, pool)),
        numerics=numerics,
        job=prepared.job.model_dump(mode="json"),
        created_at=datetime.now(UTC).isoformat(),
        darkroom_version=pipeline.__version__,
    )
    write_run(store, run)
    return run


def _amounts(prepared: Prepared, space: Space, selection: Selection, committed: IdSet) -> tuple[Amount, Amount]:
    """What is planned at all, and what of it is missing."""
    if not len(committed) and selection.picks is None:
        return prepared.count.amount, prepared.count.amount
    return planned_amount(numbered_batches(prepared.manifest), space, selection, committed)
