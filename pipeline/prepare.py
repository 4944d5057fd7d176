"""From a job to everything a plan is made of: model facts, axes with their defaults, the validated manifest, counts.

The one place that joins the pure rooms with files; ``plan`` and ``render`` both start here.
"""

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from importlib.metadata import version
from pathlib import Path

import numpy as np

from pipeline.config import Job
from pipeline.errors import JobFileError, ModelError, RunMismatchError
from pipeline.identity import RunConstants
from pipeline.manifest.apart import check_apart
from pipeline.manifest.blocklist import read_blocklist
from pipeline.manifest.check import CheckResult, rejection_error
from pipeline.manifest.open import Manifest, Split, open_manifest
from pipeline.manifest.read import read_rows
from pipeline.manifest.rules import RowRules
from pipeline.manifest.survey import OwnValues
from pipeline.manifest.verdicts import RejectedRow
from pipeline.manifest.wide_seeds import sweep_warnings
from pipeline.model.facts import ModelFacts, read_facts
from pipeline.model.files import has_checker
from pipeline.model.own_scheduler import otherwise_read
from pipeline.model.precision import check_job, check_layers
from pipeline.model.resolve import LoraSource, ModelSource
from pipeline.model.windows import Windows
from pipeline.output.layout import Packing
from pipeline.output.run import Run, check_same_packing, check_same_pixels
from pipeline.output.schema import RESERVED
from pipeline.output_address import daily_warnings
from pipeline.planning.count import Count, count
from pipeline.planning.grids import Axes, number_of_points
from pipeline.planning.limits import MAX_POINTS, unfit_steps
from pipeline.planning.no_effect import NoEffect, no_effect
from pipeline.planning.rows import Numbered, Rows
from pipeline.planning.selection import Selection, check_choice, first_tasks, sample_rows, sample_tasks
from pipeline.rejections import Rejections, numbered
from pipeline.schedulers import scheduler_of, unusable_setting
from pipeline.storage.s3_settings import S3Settings
from pipeline.sweep import MAX_GUIDANCE, MAX_SEED, MAX_STEPS


@dataclass(frozen=True, slots=True, kw_only=True)
class Prepared:
    """A job understood and its manifest read through once."""

    job: Job
    source: ModelSource
    model: ModelFacts
    axes: Axes
    manifest: Manifest
    count: Count
    no_effect: NoEffect
    """Parts of the job that have no effect."""
    rejected: tuple[RejectedRow, ...]
    """The first few."""
    rejected_rows: Rows
    """All of them, by number over the manifest."""
    own_values: tuple[OwnValues, ...]
    """Settings that come from the manifest's columns."""
    prompt_warnings: tuple[str, ...]

    @property
    def warnings(self) -> tuple[str, ...]:
        """Sentences about input that may not mean what it seems, for ``plan``, ``render`` and their JSON."""
        said = (
            *self.manifest.warnings,
            *self.model.own_scheduler.warnings,
            *self.prompt_warnings,
            *sweep_warnings(self.axes.seeds),
            *self.no_effect.sentences(),
        )
        return (*said, *daily_warnings(self.job.day))

    @property
    def points(self) -> int:
        """Distinct sweep points of a prompt row that replaces no axis."""
        return number_of_points(self.axes, self.model.family)

    @property
    def packing(self) -> Packing:
        output = self.job.output
        quality = output.jpeg_quality if output.format == "jpeg" else None
        return Packing(
            layout=output.layout,
            format=output.format,
            jpeg_quality=quality,
            provenance=output.provenance,
            columns="readable",
        )

    @property
    def may_draw_own(self) -> bool:
        """Whether some image of the job may be drawn with the model's own scheduler."""
        return self.model.scheduler in self.axes.schedulers or "scheduler" in self.count.overrides

    def constants(self, model_fingerprint: str, dtype: str) -> RunConstants:
        return RunConstants(
            model_fingerprint=model_fingerprint,
            dtype=dtype,
            scheduler_config={**self.model.scheduler_config, **self.model.own_scheduler.reading},
            call=self.job.model.call,
            precision=self.job.model.precision,
        )


