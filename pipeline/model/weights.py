"""The safetensors files of a component: which of them are loaded, and what their headers say."""

import json
import re
import struct
from collections.abc import Collection, Iterable
from dataclasses import dataclass
from pathlib import Path, PurePath
from typing import Any

from pipeline.errors import ModelError

PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
"""Suffixes of weights whose loading runs code."""
_FOREIGN = {".msgpack": "Flax weights", ".onnx": "ONNX weights", ".onnx_data": "ONNX weights", ".gguf": "GGUF weights",
            ".h5": "TensorFlow weights"}  # fmt: skip
_POINTER = b"version https://git-lfs.github.com/spec/"
_MAX_HEADER_BYTES = 100_000_000
_SPLIT = r"-\d{5}-of-\d{5}"
_VARIANT = re.compile(rf"(?:diffusion_pytorch_model|model)(?:{_SPLIT})?\.([^.]+?)(?:{_SPLIT})?\.safetensors")
"""As diffusers and transformers name them: ``model.fp16.safetensors``, ``model.fp16-00001-of-00002.safetensors``."""
STEMS = {"diffusers": "diffusion_pytorch_model", "transformers": "model"}
"""Names, without suffixes, under which each library looks for the weights of a component."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Weights:
    """The weights of a component that are loaded."""

    files: tuple[str, ...]
    """Names in the component's folder, sorted."""
    variant: str | None = None
    """The name after which diffusers calls the files, such as fp16; None for plain ones."""


def is_weights(file_name: str) -> bool:
    """Return whether a name is that of plain weights: of this folder, safetensors, and no variant's.

    ``model-00001-of-00002.safetensors`` is one, ``model.fp16.safetensors`` is a variant's.
    """
    return PurePath(file_name).name == file_name and file_name.endswith(".safetensors") and file_name.count(".") == 1


def variant_of(file_name: str) -> str | None:
    """Return the variant a file of weights belongs to, or None for any other file."""
    found = _VARIANT.fullmatch(file_name)
    return found[1] if found else None


def is_found(file_name: str, stems: Collection[str] = tuple(STEMS.values())) -> bool:
    """Return whether plain weights of this name, or of this index, are found by who looks for these stems."""
    return any(re.fullmatch(rf"{stem}(?:{_SPLIT})?\.safetensors(?:\.index\.json)?", file_name) for stem in stems)


def weights_among(names: Iterable[str], where: str) -> Weights:
    """Return the weights to load among the files of a component: the plain ones, else those of its only variant.

    Raises ``ModelError`` where nothing can be loaded: no safetensors, or several variants without plain weights.
    """
    names = sorted(names)
    plain = tuple(name for name in names if is_weights(name))
    variants = sorted({variant for name in names if (variant := variant_of(name)) is not None})
    if plain and (not variants or any(map(is_found, names))):
        return Weights(files=plain)
    if not variants:
        raise _no_weights(names, where)
    if len(variants) > 1:
        raise ModelError(
            "the weights have several variants and no plain files, so it is not clear which are meant",
            where=where,
            value=", ".join(variants),
            allowed="plain weights, or those of one variant; remove the others from a copy of the model",
        )
    return Weights(files=tuple(name for name in names if variant_of(name) == variants[0]), variant=variants[0])


def weights_in(folder: Path) -> Weights:
    """Return the weights to load of a component's folder; ``ModelError`` as ``weights_among``."""
    return weights_among((path.name for path in folder.glob("*")), str(folder))


def foreign_weights(names: Collection[str]) -> str | None:
    """Return what kind of weights these files hold where no safetensors are: for people, None if there are none."""
    suffixes = {PurePath(name).suffix for name in names}
    if suffixes.intersection(PICKLED):
        return "pickled weights"
    return next((kind for suffix, kind in _FOREIGN.items() if suffix in suffixes), None)


def _no_weights(names: Collection[str], where: str) -> ModelError:
    kind = foreign_weights(names)
    named = [name for name in names if foreign_weights([name]) == kind] if kind else []
    what = "no weights" if kind is None else f"{kind} cannot be loaded"
    if kind == "pickled weights":
        what = "pickled weights are refused, loading them runs code"
    return ModelError(what, where=where, value=named[0] if named else None, allowed="*.safetensors")


def check_no_pointer(path: Path) -> None:
    """Raise ``ModelError`` for a file that only stands for another one, as git leaves it without git-lfs."""
    with path.open("rb") as file:
        check_content(file.read(len(_POINTER)), path)


def check_content(content: bytes, path: Path) -> None:
    """Do the same, given the beginning of the file."""
    if content.startswith(_POINTER):
        raise ModelError(
            "this file is a git-lfs pointer, its content was not downloaded",
            where=str(path),
            allowed="the file itself: run `git lfs pull` in the repository, or download it again",
        )


def read_header(path: Path) -> dict[str, dict[str, Any]]:
    """Return the header of a safetensors file, a mapping for each tensor, and hold it against the file's size.

    The file is 8 bytes of length, little endian, then JSON of that length, then the tensors.
    """
    try:
        check_no_pointer(path)
        size = path.stat().st_size
        with path.open("rb") as file:
            (length,) = struct.unpack("<Q", file.read(8))
            if length > _MAX_HEADER_BYTES:
                raise ValueError(f"header of {length} bytes")
            if size < 8 + length:
                raise _cut(path, size, 8 + length)
            header = json.loads(file.read(length))
        if not isinstance(header, dict) or not all(isinstance(tensor, dict) for tensor in header.values()):
            raise ValueError("its header names no tensors")
        tensors = {name: tensor for name, tensor in header.items() if name != "__metadata__"}
        whole = 8 + length + max((tensor["data_offsets"][1] for tensor in tensors.values()), default=0)
        if size < whole:
            raise _cut(path, size, whole)
        if size > whole:
            raise ValueError(f"{size - whole:,} bytes follow after its last tensor")
        return header
    except FileNotFoundError:
        raise ModelError(
            "a file of the model is missing, its link leads to nothing" if path.is_symlink() else "no such file",
            where=str(path),
            allowed="a safetensors file",
        ) from None
    except (OSError, ValueError, RecursionError, struct.error, LookupError, TypeError) as error:
        reason = f"its header has no {error}" if isinstance(error, KeyError) else error
        raise ModelError(
            f"this is not a safetensors file: {reason}", where=str(path), allowed="a safetensors file"
        ) from None


def tensors_of(path: Path) -> dict[str, dict[str, Any]]:
    """Return the tensors of a safetensors file by name, each with ``dtype`` and ``shape``."""
    return {name: tensor for name, tensor in read_header(path).items() if name != "__metadata__"}


def _cut(path: Path, size: int, whole: int) -> ModelError:
    return ModelError(
        "this file is incomplete, as after an interrupted download",
        where=str(path),
        value=f"{size:,} bytes",
        allowed=f"{whole:,} bytes, as its header says",
    )
