"""What an output is bound to: the model's files, and the run that its first launch writes and all others obey."""

from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path

import pipeline
from pipeline.distributed.report import Tell
from pipeline.distributed.spec import Device, Pool
from pipeline.errors import RunMismatchError
from pipeline.model.check import check_files
from pipeline.model.facts import resolved_dtype
from pipeline.model.fingerprint import DigestCache, fingerprint
from pipeline.model.lora import check_loras
from pipeline.model.precision import check_layers, no_gpu
from pipeline.model.resolve import ModelSource
from pipeline.output.run import (
    NumericsProfile,
    Run,
    check_same_packing,
    check_same_pixels,
    numerics_warnings,
    read_run,
    write_run,
)
from pipeline.prepare import Prepared, check_run, library_versions
from pipeline.readable import form_warnings
from pipeline.rendering.determinism import ENGINE, SETTINGS
from pipeline.storage.base import ObjectStore


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelFiles:
    """A model found on this machine."""

    source: ModelSource
    """Pinned: any machine finds the same files by it."""
    folder: Path
    fingerprint: str


def find_model(prepared: Prepared, known: Run | None, cache_folder: Path, tell: Tell) -> ModelFiles:
    """Find and hash the model. The run's own revision is kept: a branch of the Hub may have moved since."""
    source = prepared.source
    if known is not None and source.revision is None and source.model_id == known.model_id:
        source = replace(source, revision=known.model_revision)
    if source.stored:
        tell(f"fetching {source.model_id}, unless it is here")
    source = source.pinned()
    folder = source.folder()
    check_files(folder, checked=source.checked)
    if prepared.job.model.precision is not None:
        check_layers(folder)
    tell(f"checking the files of {source.model_id}")
    loras = source.lora_files()
    check_loras([path for path, _ in loras], folder)
    digest = fingerprint(folder, DigestCache(cache_folder / "digests"), loras)
    return ModelFiles(source=source, folder=folder, fingerprint=digest)


def bind(
    store: ObjectStore,
    seen: Run | None,
    known: Run | None,
    prepared: Prepared,
    model: ModelFiles,
    pool: Pool,
    device: Device,
    tell: Tell,
) -> Run:
    """The run at this output: the known one, with a warning where this launch computes otherwise, else a new one.

    ``seen`` stood there when the launch began, and is ``known`` if it counts. Raises ``RunMismatchError`` if another
    launch has bound the output meanwhile, to other settings, and where this launch computes otherwise and
    ``render.strict_numerics`` is set.
    """
    if known is None and (met := read_run(store)) is not None and met != seen:
        check_run(met, prepared, store.uri, model.fingerprint)
        known = met
    wanted = prepared.job.model.dtype
    precision = prepared.job.model.precision
    if precision is not None and not pool.gpus:
        raise no_gpu("workers.gpus", f"{prepared.job.workers.gpus}, and there is no GPU")
    dtype = (
        known.constants.dtype
        if known
        else resolved_dtype(wanted, model.folder, gpus=bool(pool.gpus), precision=precision)
    )
    numerics = _numerics(known, prepared, pool, device)
    if known is not None:
        differences = numerics_warnings(known, numerics)
        if differences and prepared.job.render.strict_numerics:
            raise RunMismatchError(
                "this launch would compute otherwise than the run did: " + "; ".join(differences),
                where=store.uri,
                allowed="the same, or render.strict_numerics: false",
            )
        for difference in differences:
            tell(f"warning: {difference}")
        if known.packing.provenance is None and prepared.packing.provenance != "off":
            tell("warning: this run began before image files had a provenance; its further ones have none either")
        if known.packing.columns is None and (kept := form_warnings(prepared.manifest.extra_schema)):
            tell(f"warning: this run began with {len(kept)} of these columns in types of their own, and keeps them")
        return replace(known, numerics=numerics)
    run = Run(
        model_id=prepared.source.model_id,
        model_revision=model.source.revision,
        constants=prepared.constants(model.fingerprint, dtype),
        numerics=numerics,
        job=prepared.job.model_dump(mode="json"),
        created_at=datetime.now(UTC).isoformat(),
        darkroom_version=pipeline.__version__,
        packing=prepared.packing,
        license=prepared.job.output.license,
    )
    write_run(store, run)
    written = read_run(store)
    assert written is not None
    check_same_pixels(written, run.constants, store.uri)
    check_same_packing(written, run.packing, store.uri)
    return replace(written, numerics=numerics)


def check_still_bound(store: ObjectStore, run: Run) -> None:
    """``RunMismatchError`` if two launches bound an empty output at the same moment and the other one was the last."""
    now = read_run(store)
    if now is not None:
        check_same_pixels(now, run.constants, store.uri)
        check_same_packing(now, run.packing, store.uri)


def _numerics(known: Run | None, prepared: Prepared, pool: Pool, device: Device) -> NumericsProfile:
    """How this launch computes: as the job says, else as when the run began, else by default."""
    rows, compiled = prepared.job.render.rows, prepared.job.render.compile
    if rows == "auto" and known:
        rows = known.numerics.rows
    if compiled == "auto":
        compiled = known.numerics.compiled if known else bool(pool.gpus)
    return NumericsProfile(
        rows=rows,
        compiled=compiled,
        threads=pool.cpus,
        device=device.name,
        versions=library_versions(prepared.job.model.precision),
        device_bytes=known.numerics.device_bytes if known else device.memory_bytes,
        engine=ENGINE,
        **SETTINGS,
    )