def prepare(job: Job, *, skip_bad_rows: bool = False, cache_folder: Path | None = None) -> Prepared:
    """Read model facts and manifest and count. ``InputError`` for whatever cannot be used.

    A model in object storage needs a ``cache_folder``.

    Rejected rows are an error unless ``skip_bad_rows``.
    """
    source = _source(job, cache_folder)
    folder = source.folder(weights=False)
    model = read_facts(folder, single=bool(job.model.call))
    source.check(folder)
    _check_precision(job, model, source, folder)
    _check_checker(job, folder)
    axes = _axes(job, model)
    manifest = open_manifest(job.manifest, columns=job.manifest_columns, rules=_rules(job, model), s3=s3_settings(job))
    check_apart(manifest, job.output.uri)
    rejections = Rejections(manifest, axes, model)
    windows = Windows(folder, model)
    counted = count(rejections.watch, axes, model.family, windows.cut)
    if rejections.total and not skip_bad_rows:
        raise rejection_error(
            CheckResult(
                rows=manifest.rows,
                good=manifest.rows - rejections.total,
                rejected_count=rejections.total,
                rejected=tuple(rejections.first),
            ),
            manifest,
        )
    return Prepared(
        job=job,
        source=source,
        model=model,
        axes=axes,
        manifest=manifest,
        count=counted,
        no_effect=_no_effect(job, model, axes, manifest, counted, windows),
        rejected=tuple(rejections.first),
        rejected_rows=rejections.numbers(),
        own_values=rejections.survey.own_values(manifest.files),
        prompt_warnings=rejections.survey.warnings(),
    )


def check_run(run: Run, prepared: Prepared, where: str, model_fingerprint: str | None = None) -> None:
    """``RunMismatchError`` if this job's pictures would be made or kept by other settings than the run's.

    Without a fingerprint, where nothing has been hashed, the model is known by its name.
    """
    wanted = prepared.job.model
    if model_fingerprint is None and run.model_id != prepared.source.model_id:
        raise RunMismatchError(
            f"this output holds a run of another model: the run has {run.model_id!r}, "
            f"this job {prepared.source.model_id!r}",
            where=where,
            allowed="the run's own model, or another output.uri",
        )
    dtype = run.constants.dtype if wanted.dtype == "auto" else wanted.dtype
    constants = prepared.constants(model_fingerprint or run.constants.model_fingerprint, dtype)
    own, same_model = prepared.model.own_scheduler, constants.model_fingerprint == run.constants.model_fingerprint
    if same_model and own.read_otherwise(run.constants.scheduler_config):
        if prepared.may_draw_own:
            raise otherwise_read(own, where)
        constants = replace(constants, scheduler_config=own.config)
    check_same_pixels(run, constants, where)
    check_same_packing(run, prepared.packing, where)


def select(prepared: Prepared, *, limit: int | None, sample: int | None) -> Selection:
    """The tasks a launch is about. ``InputError`` for a ``limit`` and a ``sample`` together."""
    check_choice(limit, sample)
    counted, axes, family = prepared.count, prepared.axes, prepared.model.family
    skipped = np.union1d(prepared.rejected_rows, counted.repeated)
    every = Selection(skipped=skipped, repeats=counted.repeats)
    if limit is not None:
        return first_tasks(numbered_batches(prepared.manifest), axes, family, every, limit)
    if sample is None:
        return every
    if counted.points_per_row is not None and not len(counted.repeats):
        return sample_rows(prepared.manifest.rows, counted.points_per_row, every, sample)
    batches = numbered_batches(prepared.manifest)
    return sample_tasks(batches, axes, family, every, counted.amount.images, sample)


def numbered_batches(manifest: Manifest, split: Split | None = None) -> Iterator[Numbered]:
    """Rows of the manifest, or of one split, each batch with its rows' numbers over the manifest.

    Without those that cannot be read, but with those that do not go with the sweep, which a ``Selection`` skips.
    """
    for batch in read_rows(manifest, split):
        if batch.table.num_rows:
            yield numbered(batch)


def s3_settings(job: Job) -> S3Settings:
    return S3Settings(endpoint_url=job.s3.endpoint_url, region=job.s3.region, addressing_style=job.s3.addressing_style)


def library_versions(precision: str | None = None) -> Mapping[str, str]:
    """Of what computes pixels."""
    names = ("torch", "diffusers", "transformers", *(("torchao",) if precision else ()))
    return {name: version(name) for name in names}


def _source(job: Job, cache_folder: Path | None) -> ModelSource:
    return ModelSource(
        model_id=job.model.id,
        revision=job.model.revision,
        loras=tuple(LoraSource.named(lora.model_dump()) for lora in job.model.loras),
        checked=job.render.safety_checker != "off",
        s3=s3_settings(job),
        cache_folder=cache_folder and cache_folder / "models",
    )


def _check_checker(job: Job, folder: Path) -> None:
    if job.render.safety_checker == "drop" and not has_checker(folder):
        raise JobFileError(
            "this model has no safety checker that could flag an image",
            where="render.safety_checker",
            value="drop",
            allowed="flag or off for this model",
        )


def _check_precision(job: Job, model: ModelFacts, source: ModelSource, folder: Path) -> None:
    if job.model.precision is not None:
        check_job(model, dtype=job.model.dtype, gpus=job.workers.gpus)
        if source.here:
            check_layers(folder)


