"""Darkroom from Python: ``from pipeline import job, plan, render, draw``. The same engine as the command's."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from pipeline.cache import cache_folder
from pipeline.config import Job, load_job
from pipeline.errors import RenderError
from pipeline.identity import IdSet
from pipeline.model.facts import check_weights, resolved_dtype
from pipeline.model.fingerprint import DigestCache, fingerprint
from pipeline.model.rows import BatchRows
from pipeline.overview import describe, figures_of
from pipeline.planning.tasks import Space, plan_batch
from pipeline.prepare import Prepared, numbered_batches, prepare, select
from pipeline.recipe import Recipe, RenderTask

if TYPE_CHECKING:
    from pipeline.distributed.report import Progress, Report


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One picture and what it was made of."""

    image: Image.Image
    recipe: Recipe
    task_id: str
    """As in the metadata of a run that renders it."""


def job(path: str | Path | None = None, /, **keys: Any) -> Job:
    """A job file, or none, with keys over it: ``job("night.yaml", sweep={"seeds": "0-9"}, output={"uri": "out"})``.

    Raises ``JobFileError`` for keys and values that a job file may not have.
    """
    return load_job(None if path is None else Path(path), list(_flat(keys)), date.today())


def plan(job: Job, *, limit: int | None = None, sample: int | None = None) -> dict[str, Any]:
    """What a job amounts to, before anything is spent: what ``darkroom plan --json`` prints.

    Raises ``InputError`` for whatever cannot be rendered. Neither torch nor Ray is loaded.
    """
    prepared = prepare(job, cache_folder=cache_folder())
    return describe(prepared, figures_of(prepared, limit, sample))


def render(
    job: Job,
    *,
    limit: int | None = None,
    sample: int | None = None,
    retry_failed: bool = False,
    address: str | None = None,
    tell: Callable[[str], None] = lambda _: None,
    on_progress: "Callable[[Progress], None]" = lambda _: None,
) -> "Report":
    """Render every image of a job that is not committed yet; the same call again continues.

    ``address``: of a Ray cluster; without, a Ray is started on this machine. ``tell`` gets sentences, ``on_progress``
    the counts after every committed shard. Failed images are in the report and no error.
    Raises ``InputError`` before anything is rendered, ``StoreError`` or ``JobBrokenError`` for what breaks later.
    """
    from pipeline.distributed.launch import LaunchOptions, launch

    options = LaunchOptions(
        address=address, cache_folder=cache_folder(), limit=limit, sample=sample, retry_failed=retry_failed
    )
    return launch(prepare(job, cache_folder=cache_folder()), options, tell, on_progress)


def draw(
    job: Job, *, limit: int | None = None, sample: int | None = None, device: str | None = None
) -> Iterator[Picture]:
    """Pictures of a job as they finish, in this process: no Ray, and nothing is written.

    ``device``: as torch names it; a GPU where there is one. Raises as ``render``, and ``RenderError`` for an image that
    cannot be rendered.
    """
    from pipeline.rendering.results import Failed

    prepared = prepare(job, cache_folder=cache_folder())
    renderer, space = _loaded(prepared, device)
    for outcome in renderer.render(_tasks(prepared, space, limit, sample)):
        if isinstance(outcome, Failed):
            raise RenderError(f"{outcome.task.recipe.prompt!r}: {outcome.error}")
        yield Picture(image=Image.fromarray(outcome.pixels), recipe=outcome.task.recipe, task_id=outcome.task.task_id)


def _loaded(prepared: Prepared, device: str | None) -> tuple[Any, Space]:
    import torch

    from pipeline.rendering.renderer import load_renderer

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cpu":
        torch.set_num_threads(prepared.job.workers.cpus)
    on_gpu, source, render_section = device != "cpu", prepared.source.pinned(), prepared.job.render
    folder = source.folder()
    check_weights(folder)
    dtype = resolved_dtype(prepared.job.model.dtype, folder, gpus=on_gpu)
    memory = torch.cuda.get_device_properties(device).total_memory if on_gpu else None
    fixed = None if render_section.rows == "auto" else render_section.rows
    renderer = load_renderer(
        folder,
        dtype=dtype,
        device=device,
        rows=BatchRows(fixed=fixed, dtype=dtype, device_bytes=memory),
        loras=source.lora_files(),
        compiled=render_section.compile is True,
        call=prepared.job.model.call,
    )
    digest = prepared.constants(
        fingerprint(folder, DigestCache(cache_folder() / "digests"), source.lora_files()), dtype
    ).digest()
    return renderer, Space(axes=prepared.axes, family=prepared.model.family, run_digest=digest)


def _tasks(prepared: Prepared, space: Space, limit: int | None, sample: int | None) -> Iterator[RenderTask]:
    from pipeline.distributed.runner import tasks_of

    selection = select(prepared, limit=limit, sample=sample)
    for numbered in numbered_batches(prepared.manifest):
        for table in plan_batch(numbered, space, selection, IdSet()):
            yield from tasks_of(table)


def _flat(keys: Mapping[str, Any], above: str = "") -> Iterator[tuple[str, Any]]:
    """Nested mappings to dotted keys; a mapping that is a value itself is one all the same, key by key."""
    for key, value in keys.items():
        if isinstance(value, Mapping):
            yield from _flat(value, f"{above}{key}.")
        else:
            yield f"{above}{key}", value
