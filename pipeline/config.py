"""The job file: YAML in, one frozen ``Job`` out. Every key, its type and its default stand here and nowhere else."""

import difflib
from collections.abc import Iterable
from dataclasses import dataclass
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal, get_args

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, ValidationError, model_validator
from pydantic_core import ErrorDetails

from pipeline import sweep
from pipeline.errors import InputError, JobFileError
from pipeline.output.layout import Format, Layout, Setting
from pipeline.output_address import default_output, output_address
from pipeline.schedulers import scheduler_of
from pipeline.strict_yaml import parse_seconds, parse_yaml, yaml_place, yaml_reason

_Filled = Annotated[str, Field(pattern=r"\S")]
_Finite = Annotated[float, Field(allow_inf_nan=False)]


def _allowed(text: str) -> Any:
    """What an error about the key says; pydantic's own words are for programmers."""
    return Field(description=text)


def _off(given: Any) -> Any:
    """YAML reads a bare off as false."""
    return "off" if given is False else given


_UNKNOWN = ("extra_forbidden", "invalid_key")
"""What pydantic calls a key that no section has."""

_NO_MANIFEST = "a manifest is no job file: give it with --manifest"


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class LoraSection(_Section):
    id: Annotated[_Filled, _allowed("a safetensors file, a folder with one, a Hub id, or org/name/file.safetensors")]
    weight: Annotated[_Finite, _allowed("a number")] = 1.0
    file: Annotated[_Filled | None, _allowed("a safetensors file in the folder or Hub repository, or null")] = None
    revision: Annotated[_Filled | None, _allowed("a branch, tag or commit of a Hub id, or null")] = None


class ModelSection(_Section):
    id: Annotated[_Filled, _allowed("a built-in model, a local diffusers folder, s3://bucket/prefix, or a Hub id")] = (
        "shapes"
    )
    revision: Annotated[_Filled | None, _allowed("a branch, tag or commit of a Hub id, or null")] = None
    dtype: Annotated[
        Literal["auto", "float32", "float16", "bfloat16"], _allowed("auto, float32, float16 or bfloat16")
    ] = "auto"
    precision: Annotated[Literal["fp8"] | None, _allowed("fp8, or null")] = None
    """Number format of the denoiser's larger linear layers; null: ``dtype``."""
    loras: Annotated[
        tuple[LoraSection, ...], Field(strict=False), _allowed("a list of {id, weight, file, revision}")
    ] = ()
    """Fused into the model when it is loaded."""
    scheduler: Annotated[str, _allowed("default, or name:option:option")] = "default"
    call: Annotated[
        dict[str, bool | int | _Finite | str], _allowed("a mapping of names to numbers, texts, true or false")
    ] = Field(default_factory=dict)
    """Further arguments of the model's stock pipeline, such as clip_skip; they mean one call per image."""

    @model_validator(mode="after")
    def _known_scheduler(self) -> "ModelSection":
        if self.scheduler != "default":
            _check_scheduler(self.scheduler, "model.scheduler")
        return self


class SweepSection(_Section):
    seeds: Annotated[tuple[int, ...], BeforeValidator(sweep.parse_seeds)] = (0,)
    guidance_scales: Annotated[tuple[float, ...], BeforeValidator(sweep.parse_guidance_scales)] | None = None
    num_inference_steps: Annotated[tuple[int, ...], BeforeValidator(sweep.parse_num_inference_steps)] | None = None
    schedulers: Annotated[tuple[str, ...], BeforeValidator(sweep.parse_names)] | None = None
    sizes: Annotated[tuple[tuple[int, int], ...], BeforeValidator(sweep.parse_sizes)] | None = None

    @model_validator(mode="before")
    @classmethod
    def _short_names(cls, given: Any) -> Any:
        if not isinstance(given, dict):
            return given
        given = {key: value for key, value in given.items() if value is not None}
        if "steps" in given:
            if "num_inference_steps" in given:
                raise JobFileError(
                    "steps is short for num_inference_steps, and here are both", where="sweep", allowed="one of them"
                )
            given["num_inference_steps"] = given.pop("steps")
        return given

    @model_validator(mode="after")
    def _known_schedulers(self) -> "SweepSection":
        for name in self.schedulers or ():
            _check_scheduler(name, "sweep.schedulers")
        return self