def _rules(job: Job, model: ModelFacts) -> RowRules:
    return RowRules(
        size_factor=model.size_factor,
        schedulers=frozenset(model.family.schedulers()),
        offered=frozenset(model.usable_schedulers),
        lists=frozenset(model.family.lists),
        reserved=RESERVED,
        max_side_px=model.max_side_px,
        max_seed=MAX_SEED,
        max_steps=MAX_STEPS,
        max_guidance=MAX_GUIDANCE,
        blocklist=read_blocklist(job.prompts.blocklist, s3_settings(job)) if job.prompts.blocklist else None,
    )


def _axes(job: Job, model: ModelFacts) -> Axes:
    sweep = job.sweep
    named = () if job.model.scheduler == "default" else (job.model.scheduler,)
    axes = Axes(
        seeds=sweep.seeds,
        guidance_scales=sweep.guidance_scales or (model.family.guidance_scale,),
        num_inference_steps=sweep.num_inference_steps or (model.family.num_inference_steps,),
        schedulers=tuple(scheduler_of(text).text for text in sweep.schedulers or named or (_own(model),)),
        sizes=sweep.sizes or (model.native_size,),
    )
    _check_points(axes, model)
    _check_schedulers(axes, model)
    _check_sizes(axes, model)
    _check_steps(axes, model)
    return axes


def _no_effect(job: Job, model: ModelFacts, axes: Axes, files: Manifest, counted: Count, windows: Windows) -> NoEffect:
    theirs = {ours: name for file in files.files for ours, name in file.columns.items()}
    return no_effect(counted.effects, axes, model.family, job.sweep.model_fields_set, theirs, windows)


def _own(model: ModelFacts) -> str:
    """The name of the model's own scheduler; ``ModelError`` for one that has none and so cannot be the default."""
    if model.scheduler is not None:
        return model.scheduler
    problem = model.own_scheduler.problem
    assert problem is not None
    error = ModelError(
        f"{problem.what}, and the job names no other scheduler",
        where=problem.where,
        allowed=f"in sweep.schedulers or model.scheduler one of {model.offered_schedulers}",
    )
    error.value = problem.value
    raise error


def _check_points(axes: Axes, model: ModelFacts) -> None:
    points = number_of_points(axes, model.family)
    if points > MAX_POINTS:
        raise JobFileError(
            "the sweep has too many points for one prompt row",
            where="sweep",
            value=points,
            allowed=f"at most {MAX_POINTS:,}: seeds × guidance scales × step counts × schedulers × sizes",
        )


def _check_schedulers(axes: Axes, model: ModelFacts) -> None:
    allowed = model.family.schedulers()
    for text in axes.schedulers:
        found = scheduler_of(text)
        if found.name not in allowed:
            raise JobFileError(
                f"a {model.class_name} cannot be sampled with this scheduler",
                where="sweep.schedulers",
                value=text,
                allowed=model.offered_schedulers,
            )
        if found.listed is not None and found.listed not in model.family.lists:
            raise JobFileError(
                f"a {model.class_name} takes no list of {found.listed}",
                where="sweep.schedulers",
                value=text,
                allowed=", ".join(f"a list of {kind}" for kind in model.family.lists) or "a step count",
            )
        setting = unusable_setting(text, model.scheduler_config)
        if setting is not None:
            raise ModelError(
                f"the scheduler {text} cannot work with this setting of the model's scheduler configuration",
                where=f"scheduler/scheduler_config.json: {setting.key}",
                value=setting.value,
                allowed=f"{setting.allowed}; or another scheduler in sweep.schedulers",
            )


def _check_sizes(axes: Axes, model: ModelFacts) -> None:
    for size in axes.sizes:
        if size[0] % model.size_factor or size[1] % model.size_factor:
            raise JobFileError(
                "this size does not fit the model",
                where="sweep.sizes",
                value=list(size),
                allowed=f"width and height that divide by {model.size_factor} px; sizes are never rounded",
            )
        if max(size) > model.max_side_px:
            raise JobFileError(
                "this size is too large for the model",
                where="sweep.sizes",
                value=list(size),
                allowed=f"sides up to {model.max_side_px} px: the denoiser has no positions beyond",
            )


def _check_steps(axes: Axes, model: ModelFacts) -> None:
    unfit = unfit_steps(axes.schedulers, axes.num_inference_steps, model.scheduler_config)
    if unfit is not None:
        scheduler, steps, allowed = unfit
        raise JobFileError(
            f"the scheduler {scheduler} cannot take this step count",
            where="sweep.num_inference_steps",
            value=steps,
            allowed=f"{allowed.start} to {allowed.stop - 1}",
        )
