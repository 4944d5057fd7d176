"""Files and folders that are given as a model and are none: what each is, and what to do with it."""

from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath

from pipeline.errors import ModelError
from pipeline.model.files import INDEX, read_json
from pipeline.model.weights import PICKLED, check_no_pointer, foreign_weights, tensors_of

_CONVERT = (
    "convert it once with diffusers: StableDiffusionPipeline.from_single_file(FILE).save_pretrained(FOLDER), with the "
    "class of the model, and give the folder"
)
_LORA = "give it in model.loras, beside the model it was trained for"
_LORA_MARKS = (".lora_A.", ".lora_B.", ".lora_down.", ".lora_up.", ".lora.", "_lora.", ".hada_", ".lokr_")
_CHECKPOINT_MARKS = ("model.diffusion_model.", "first_stage_model.", "cond_stage_model.", "conditioner.embedders.")
"""Beginnings of tensor names in whole checkpoints, as the web UIs save them."""

_PARTS = {"unet", "transformer", "vae", "text_encoder"}


def refuse_file(path: Path) -> ModelError:
    """Return the error for a file that was given as a model."""
    what, allowed = _kind_of_file(path)
    return ModelError(f"a model is a folder in diffusers format, and this file is {what}", where="model.id",
                      value=str(path), allowed=allowed)  # fmt: skip


def require_index(folder: Path) -> None:
    """Raise ``ModelError`` for a folder without ``model_index.json``, and say what it holds instead."""
    if (folder / INDEX).is_file():
        return
    names = [path.relative_to(folder).as_posix() for path in _near(folder) if path.is_file()]
    what = what_files_are(names)
    if "config.json" in names:
        what = _kind_of_config(folder / "config.json") or what
    raise ModelError(
        f"this folder holds no model in diffusers format: {what}",
        where="model.id",
        value=str(folder),
        allowed=f"a folder with {INDEX}",
    )


def what_files_are(names: Collection[str]) -> str:
    """Return what a folder or repository without ``model_index.json`` holds, by the names of its files, for people."""
    if not names:
        return "it has no files"
    top = sorted(name for name in names if "/" not in name)
    inside = sorted(str(PurePosixPath(name).parent) for name in names if PurePosixPath(name).name == INDEX)
    if inside:
        return f"the model is in {', '.join(inside)}"
    if "adapter_config.json" in top:
        return f"it is an adapter; {_LORA}"
    if "modular_model_index.json" in top:
        return "it is a modular pipeline, which is not supported"
    files = _ending(top, (".safetensors", *PICKLED))
    if "config.json" in top:
        return "it looks like one part of a model, such as a denoiser or a text encoder"
    if files:
        return f"it holds single files, {_listed(files)}: for a checkpoint, {_CONVERT}; for a LoRA, {_LORA}"
    if kind := foreign_weights(names):
        return f"it holds {kind}, which are not supported"
    return f"it holds {_listed(sorted(names))}"


def _kind_of_file(path: Path) -> tuple[str, str]:
    """Return what a file is, and what is allowed instead."""
    check_no_pointer(path)
    if path.suffix in PICKLED:
        return "a pickled checkpoint, which is never opened because that runs code", f"{_CONVERT}, where you trust it"
    if path.suffix != ".safetensors":
        kind = foreign_weights([path.name])
        return f"one of {kind}, which are not supported" if kind else "no weights", f"a folder with {INDEX}"
    names = tensors_of(path)
    if any(mark in name for name in names for mark in _LORA_MARKS):
        return "a LoRA", _LORA
    if any(name.startswith(_CHECKPOINT_MARKS) for name in names) or len({*map(_top, names)} & _PARTS) > 1:
        return "a whole checkpoint", _CONVERT
    return "a single file of weights", f"a folder with {INDEX}; if it is a whole checkpoint, {_CONVERT}"


def _kind_of_config(path: Path) -> str | None:
    """Return which part of a model a folder with this configuration is."""
    config = read_json(path)
    found = config.get("_class_name") or next(iter(config.get("architectures") or ()), None)
    return f"it is one part of a model, a {found}; give the folder above it" if found else None


def _near(folder: Path) -> Iterable[Path]:
    """Return the files of a folder and of those two below it, where people keep a model under another folder's name."""
    for pattern in ("*", "*/*", "*/*/*"):
        yield from folder.glob(pattern)


def _top(name: str) -> str:
    return name.partition(".")[0]


def _ending(names: Iterable[str], suffixes: tuple[str, ...]) -> list[str]:
    return [name for name in names if name.endswith(suffixes)]


def _listed(names: list[str], most: int = 8) -> str:
    more = f" and {len(names) - most} more" if len(names) > most else ""
    return ", ".join(names[:most]) + more