class OutputSection(_Section):
    uri: Annotated[_Filled | None, _allowed("a local path or s3://bucket/prefix; {date} is filled in")] = None
    layout: Annotated[Layout, _allowed("files, webdataset or parquet")] = "files"
    format: Annotated[Format, _allowed("png, webp or jpeg")] = "png"
    jpeg_quality: Annotated[int, Field(ge=1, le=100), _allowed("a whole number from 1 to 100")] = 95
    provenance: Annotated[Setting, BeforeValidator(_off), _allowed("full, no_prompt or off")] = "full"
    """What image files say of their making."""
    license: Annotated[
        Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9.-]*$")] | None,
        _allowed("a license id of the Hugging Face Hub in small letters, such as cc-by-4.0, or null"),
    ] = None
    """Of the images as a data set: what the dataset card says."""


class PromptsSection(_Section):
    blocklist: Annotated[_Filled | None, _allowed("a text file, one term a line; local or s3://; or null")] = None
    """Rows whose prompt holds one of its terms are rejected."""


class RenderSection(_Section):
    rows: Annotated[
        Literal["auto"] | Annotated[int, Field(ge=2, le=1024)], _allowed("auto, or a whole number from 2 to 1024")
    ] = "auto"
    """Rows of the denoiser's batch; a guided image takes two."""
    compile: Annotated[Literal["auto"] | bool, _allowed("auto, true or false")] = "auto"
    """Of the denoiser; auto: on GPUs."""
    shard_images: Annotated[Literal["auto"] | PositiveInt, _allowed("auto, or a whole number from 1")] = "auto"
    strict_numerics: Annotated[bool, _allowed("true or false")] = False
    """Refuse what a later launch otherwise warns of: what may change last bits."""
    allowed_failures: Annotated[int, Field(ge=0), _allowed("a whole number from 0")] = 0
    stop_after: Annotated[
        float | None, BeforeValidator(parse_seconds), _allowed("a time such as 6h, 90m or 1h30m, or null")
    ] = None
    """Seconds after which no image is begun; what has begun is finished and committed."""
    safety_checker: Annotated[Literal["flag", "drop", "off"], BeforeValidator(_off), _allowed("flag, drop or off")] = (
        "flag"
    )
    """What becomes of images that the model's own checker flags; off does not load it."""
    watchdog: Annotated[float, BeforeValidator(parse_seconds), _allowed("a time such as 15m")] = 900.0
    """Seconds one step of the engine may take, compiling included, before its process is taken to hang."""


class PoolSection(_Section):
    """A pool that grows when machines join and work waits."""

    min: Annotated[PositiveInt, _allowed("a whole number from 1")] = 1
    max: Annotated[PositiveInt, _allowed("a whole number from 1")]

    @model_validator(mode="after")
    def _in_order(self) -> "PoolSection":
        if self.min > self.max:
            raise JobFileError(
                "min is more than max", where="workers.count", value=f"{self.min} > {self.max}", allowed="min up to max"
            )
        return self


class WorkersSection(_Section):
    count: Annotated[
        Literal["auto"] | PositiveInt | PoolSection, _allowed("auto, a whole number from 1, or {min, max}")
    ] = "auto"
    gpus: Annotated[Literal["auto"] | Annotated[_Finite, Field(ge=0)], _allowed("auto, or a number from 0")] = "auto"
    """Per worker."""
    cpus: Annotated[PositiveInt, _allowed("a whole number from 1")] = 1
    """Threads per CPU worker."""


class S3Section(_Section):
    endpoint_url: Annotated[str | None, _allowed("http://host:port or https://host")] = None
    region: Annotated[str | None, _allowed("a region's name, as us-east-1")] = None
    addressing_style: Annotated[Literal["auto", "path", "virtual"], _allowed("auto, path or virtual")] = "auto"


