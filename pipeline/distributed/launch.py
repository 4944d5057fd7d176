"""A launch: from a prepared job to committed images, in waves until nothing planned is missing."""

import time
import uuid
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

import pipeline
from pipeline.distributed.shards import ShardPlan
from pipeline.distributed.waves import Pool, cluster_cpus, cluster_gpus, connect, run_wave
from pipeline.distributed.worker import WorkerSpec
from pipeline.errors import JobBrokenError, OutputError, StoreError
from pipeline.identity import IdSet, ids_from_bytes
from pipeline.model.facts import weights_dtype
from pipeline.model.fingerprint import DigestCache, fingerprint
from pipeline.output.finalize import Finalized, finalize
from pipeline.output.index import load_index
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
CPU_ROWS = 16


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
    source = prepared.source.pinned()
    folder = source.folder()
    digest = fingerprint(folder, DigestCache(options.cache_folder))
    known = read_run(store)
    connect(options.address)
    pool = _pool(prepared)
    numerics = NumericsProfile(
        rows=_rows(prepared, known),
        threads=pool.cpus,
        device="cuda" if pool.gpus else "cpu",
        versions=library_versions(),
    )
    dtype = _dtype(prepared, known, folder, pool)
    run = _bind(store, known, prepared, digest, dtype, numerics, source.revision, tell)
    space = Space(axes=prepared.axes, family=prepared.model.family, run_digest=run.constants.digest())
    selection = select(prepared, limit=options.limit, sample=options.sample)
    index = load_index(store)
    committed = index.all()
    whole, missing = _amounts(prepared, space, selection, committed)
    workers = min(pool.workers, max(1, missing.images // max(1, numerics.rows // 2)))
    note = LaunchNote(
        launch_id=f"{datetime.now(UTC):%Y%m%dT%H%M%S}-{uuid.uuid4().hex[:8]}",
        started_at=datetime.now(UTC).isoformat(),
        planned=whole.images,
        to_render=missing.images,
        rejected_rows=len(prepared.rejected_rows),
        workers=workers,
    )
    write_note(store, note)
    spec = WorkerSpec(
        model=source,
        facts=RunFacts(
            model_id=run.model_id,
            model_fingerprint=digest,
            dtype=dtype,
            darkroom_version=pipeline.__version__,
        ),
        output_uri=store.uri,
        s3=s3_settings(prepared.job),
        device=numerics.device,
        rows=numerics.rows,
        threads=pool.cpus,
        cache_folder=options.cache_folder,
    )
    tell(f"{missing.images} images to render, {whole.images - missing.images} already committed; {workers} worker(s)")
    waves = _Waves(prepared, space, selection, spec, replace(pool, workers=workers), missing, on_progress)
    if missing.images:
        tell("loading the model on the workers")
        waves.run(committed)
    tell("finalizing")
    finalized = finalize(store)
    elapsed = time.monotonic() - began
    write_note(
        store,
        replace(
            note,
            finished_at=datetime.now(UTC).isoformat(),
            ok=waves.progress.ok,
            failed=waves.progress.failed,
            images_per_s=waves.images_per_s,
            evaluations_per_s=waves.evaluations_per_s,
        ),
    )
    return Report(
        output_uri=store.uri,
        planned=whole.images,
        already_committed=whole.images - missing.images,
        already_failed=len(index.failed),
        ok=waves.progress.ok,
        failed=waves.progress.failed,
        failures=tuple(waves.failures),
        rejected_rows=len(prepared.rejected_rows),
        workers=len(waves.seen_workers) or workers,
        model_loads=len(waves.seen_loads),
        elapsed_s=elapsed,
        images_per_s=waves.images_per_s,
        waves=waves.count,
        finalized=finalized,
    )


class _Waves:
    """Runs waves until every planned task has an outcome, counting as outcomes come."""

    def __init__(
        self,
        prepared: Prepared,
        space: Space,
        selection: Selection,
        spec: WorkerSpec,
        pool: Pool,
        missing: Amount,
        on_progress: Callable[[Progress], None],
    ) -> None:
        self._prepared, self._space, self._selection, self._spec, self._pool = prepared, space, selection, spec, pool
        self._on_progress = on_progress
        self.progress = Progress(total=missing)
        self.failures: list[dict[str, object]] = []
        self.seen_workers: set[str] = set()
        self.seen_loads: set[str] = set()
        self.count = 0
        self._done: list[NDArray[np.uint64]] = []
        self._busy_s = 0.0

    @property
    def images_per_s(self) -> float | None:
        return self.progress.images / self._busy_s if self.progress.images else None

    @property
    def evaluations_per_s(self) -> float | None:
        return self.progress.evaluations / self._busy_s if self.progress.images else None

    def run(self, committed: IdSet) -> None:
        """Ends when nothing is missing; Ray reporting success proves nothing, the ids do."""
        missing = self.progress.total
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
            missing = _amounts(self._prepared, self._space, self._selection, committed)[1]

    def _wave(self, committed: IdSet, missing: Amount) -> Iterator[pa.Table]:
        images = self._prepared.job.render.shard_images
        plan = ShardPlan(
            manifest=self._prepared.manifest,
            space=self._space,
            selection=self._selection,
            size=shard_size(
                missing, self._pool.workers, max(1, self._spec.rows // 2), None if images == "auto" else images
            ),
        )
        return run_wave(plan, self._prepared.points, committed, self._spec, self._pool)

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
    store = open_store(uri, s3_settings(prepared.job))
    try:
        store.check_writable()
    except StoreError as error:
        raise OutputError(f"the output cannot be written: {error}", where="output.uri", value=uri) from None
    return store


def _pool(prepared: Prepared) -> Pool:
    workers = prepared.job.workers
    gpus = float(cluster_gpus() > 0) if workers.gpus == "auto" else workers.gpus
    available = cluster_gpus() / gpus if gpus else cluster_cpus() / workers.cpus
    count = max(1, int(available)) if workers.count == "auto" else workers.count
    return Pool(workers=count, gpus=gpus, cpus=workers.cpus)


def _rows(prepared: Prepared, known: Run | None) -> int:
    if prepared.job.render.rows != "auto":
        return prepared.job.render.rows
    return known.numerics.rows if known else CPU_ROWS


def _dtype(prepared: Prepared, known: Run | None, folder: Path, pool: Pool) -> str:
    """``auto`` is resolved once, when the run starts; it never looks at the kind of GPU."""
    wanted = prepared.job.model.dtype
    if wanted != "auto":
        return wanted
    if known:
        return known.constants.dtype
    if not pool.gpus:
        return "float32"
    stored = weights_dtype(folder)
    return stored if stored != "float32" else "bfloat16"


def _bind(
    store: ObjectStore,
    known: Run | None,
    prepared: Prepared,
    digest: str,
    dtype: str,
    numerics: NumericsProfile,
    revision: str | None,
    tell: Tell,
) -> Run:
    """The run at this output: the known one if it is the same, else a new one."""
    constants = prepared.constants(digest, dtype)
    if known is not None:
        check_same_pixels(known, constants, store.uri)
        for warning in numerics_warnings(known, numerics):
            tell(f"warning: {warning}")
        return known
    run = Run(
        model_id=prepared.source.model_id,
        model_revision=revision,
        constants=constants,
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
