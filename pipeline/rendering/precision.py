"""Linear layers in float8: weights once, activations at every call, each row of a matrix with a scale of its own.

An activation's row is one token of one image, so no scale depends on what else is in the batch.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.model.precision import check_dtype, check_installed, no_gpu, no_layers, takes_float8
from pipeline.rendering.devices import device_name

LEAST_CAPABILITY = (8, 9)
LEAST_MAGNITUDE = 1e-12
"""A row's largest magnitude counts as at least this, so that a row of zeros, as of an absent prompt, is no NaN."""


def check_float8(dtype: str, device: str) -> None:
    """Raise ``JobFileError`` where float8 cannot be computed: torchao, dtype and device."""
    check_installed()
    check_dtype(dtype)
    if device == "cpu":
        raise no_gpu("model.precision", f"fp8 on {device_name(device)}")
    capability = torch.cuda.get_device_capability(device)
    if torch.version.cuda is None or capability < LEAST_CAPABILITY:
        major, minor = capability
        raise no_gpu("model.precision", f"fp8 on {device_name(device)}, compute capability {major}.{minor}")


def float8_layers(denoiser: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Yield the layers that compute in float8, with their names."""
    for name, module in denoiser.named_modules():
        if isinstance(module, nn.Linear) and takes_float8(name, module.weight.shape):
            yield name, module


def quantize(denoiser: nn.Module) -> None:
    """Quantize a denoiser's layers in place, after LoRAs and projections have been fused.

    Raises ``ModelError`` where none can be.
    """
    layers = list(float8_layers(denoiser))
    if not layers:
        raise no_layers("model.precision")
    for _, layer in layers:
        layer.weight = nn.Parameter(float8(layer.weight), requires_grad=False)


def float8(weight: Tensor) -> Any:
    """Quantize a weight, (outputs, inputs) in bfloat16, to e4m3 with a scale per output.

    ``linear`` with it quantizes its input to e4m3 with a scale per row. The multiplication is always torch's own, so
    that kernels which happen to be installed change no image.
    """
    # Imported here: torchao is an extra, and takes seconds.
    from torchao.float8.inference import Float8MMConfig
    from torchao.quantization import Float8Tensor, PerRow
    from torchao.quantization.quantize_.common import KernelPreference
    from torchao.quantization.quantize_.workflows import QuantizeTensorToFloat8Kwargs

    per_row: dict[str, Any] = {
        "granularity": PerRow(),
        "hp_value_lb": LEAST_MAGNITUDE,
        "kernel_preference": KernelPreference.TORCH,
    }
    return Float8Tensor.from_hp(
        weight.detach(),
        float8_dtype=torch.float8_e4m3fn,
        mm_config=Float8MMConfig(use_fast_accum=True),
        act_quant_kwargs=QuantizeTensorToFloat8Kwargs(**per_row),
        **per_row,
    )
