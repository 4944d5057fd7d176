"""Darkroom from Python: ``from pipeline import job, plan, render, draw``. The same engine as the command's."""

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import TYPE_CHECKING, Any

from PIL import Image

from pipeline.cache import cache_folder
from pipeline.config import Job, is_section, load_job
from pipeline.errors import RenderError
from pipeline.identity import IdSet
from pipeline.model.facts import resolved_dtype
from pipeline.model.rows import BatchRows
from pipeline.output.verdicts import Kept, kept_verdict
from pipeline.overview import describe, figures_of, time_and_cost
from pipeline.planning.selection import Selection
from pipeline.planning.spending import Spending, check_rate
from pipeline.planning.tasks import Space, plan_batch
from pipeline.prepare import Prepared, numbered_batches, prepare, select
from pipeline.recipe import Recipe, RenderTask

if TYPE_CHECKING:
    from pipeline.distributed.report import Progress, Report
    from pipeline.rendering.judge import Judge
    from pipeline.rendering.renderer import Renderer


@dataclass(frozen=True, slots=True, kw_only=True)
class Picture:
    """One picture and what it was made of."""

    image: Image.Image
    recipe: Recipe
    task_id: str
    """As in the metadata of a run that renders it."""
    verdict: Kept
    """The same: ``ok``, ``black``, ``flat`` or ``flagged``."""


def job(path: str | Path | None = None, /, **keys: Any) -> Job:
    """A job file, or none, with keys over it: ``job("night.yaml", sweep={"seeds": "0-9"}, output={"uri": "out"})``.

    A key of a section goes over the file's with its whole value, the section's other keys stay.
    Raises ``JobFileError`` for keys and values that a job file may not have.
    """
    return load_job(None if path is None else Path(path), list(_flat(keys)), date.today())


def plan(
    job: Job,
    *,
    limit: int | None = None,
    sample: int | None = None,
    skip_bad_rows: bool = False,
    rate: float | None = None,
    price_per_hour: float | None = None,
) -> dict[str, Any]:
    """What a job amounts to, before anything is spent: what ``darkroom plan --json`` prints.

    ``skip_bad_rows``: go on without the manifest rows that cannot be used. ``rate`` (images/s) and ``price_per_hour``
    are of all workers together; without a rate, that of an earlier launch of the run counts. Raises ``InputError`` for
    whatever cannot be rendered. Neither torch nor Ray is loaded.
    """
    check_rate(rate, price_per_hour)
    prepared = prepare(job, skip_bad_rows=skip_bad_rows, cache_folder=cache_folder())
    figures = figures_of(prepared, limit, sample)
    return describe(prepared, figures) | time_and_cost(figures, rate, price_per_hour)


def render(
    job: Job,
    *,
    limit: int | None = None,
    sample: int | None = None,
    skip_bad_rows: bool = False,
    retry_failed: bool = False,
    max_images: int | None = None,
    max_cost: float | None = None,
    price_per_hour: float | None = None,
    rate: float | None = None,
    address: str | None = None,
    tell: Callable[[str], None] = lambda _: None,
    on_progress: "Callable[[Progress], None]" = lambda _: None,
) -> "Report":
    """Render every image of a job that is not committed yet; the same call again continues.

    ``max_images``, ``max_cost``: raise where there is more to render, or it would cost more at ``price_per_hour`` and
    ``rate`` (images/s), both of all workers together; without a rate, that of an earlier launch of the run counts.
    ``address``: of a Ray cluster; without, a Ray is started on this machine. ``tell`` gets sentences, ``on_progress``
    the counts after every committed shard, and meanwhile how many workers are ready and what they have drawn. Failed
    images are in the report and no error.
    Raises ``InputError`` before anything is rendered, ``StoreError`` or ``JobBrokenError`` for what breaks later.
    """
    from pipeline.distributed.cluster_address import checked_cluster
    from pipeline.distributed.launch import LaunchOptions, launch, nothing_asked

    check_rate(rate, price_per_hour)
    options = LaunchOptions(
        address=checked_cluster(address),
        cache_folder=cache_folder(),
        limit=limit,
        sample=sample,
        retry_failed=retry_failed,
        spending=Spending(max_images=max_images, max_cost=max_cost, price_per_hour=price_per_hour),
        images_per_s=rate,
    )
    prepared = prepare(job, skip_bad_rows=skip_bad_rows, cache_folder=options.cache_folder)
    for row in prepared.rejected:
        tell(f"skipped: {row}")
    return launch(prepared, options, tell, on_progress) if prepared.count.rows else nothing_asked(prepared)