class Job(_Section):
    """A job file with every default filled in."""

    manifest: Annotated[_Filled, _allowed("a Parquet file, a directory of them, or a glob; local or s3://")]
    model: ModelSection = Field(default_factory=ModelSection)
    manifest_columns: Annotated[
        dict[str, str | None], _allowed("a mapping of their column names to a setting, another name, or null")
    ] = Field(default_factory=dict)
    prompts: PromptsSection = Field(default_factory=PromptsSection)
    sweep: SweepSection = Field(default_factory=SweepSection)
    output: OutputSection = Field(default_factory=OutputSection)
    render: RenderSection = Field(default_factory=RenderSection)
    workers: WorkersSection = Field(default_factory=WorkersSection)
    s3: S3Section = Field(default_factory=S3Section)
    _day: date | None = None

    @property
    def day(self) -> date | None:
        """The current day where the output's address holds it; None where a date was chosen, or none is held."""
        return self._day

    @model_validator(mode="before")
    @classmethod
    def _short_model(cls, given: Any) -> Any:
        if isinstance(given, dict):
            given = {key: value for key, value in given.items() if value is not None}
            if isinstance(given.get("model"), str):
                given["model"] = {"id": given["model"]}
        return given


def load_job(
    path: Path | None, settings: Iterable[tuple[str, Any]], today: date, *, chosen_date: date | None = None
) -> Job:
    """Read a job file and put ``settings`` ("sweep.seeds", value) over it. ``JobFileError`` says what to mend.

    ``{date}`` in the output's address becomes ``chosen_date``, else ``today``.
    A relative manifest, model folder or output is taken from the working directory, as in any command line tool.
    """
    where = str(path) if path else "the command line"
    tree = _read(path) if path else {}
    for key, value in settings:
        _put(tree, key, value)
    try:
        job = Job.model_validate(tree)
    except ValidationError as error:
        raise _explained(error, where) from None
    except JobFileError as error:
        error.where = f"{where}: {error.where}"
        raise
    address = output_address(job.output.uri or default_output(path, job.manifest), today, chosen_date)
    filled = job.model_copy(update={"output": job.output.model_copy(update={"uri": address.uri})})
    filled._day = address.day
    return filled


def is_section(key: str) -> bool:
    """Whether a key of a job has keys of its own; a mapping under another one is a value."""
    field = Job.model_fields.get(key)
    return field is not None and _section_of(field.annotation) is not None


def job_keys() -> tuple[str, ...]:
    """Return every key of a job that has a value of its own, dotted."""
    keys: list[str] = []
    for name, field in Job.model_fields.items():
        section = _section_of(field.annotation)
        keys += [name] if section is None else [f"{name}.{key}" for key in section.model_fields]
    return tuple(keys)


def parse_setting(text: str) -> tuple[str, Any]:
    """``--set key.sub=value``; the value is read as YAML."""
    key, equals, value = text.partition("=")
    key = key.strip()
    if not equals or not all(key.split(".")):
        raise JobFileError("this setting has no key or no value", where="--set", value=text, allowed="key.sub=value")
    try:
        return key, parse_yaml(value)
    except yaml.YAMLError as error:
        raise JobFileError(
            f"this setting is not YAML: {yaml_reason(error)}", where="--set", value=text, allowed="key.sub=value"
        ) from None


