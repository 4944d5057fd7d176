"""Linear layers in float8, with a scale for each row of a matrix.

Weights are quantized once, activations at every call. A row of activations is one token of one image, so no scale
depends on other images of the batch.
"""

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor, nn

from pipeline.model.precision import check_dtype, check_installed, no_gpu, no_layers, takes_float8
from pipeline.rendering.devices import device_name

LEAST_CAPABILITY = (8, 9)
LEAST_MAGNITUDE = 1e-12
"""The least value that a scale is computed from. It keeps a row of zeros, as of an absent prompt, from giving NaN."""


def check_float8(dtype: str, device: str) -> None:
    """Raise ``JobFileError`` if torchao is missing, or if dtype or device do not allow float8."""
    check_installed()
    check_dtype(dtype)
    if device == "cpu":
        raise no_gpu("model.precision", f"fp8 on {device_name(device)}")
    capability = torch.cuda.get_device_capability(device)
    if torch.version.cuda is None or capability < LEAST_CAPABILITY:
        major, minor = capability
        raise no_gpu("model.precision", f"fp8 on {device_name(device)}, compute capability {major}.{minor}")


def float8_layers(denoiser: nn.Module) -> Iterator[tuple[str, nn.Linear]]:
    """Yield the name and the module of each layer that computes in float8."""
    for name, module in denoiser.named_modules():
        if isinstance(module, nn.Linear) and takes_float8(name, module.weight.shape):
            yield name, module


def quantize(denoiser: nn.Module) -> None:
    """Quantize a denoiser's layers in place, after LoRAs and projections have been fused.

    Raise ``ModelError`` if the denoiser has no such layer.
    """
    layers = list(float8_layers(denoiser))
    if not layers:
        raise no_layers("model.precision")
    for _, layer in layers:
        layer.weight = nn.Parameter(float8(layer.weight), requires_grad=False)


def float8(weight: Tensor) -> Any:
    """Quantize a weight, (outputs, inputs) in bfloat16, to e4m3 with a scale per output.

    ``linear`` with this weight quantizes its input to e4m3 with a scale per row. The multiplication is always torch's
    own, so that other installed kernels change no image.
    """
    # Imported here, because torchao is an extra and its import takes seconds.
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
