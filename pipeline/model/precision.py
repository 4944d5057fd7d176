"""Layers that compute in float8 (``model.precision: fp8``), and the requirements of a job that uses it.

This module reads JSON and safetensors headers only. ``pipeline/rendering/precision.py`` quantizes the layers.
"""

from collections.abc import Sequence
from importlib.util import find_spec
from pathlib import Path

from pipeline.errors import JobFileError, ModelError
from pipeline.model.facts import ModelFacts
from pipeline.model.files import denoiser_of, read_json
from pipeline.model.weights import tensors_of, weights_in

DTYPE = "bfloat16"
"""The only dtype that a float8 multiplication with a scale per row returns."""
MULTIPLE = 16
"""The number that must divide the inputs and outputs of a float8 multiplication."""
_WITHOUT = "leave model.precision out"


def takes_float8(name: str, shape: Sequence[int]) -> bool:
    """Return whether a layer computes in float8, from its dotted name in the denoiser and its weight's shape.

    These are the linear layers of transformer blocks whose inputs and outputs are multiples of 16. Layers of the
    blocks' norms are excluded.
    """
    parts = name.split(".")
    in_block = any(part.endswith("transformer_blocks") for part in parts)
    of_norm = any(part.startswith("norm") for part in parts)
    return in_block and not of_norm and len(shape) == 2 and not any(side % MULTIPLE for side in shape)


def check_job(facts: ModelFacts, *, dtype: str, gpus: str | float) -> None:
    """Raise ``InputError`` for a job with float8 that cannot be rendered. Workers check their devices later."""
    check_installed()
    if dtype != "auto":
        check_dtype(dtype)
    if facts.family.single:
        raise not_batched(facts.class_name)
    if gpus == 0:
        raise no_gpu("workers.gpus", gpus)


def check_installed() -> None:
    """Raise ``JobFileError`` if torchao is not installed. It is not imported."""
    if find_spec("torchao") is None:
        raise JobFileError(
            "fp8 needs torchao, which is not installed",
            where="model.precision",
            value="fp8",
            allowed=f"install it with `pip install -c constraints.txt torchao`, or {_WITHOUT}",
        )


def check_dtype(dtype: str) -> None:
    """Raise ``JobFileError`` for a dtype other than bfloat16."""
    if dtype != DTYPE:
        raise JobFileError(
            "fp8 cannot be combined with this dtype",
            where="model.dtype",
            value=dtype,
            allowed=f"auto or {DTYPE}; or {_WITHOUT}",
        )


def not_batched(class_name: str) -> JobFileError:
    """Return the error for a model that is rendered by one call per image."""
    return JobFileError(
        "fp8 needs a model that is rendered in batches, and this one is rendered by one call per image",
        where="model.precision",
        value=class_name,
        allowed=f"a class with a batch of its own, without model.call; or {_WITHOUT}",
    )


def no_gpu(where: str, value: object) -> JobFileError:
    """Return the error for a device that cannot multiply float8."""
    return JobFileError(
        "fp8 needs NVIDIA GPUs of compute capability 8.9 or higher (Ada, Hopper or newer)",
        where=where,
        value=value,
        allowed=f"such GPUs wherever images are rendered, or {_WITHOUT}",
    )


def check_layers(folder: Path) -> None:
    """Raise ``ModelError`` for a model without a layer that computes in float8, from its safetensors headers."""
    denoiser = folder / (denoiser_of(read_json(folder / "model_index.json")) or "unet")
    tensors = (tensors_of(denoiser / name) for name in weights_in(denoiser).files)
    names = ((name.removesuffix(".weight"), tensor) for file in tensors for name, tensor in file.items())
    if not any(takes_float8(name, tensor.get("shape", ())) for name, tensor in names):
        raise no_layers(str(denoiser))


def no_layers(where: str) -> ModelError:
    """Return the error for a denoiser without a layer that computes in float8."""
    return ModelError(
        "no layer of this denoiser can compute in fp8",
        where=where,
        allowed=f"linear layers in transformer blocks whose inputs and outputs divide by {MULTIPLE}; or {_WITHOUT}",
    )