def _read(path: Path) -> dict[str, Any]:
    try:
        read = parse_yaml(path.read_text("utf-8"))
    except FileNotFoundError:
        raise JobFileError("there is no such job file", where="JOB", value=str(path), allowed="a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        reason = error.strerror if isinstance(error, OSError) else "it is not UTF-8 text"
        raise JobFileError(
            f"the job file cannot be read: {reason}", where=str(path), allowed=f"a YAML file in UTF-8; {_NO_MANIFEST}"
        ) from None
    except yaml.YAMLError as error:
        raise JobFileError(
            f"the job file is not plain YAML: {yaml_reason(error)}",
            where=yaml_place(path, error),
            allowed="mappings, lists, texts, numbers; no tags, no key twice",
        ) from None
    if not isinstance(read, dict):
        allowed = f"the keys {_keys(Job)}; {_NO_MANIFEST}"
        raise JobFileError("the job file is not a mapping of keys", where=str(path), value=read, allowed=allowed)
    return read


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        inner = tree.get(section)
        if isinstance(inner, str) and section == "model":
            inner = {"id": inner}
        tree[section] = inner = inner if isinstance(inner, dict) else {}
        tree = inner
    if sections == ["sweep"] and last in ("steps", "num_inference_steps"):
        tree.pop("steps", None)
        tree.pop("num_inference_steps", None)
    tree[last] = value


def _explained(error: ValidationError, where: str) -> InputError:
    """The first of what is wrong, unknown keys before wrong values, and which other keys are."""
    entries = sorted(error.errors(), key=lambda entry: entry["type"] not in _UNKNOWN)
    first = entries[0]
    unknown = first["type"] in _UNKNOWN
    found = _place(first["loc"][:-1] if unknown else first["loc"])
    named, *more = dict.fromkeys(map(_path_of, entries))
    others = f" (wrong too: {', '.join(more)})" if more else ""
    if unknown:
        key = str(first["loc"][-1])
        return JobFileError(
            f"unknown key {key!r}{_advice(key, found.section)}{others}",
            where=f"{where}: {named}",
            allowed=_keys(found.section),
        )
    if first["type"] == "missing":
        return JobFileError(
            f"the job has no {found.path}{others}", where=where, allowed=f"{found.path}: {found.allowed}"
        )
    return JobFileError(
        f"this value cannot be used{others}",
        where=f"{where}: {found.path}",
        value=first["input"],
        allowed=found.allowed,
    )


@dataclass(frozen=True, slots=True, kw_only=True)
class _Place:
    """A key of the job file, from where pydantic says an error is."""

    path: str
    section: type[BaseModel]
    """The innermost that exists."""
    allowed: str


def _place(loc: tuple[int | str, ...]) -> _Place:
    path, allowed = "", _keys_in_words(Job)
    section: type[BaseModel] = Job
    kind: type[BaseModel] | None = Job
    for part in loc:
        if isinstance(part, int):
            path += f"[{part}]"
        elif kind is not None and part in kind.model_fields:
            field, section = kind.model_fields[part], kind
            path = f"{path}.{part}" if path else part
            kind = _section_of(field.annotation)
            allowed = field.description or _keys_in_words(kind or section)
        else:
            break  # a key of the user's own, or which member of a union pydantic tried
    return _Place(path=path, section=kind or section, allowed=allowed)


def _path_of(entry: ErrorDetails) -> str:
    """The key that an error is about, as a person writes it."""
    if entry["type"] not in _UNKNOWN:
        return _place(entry["loc"]).path
    above, key = _place(entry["loc"][:-1]).path, str(entry["loc"][-1])
    return f"{above}.{key}" if above else key


def _section_of(annotation: Any) -> type[BaseModel] | None:
    """The section that a field is, or a list of."""
    kinds = [kind for kind in (annotation, *get_args(annotation)) if isinstance(kind, type)]
    return next((kind for kind in kinds if issubclass(kind, BaseModel)), None)


def _advice(key: str, section: type[BaseModel]) -> str:
    above, _, last = key.rpartition(".")
    homes = {name: _section_of(field.annotation) for name, field in Job.model_fields.items()}
    home = next(
        (name for name, kind in homes.items() if kind and last in kind.model_fields and above in ("", name)), None
    )
    if home is not None and homes[home] is not section:
        return f"; it belongs under `{home}`: write `{home}: {{{last}: …}}`"
    near = difflib.get_close_matches(key, section.model_fields, n=1, cutoff=0.5)
    return f"; did you mean {near[0]!r}?" if near else ""


def _keys(kind: type[BaseModel]) -> str:
    return ", ".join(kind.model_fields)


def _keys_in_words(kind: type[BaseModel]) -> str:
    return f"a mapping with the keys {_keys(kind)}"


def _check_scheduler(text: str, where: str) -> None:
    try:
        scheduler_of(text)
    except InputError as error:
        raise JobFileError(error.what, where=where, value=text, allowed=error.allowed) from None
