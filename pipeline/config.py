"""The job file: YAML in, one frozen ``Job`` out. Every key, its type and its default stand here and nowhere else."""

import difflib
from collections.abc import Hashable, Iterable
from datetime import date
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, BeforeValidator, ConfigDict, Field, PositiveInt, ValidationError, model_validator

from pipeline import sweep
from pipeline.errors import InputError, JobFileError
from pipeline.schedulers import scheduler_of


class _Section(BaseModel):
    model_config = ConfigDict(frozen=True, extra="forbid", strict=True)


class LoraSection(_Section):
    id: str
    """A safetensors file, a folder with one, or a Hub id."""
    weight: Annotated[float, Field(strict=False, allow_inf_nan=False)] = 1.0


class ModelSection(_Section):
    id: str = "shapes"
    """Built in, a local diffusers directory, or a Hub id."""
    revision: str | None = None
    dtype: Literal["auto", "float32", "float16", "bfloat16"] = "auto"
    loras: tuple[LoraSection, ...] = ()
    """Fused into the model when it is loaded."""
    scheduler: str = "default"
    call: dict[str, bool | int | float | str] = Field(default_factory=dict)
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
        if "steps" in given and "num_inference_steps" not in given:
            given["num_inference_steps"] = given.pop("steps")
        return given

    @model_validator(mode="after")
    def _known_schedulers(self) -> "SweepSection":
        for name in self.schedulers or ():
            _check_scheduler(name, "sweep.schedulers")
        return self


class OutputSection(_Section):
    uri: str | None = None
    """Local path or s3://bucket/prefix; ``{date}`` is filled in."""
    layout: Literal["files"] = "files"
    format: Literal["png"] = "png"


class RenderSection(_Section):
    rows: Literal["auto"] | Annotated[int, Field(ge=2, le=1024)] = "auto"
    """Rows of the denoiser's batch; a guided image takes two."""
    compile: Literal["auto"] | bool = "auto"
    """Of the denoiser; auto: on GPUs."""
    shard_images: Literal["auto"] | PositiveInt = "auto"
    allowed_failures: Annotated[int, Field(ge=0)] = 0


class WorkersSection(_Section):
    count: Literal["auto"] | PositiveInt = "auto"
    gpus: Literal["auto"] | Annotated[float, Field(ge=0, strict=False)] = "auto"
    """Per worker."""
    cpus: PositiveInt = 1
    """Threads per CPU worker."""


class S3Section(_Section):
    endpoint_url: str | None = None
    region: str | None = None
    addressing_style: Literal["auto", "path", "virtual"] = "auto"


class Job(_Section):
    """A job file with every default filled in."""

    manifest: str
    model: ModelSection = Field(default_factory=ModelSection)
    manifest_columns: dict[str, str] = Field(default_factory=dict)
    sweep: SweepSection = Field(default_factory=SweepSection)
    output: OutputSection = Field(default_factory=OutputSection)
    render: RenderSection = Field(default_factory=RenderSection)
    workers: WorkersSection = Field(default_factory=WorkersSection)
    s3: S3Section = Field(default_factory=S3Section)

    @model_validator(mode="before")
    @classmethod
    def _short_model(cls, given: Any) -> Any:
        if isinstance(given, dict):
            given = {key: value for key, value in given.items() if value is not None}
            if isinstance(given.get("model"), str):
                given["model"] = {"id": given["model"]}
        return given


def load_job(path: Path | None, settings: Iterable[tuple[str, Any]], today: date) -> Job:
    """Read a job file and put ``settings`` ("sweep.seeds", value) over it. ``JobFileError`` says what to mend.

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
    uri = job.output.uri or f"renders/{path.stem if path else 'command-line'}"
    output = job.output.model_copy(update={"uri": uri.replace("{date}", today.isoformat())})
    return job.model_copy(update={"output": output})


def parse_setting(text: str) -> tuple[str, Any]:
    """``--set key.sub=value``; the value is read as YAML."""
    key, equals, value = text.partition("=")
    if not equals or not key.strip():
        raise JobFileError("this setting has no value", where="--set", value=text, allowed="key.sub=value")
    try:
        return key.strip(), yaml.load(value, _StrictLoader)  # noqa: S506  # a SafeLoader
    except yaml.YAMLError as error:
        raise JobFileError(f"this setting is not YAML: {_yaml_reason(error)}", where="--set", value=text) from None


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key written twice, where YAML would silently keep the last."""

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if isinstance(key, Hashable) and key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def _read(path: Path) -> dict[str, Any]:
    try:
        read = yaml.load(path.read_text("utf-8"), _StrictLoader)  # noqa: S506  # a SafeLoader
    except FileNotFoundError:
        raise JobFileError("there is no such job file", value=str(path), allowed="a YAML file") from None
    except (OSError, UnicodeDecodeError) as error:
        raise JobFileError(f"the job file cannot be read: {error}", where=str(path)) from None
    except yaml.YAMLError as error:
        raise JobFileError(
            f"the job file is not plain YAML: {_yaml_reason(error)}",
            where=_yaml_place(path, error),
            allowed="mappings, lists, texts, numbers; no tags, no key twice",
        ) from None
    if not isinstance(read, dict):
        raise JobFileError("the job file is not a mapping of keys", where=str(path), value=read, allowed=_keys(Job))
    return read


def _yaml_reason(error: yaml.YAMLError) -> str:
    return str(getattr(error, "problem", None) or error).splitlines()[0]


def _yaml_place(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(path)


def _put(tree: dict[str, Any], key: str, value: Any) -> None:
    *sections, last = key.split(".")
    for section in sections:
        inner = tree.get(section)
        if isinstance(inner, str) and section == "model":
            inner = {"id": inner}
        tree[section] = inner = inner if isinstance(inner, dict) else {}
        tree = inner
    if last in ("steps", "num_inference_steps"):
        tree.pop("steps", None)
    tree[last] = value


def _explained(error: ValidationError, where: str) -> InputError:
    first, *more = sorted(error.errors(), key=lambda entry: entry["type"] != "extra_forbidden")
    key = ".".join(str(part) for part in first["loc"] if not isinstance(part, int) and "[" not in str(part))
    others = f" (and {len(more)} more)" if more else ""
    if first["type"] == "extra_forbidden":
        return _unknown_key(key, where, others)
    if first["type"] == "missing":
        return JobFileError(f"the job has no {key}{others}", where=where, allowed=f"{key}: …")
    expected = first["msg"].replace("Input should be", "").removeprefix("Value error,").strip()
    return JobFileError(
        f"this value cannot be used{others}", where=f"{where}: {key}", value=first["input"], allowed=expected
    )


def _unknown_key(key: str, where: str, others: str) -> InputError:
    *sections, last = key.split(".")
    kind: type[BaseModel] = Job
    for section in sections:
        annotation = kind.model_fields[section].annotation
        assert isinstance(annotation, type)
        kind = annotation
    near = difflib.get_close_matches(last, kind.model_fields, n=1, cutoff=0.5)
    meant = f"; did you mean {near[0]!r}?" if near else ""
    return JobFileError(f"unknown key {last!r}{meant}{others}", where=f"{where}: {key}", allowed=_keys(kind))


def _keys(kind: type[BaseModel]) -> str:
    return ", ".join(kind.model_fields)


def _check_scheduler(text: str, where: str) -> None:
    try:
        scheduler_of(text)
    except InputError as error:
        raise JobFileError(error.what, where=where, value=text, allowed=error.allowed) from None