def draw(
    job: Job,
    *,
    limit: int | None = None,
    sample: int | None = None,
    skip_bad_rows: bool = False,
    device: str | None = None,
) -> Iterator[Picture]:
    """Pictures of a job as they finish, in this process: no Ray, and nothing is written.

    ``device``: as torch names it; a GPU where there is one. Raises as ``render``, and ``RenderError`` for an image that
    cannot be rendered, or may not be kept since ``render.safety_checker`` is ``drop``. From the first picture until the
    iterator is exhausted or closed, torch has Darkroom's settings and threads in this process.
    """
    from pipeline.rendering.determinism import borrowed_settings
    from pipeline.rendering.results import Failed

    prepared = prepare(job, skip_bad_rows=skip_bad_rows, cache_folder=cache_folder())
    selection = select(prepared, limit=limit, sample=sample)
    with borrowed_settings():
        renderer, judge, space = _loaded(prepared, device)
        for outcome in map(judge, renderer.render(_tasks(prepared, space, selection))):
            task = outcome.task
            if isinstance(outcome, Failed):
                raise RenderError(f"{task.recipe.prompt!r}: {outcome.error}")
            picture = Image.fromarray(outcome.pixels)
            yield Picture(image=picture, recipe=task.recipe, task_id=task.task_id, verdict=kept_verdict(outcome))


def _loaded(prepared: Prepared, device: str | None) -> "tuple[Renderer, Judge, Space]":
    """What a worker has, of the same files and checked as for a launch."""
    import torch

    from pipeline.distributed.binding import find_model
    from pipeline.rendering.judge import load_judge
    from pipeline.rendering.renderer import load_renderer

    device = device or ("cuda" if torch.cuda.is_available() else "cpu")
    if device == "cpu":
        torch.set_num_threads(prepared.job.workers.cpus)
    on_gpu, render_section = device != "cpu", prepared.job.render
    model = find_model(prepared, None, cache_folder(), lambda _: None)
    wanted = prepared.job.model
    dtype = resolved_dtype(wanted.dtype, model.folder, gpus=on_gpu, precision=wanted.precision)
    memory = torch.cuda.get_device_properties(device).total_memory if on_gpu else None
    fixed = None if render_section.rows == "auto" else render_section.rows
    renderer = load_renderer(
        model.folder,
        dtype=dtype,
        device=device,
        rows=BatchRows(fixed=fixed, family=prepared.model.family, dtype=dtype, device_bytes=memory),
        loras=model.source.lora_files(),
        compiled=render_section.compile is True,
        call=wanted.call,
        precision=wanted.precision,
    )
    drop = render_section.safety_checker == "drop"
    judge = load_judge(model.folder, checked=model.source.checked, drop=drop, dtype=dtype, device=device)
    digest = prepared.constants(model.fingerprint, dtype).digest()
    return renderer, judge, Space(axes=prepared.axes, family=prepared.model.family, run_digest=digest)


def _tasks(prepared: Prepared, space: Space, selection: Selection) -> Iterator[RenderTask]:
    from pipeline.distributed.runner import tasks_of

    for numbered in numbered_batches(prepared.manifest):
        for table in plan_batch(numbered, space, selection, IdSet()):
            yield from tasks_of(table)


def _flat(keys: Mapping[str, Any]) -> Iterator[tuple[str, Any]]:
    """Sections key by key, so that their other keys stay the file's; any other mapping is a value."""
    for key, value in keys.items():
        if isinstance(value, Mapping) and is_section(key):
            yield from ((f"{key}.{inner}", given) for inner, given in value.items())
        else:
            yield key, value
