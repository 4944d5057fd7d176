"""``verify --rerender``: committed images rendered once more on this machine, without Ray, and compared."""

import io
from dataclasses import dataclass, fields, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from PIL import Image

from pipeline.distributed.report import Tell
from pipeline.errors import JobBrokenError, ModelError, ObjectMissingError
from pipeline.model.facts import read_facts
from pipeline.model.fingerprint import DigestCache, fingerprint
from pipeline.model.resolve import LoraSource, ModelSource
from pipeline.output.encode import encode, pixel_sha256
from pipeline.output.pictures import read_image, sample_images
from pipeline.output.run import NumericsProfile, Run, numerics_warnings, read_run
from pipeline.prepare import library_versions
from pipeline.recipe import Recipe, RenderTask
from pipeline.rendering.determinism import ENGINE, SETTINGS, set_up_process
from pipeline.rendering.devices import device_name
from pipeline.rendering.precision import check_float8
from pipeline.rendering.renderer import Renderer, load_renderer
from pipeline.rendering.results import Failed, Outcome
from pipeline.storage.base import ObjectStore
from pipeline.storage.s3_settings import S3Settings

SAMPLE_SEED = 0


@dataclass(frozen=True, slots=True, kw_only=True)
class Compared:
    """One image, as it was committed and as it is rendered now."""

    task_id: str
    file_name: str
    equal: bool = False
    """Every pixel is the same, by digest."""
    difference: int | None = None
    """The largest between two values of 0..255, of the files where the format loses some; None if not known."""
    error: str | None = None
    """Why nothing could be compared."""
    made_alike: bool = False
    """On such a device, with as many rows and, as far as the run tells, the same libraries."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Rerendered:
    device: str
    compared: tuple[Compared, ...]

    @property
    def equal(self) -> int:
        return sum(one.equal for one in self.compared)

    @property
    def unexplained(self) -> int:
        """Images that should have been equal, or could not be made or read."""
        return sum(not one.equal and (one.made_alike or one.error is not None) for one in self.compared)


def rerender(store: ObjectStore, number: int, cache_folder: Path, tell: Tell) -> Rerendered:
    """Render so many committed images again with the run's model and settings, and compare.

    Raises ``ModelError`` if the model is not here, or is not the run's by its files; ``JobFileError`` if the run is in
    float8 and this machine cannot compute it.
    """
    run = read_run(store)
    assert run is not None  # the verb has opened it
    set_up_process()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    if run.constants.precision is not None:
        check_float8(run.constants.dtype, device)
    rows = {row["task_id"]: row for row in sample_images(store, number, SAMPLE_SEED)}
    name = device_name(device)
    # What was compiled for a GPU need not be on a CPU, which may have no compiler.
    compiled = run.numerics.compiled and (run.numerics.device == "cpu") == (device == "cpu")
    versions = library_versions(run.constants.precision)
    now = replace(run.numerics, device=name, compiled=compiled, versions=versions, engine=ENGINE, **SETTINGS)
    differences = numerics_warnings(run, now)
    for warning in differences:
        tell(f"warning: {warning}")
    tell(f"rendering {len(rows):,} images again on {name}")
    renderer = _load(run, now, device, cache_folder)
    outcomes = renderer.render([_task(row) for row in rows.values()])
    compared = (_compared(store, run, outcome, rows[outcome.task.task_id]) for outcome in outcomes)
    return Rerendered(
        device=name,
        compared=tuple(replace(one, made_alike=one.made_alike and not differences) for one in compared),
    )


def _load(run: Run, numerics: NumericsProfile, device: str, cache_folder: Path) -> Renderer:
    loras = tuple(LoraSource.named(named) for named in run.job["model"]["loras"])
    source = ModelSource(
        model_id=run.model_id,
        revision=run.model_revision,
        loras=loras,
        s3=S3Settings(**run.job.get("s3", {})),
        cache_folder=cache_folder / "models",
    )
    folder, files = source.folder(), source.lora_files()
    found = fingerprint(folder, DigestCache(cache_folder / "digests"), files)
    if found != run.constants.model_fingerprint:
        raise ModelError(
            "the model's files are not those of the run",
            where=str(folder),
            value=found,
            allowed=run.constants.model_fingerprint,
        )
    torch.set_num_threads(numerics.threads)
    facts = read_facts(folder)
    return load_renderer(
        folder,
        dtype=run.constants.dtype,
        device=device,
        rows=run.batch_rows(facts.family),
        loras=files,
        compiled=numerics.compiled,
        call=run.constants.call,
        precision=run.constants.precision,
        as_once_read=facts.own_scheduler.read_otherwise(run.constants.scheduler_config),
    )


def _task(row: dict[str, Any]) -> RenderTask:
    return RenderTask(
        task_id=row["task_id"], recipe=Recipe(**{field.name: row[field.name] for field in fields(Recipe)})
    )


def _compared(store: ObjectStore, run: Run, outcome: Outcome, row: dict[str, Any]) -> Compared:
    image = Compared(task_id=row["task_id"], file_name=row["file_name"])
    if isinstance(outcome, Failed):
        return replace(image, error=f"rendering: {outcome.error}")
    image = replace(image, made_alike=(outcome.device, outcome.rows) == (row["device"], row["rows"]))
    if pixel_sha256(outcome.pixels) == row["pixel_sha256"]:
        return replace(image, equal=True)
    try:
        stored = _pixels(read_image(store, row["file_name"]))
    except (ObjectMissingError, JobBrokenError, OSError, SyntaxError) as error:  # the last two are Pillow's
        return replace(image, error=f"reading the stored image: {error}")
    ours = _pixels(encode(outcome.pixels, run.packing).body)
    if stored.shape != ours.shape:
        return replace(image, error=f"the stored image has the shape {stored.shape}, not {ours.shape}")
    return replace(image, difference=int(np.abs(stored.astype(np.int16) - ours).max()))


def _pixels(body: bytes) -> NDArray[np.uint8]:
    return np.asarray(Image.open(io.BytesIO(body)).convert("RGB"))
