"""A model's own scheduler, as diffusers reads it: the class from ``model_index.json``, the keys from its file."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from pipeline.errors import ModelError, RunMismatchError
from pipeline.model.files import read_json
from pipeline.model.trust import check_class
from pipeline.scheduler_classes import DEFAULTS, PACKAGES, class_settings
from pipeline.schedulers import name_of_class

_CORRECTING = ("StableDiffusionPipeline", "StableDiffusionPAGPipeline")
"""Pipelines whose constructor sets ``steps_offset`` to 1 and ``clip_sample`` to false in their scheduler."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnScheduler:
    """Facts of a model's own scheduler that planning needs."""

    class_name: str
    """The class of diffusers that a pipeline of this model has."""
    config: Mapping[str, Any]
    """The content of ``scheduler/scheduler_config.json`` without private keys."""
    name: str | None
    """Our name of the scheduler, None for one that has no name of ours."""
    problem: ModelError | None = None
    """The reason for having no name."""
    former_name: str | None = None
    """The name by the file's own ``_class_name``, which earlier versions went by."""
    corrections: Mapping[str, Any] = field(default_factory=dict)
    """Absent keys for which the pipeline puts another value than the class's default, where images depend on it."""

    @property
    def reading(self) -> Mapping[str, Any]:
        """Return what enters the digest beside ``config``: empty where earlier versions drew the same images."""
        if self.name is None or self.former_name is None:
            return {}  # earlier versions refused the model, or draw the same with the scheduler that a job names
        changed = self.corrections or self.former_name != self.name
        return {"_class_name": self.class_name, **self.corrections} if changed else {}

    def read_otherwise(self, config: Mapping[str, Any]) -> bool:
        """Return whether a run with this scheduler configuration began when the model's own was read otherwise."""
        return bool(self.reading) and config.keys() == self.config.keys()

    @property
    def warnings(self) -> tuple[str, ...]:
        """Return sentences about the file that its author may not have meant."""
        found = []
        if self.former_name is not None and self.former_name != self.name:
            found.append(
                f"model_index.json names {self.class_name} as the model's scheduler and scheduler_config.json another "
                f"class ({self.former_name} here): the index counts, as in diffusers"
            )
        unknown = sorted(self.config.keys() - _KNOWN_KEYS) if self.class_name in DEFAULTS else []
        if unknown:
            found.append(f"no scheduler takes these keys of the model's scheduler_config.json: {', '.join(unknown)}")
        return tuple(found)


def otherwise_read(own: OwnScheduler, where: str) -> RunMismatchError:
    """Return the error for a run that began when the model's own scheduler was read otherwise."""
    if own.former_name != own.name:
        return RunMismatchError(
            "this output holds a run in which the model's own scheduler was taken to be what scheduler_config.json "
            f"names: {own.former_name}; now it is what model_index.json names, as in diffusers: {own.name}",
            where=where,
            allowed=f"sweep.schedulers without {own.name}, such as [{own.former_name}]; or another output.uri",
        )
    return RunMismatchError(
        f"this output holds a run in which the model's own scheduler, {own.name}, lacked what its pipeline sets: "
        + ", ".join(f"{key} {value!r}" for key, value in own.corrections.items())
        + "; images would differ now",
        where=where,
        allowed=f"sweep.schedulers without {own.name}; or another output.uri",
    )


_KNOWN_KEYS = {key for defaults in DEFAULTS.values() for key in defaults}


def read_own_scheduler(folder: Path, index: Mapping[str, Any]) -> OwnScheduler:
    """Read the scheduler of a model whose ``model_index.json`` has been read.

    Raises ``ModelError`` for a file that cannot be read and for a class that cannot be loaded here.
    """
    class_name = _class_name(folder / "model_index.json", index)
    read = read_json(folder / "scheduler" / "scheduler_config.json")
    config = {key: value for key, value in read.items() if not key.startswith("_")}
    name, problem = _named(class_name, config)
    return OwnScheduler(
        class_name=class_name,
        config=config,
        name=name,
        problem=problem,
        former_name=_former_name(str(read.get("_class_name")), config),
        corrections=_corrections(class_name, config) if name and index.get("_class_name") in _CORRECTING else {},
    )


def _class_name(path: Path, index: Mapping[str, Any]) -> str:
    check_class("scheduler", index["scheduler"], path)
    class_name = str(index["scheduler"][1])
    package = PACKAGES.get(class_name)
    if package is not None and find_spec(package) is None:
        raise ModelError(
            f"the model's scheduler cannot be loaded without the package {package}",
            where=f"{path}: scheduler",
            value=class_name,
            allowed=f"an environment with {package}, or a copy of the model with another scheduler",
        )
    return class_name


def _named(class_name: str, config: Mapping[str, Any]) -> tuple[str | None, ModelError | None]:
    try:
        return name_of_class(class_name, config), None
    except ModelError as error:
        return None, error


def _former_name(class_name: str, config: Mapping[str, Any]) -> str | None:
    """Return the name that earlier versions gave the scheduler; they took absent keys as ours, not the class's."""
    own = {"skip_prk_steps": True} if class_name == "PNDMScheduler" else {}
    return _named(class_name, {**own, **config})[0]


def _corrections(class_name: str, config: Mapping[str, Any]) -> dict[str, Any]:
    settings, absent = class_settings(class_name, config), DEFAULTS[class_name].keys() - config.keys()
    found: dict[str, Any] = {}
    if "steps_offset" in absent and settings["timestep_spacing"] == "leading" and class_name != "LCMScheduler":
        found["steps_offset"] = 1
    if "clip_sample" in absent and settings["clip_sample"] and not settings["thresholding"]:
        found["clip_sample"] = False
    return found
