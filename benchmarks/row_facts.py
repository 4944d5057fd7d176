"""Counts what ``rows: auto`` knows of each family, on tensors without memory: nothing is computed or downloaded.

    python -m benchmarks.row_facts

A published architecture is called with few and with more rows. Tokens of a U-Net are the harmonic mean over its
operations, weighted by their FLOPs, of the positions that an operation has per row; those of a transformer are its
patches. Activations are the values alive at the peak in eager mode.
"""

import weakref
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import diffusers
import torch
from torch import Tensor
from torch.nn import functional
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves
from torch.utils.flop_counter import flop_registry

from benchmarks.architectures import ARCHITECTURES
from pipeline.model.family import FAMILIES

_DTYPE = torch.bfloat16
_LAYERS = 2
"""Layers of a transformer are alike, so two are as good as all of them."""
Call = Callable[[int, int], object]
"""Calls a network with as many rows, for images of as many px per side."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Counted:
    """The facts of one call."""

    px_per_token: float
    values_per_px: float
    """Of a row."""


@dataclass(slots=True)
class _Meter:
    rows: int
    flops: float = 0.0
    flops_by_tokens: float = 0.0
    live: int = 0
    peak: int = 0
    storages: set[int] = field(default_factory=set)

    def count(self, flops: float, tokens: float) -> None:
        self.flops += flops
        self.flops_by_tokens += flops / tokens

    def follow(self, made: Tensor) -> None:
        """Count the memory of a tensor until it is freed."""
        storage = made.untyped_storage()
        name, size = storage._cdata, storage.nbytes()
        if name not in self.storages:
            self.storages.add(name)
            self.live += size
            self.peak = max(self.peak, self.live)
            weakref.finalize(storage, self._free, name, size)

    def _free(self, name: int, size: int) -> None:
        self.storages.discard(name)
        self.live -= size


class _Mode(TorchDispatchMode):  # type: ignore[no-untyped-call]
    def __init__(self, meter: _Meter) -> None:
        super().__init__()  # type: ignore[no-untyped-call]
        self._meter = meter

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **kwargs or {})
        tensors = [leaf for leaf in tree_leaves(made) if isinstance(leaf, Tensor)]
        for tensor in tensors:
            self._meter.follow(tensor)
        if func._overloadpacket in flop_registry:
            flops = flop_registry[func._overloadpacket](*args, **kwargs or {}, out_val=made)
            self._meter.count(flops, _positions(func, tensors[0].shape) / self._meter.rows)
        return made


def _positions(func: Any, shape: torch.Size) -> int:
    """Return how many positions an operation has in all rows, from the shape of what it makes."""
    convolution = func._overloadpacket is torch.ops.aten.convolution
    return shape.numel() // (shape[1] if convolution else shape[-1])


@contextmanager
def _fused_attention(meter: _Meter) -> Iterator[None]:
    """Attention makes its result alone, as on a GPU; on these tensors torch would take the path with all products."""
    fused = functional.scaled_dot_product_attention

    def attend(query: Tensor, key: Tensor, value: Tensor, *_: Any, **__: Any) -> Tensor:
        meter.count(4 * query.numel() * key.shape[-2], query.shape[-2])
        return query.new_empty(*query.shape[:-1], value.shape[-1])

    functional.scaled_dot_product_attention = attend
    try:
        yield
    finally:
        functional.scaled_dot_product_attention = fused


def _metered(call: Call, rows: int, side_px: int) -> _Meter:
    meter = _Meter(rows)
    with torch.no_grad(), _fused_attention(meter), _Mode(meter):
        call(rows, side_px)
    return meter


def counted(call: Call, side_px: int) -> Counted:
    """Count one architecture; memory that does not depend on the rows cancels out."""
    few, many = (_metered(call, rows, side_px) for rows in (2, 6))
    values = (many.peak - few.peak) / 4 / _DTYPE.itemsize
    tokens = many.flops / many.flops_by_tokens
    return Counted(px_per_token=side_px**2 / tokens, values_per_px=values / side_px**2)


def _made(class_name: str, **config: Any) -> Any:
    before = torch.get_default_dtype()
    torch.set_default_dtype(_DTYPE)
    try:
        with torch.device("meta"):
            return getattr(diffusers, class_name)(**config).eval()
    finally:
        torch.set_default_dtype(before)


def _empty(*shape: int, dtype: torch.dtype = _DTYPE) -> Tensor:
    return torch.empty(shape, device="meta", dtype=dtype)


def unet(architecture: str) -> Call:
    """Return the call of a U-Net of ``ARCHITECTURES``."""
    config = dict(ARCHITECTURES[architecture].unet)
    network = _made("UNet2DConditionModel", **config)

    def call(rows: int, side_px: int) -> object:
        latents, text = _empty(rows, 4, side_px // 8, side_px // 8), _empty(rows, 77, config["cross_attention_dim"])
        further = {"text_embeds": _empty(rows, 1280), "time_ids": _empty(rows, 6)}
        return network(latents, _empty(rows), text, added_cond_kwargs=further)

    return call


def stable_diffusion_3() -> Call:
    """Return the call of Stable Diffusion 3.5 large."""
    network = _made(
        "SD3Transformer2DModel", sample_size=128, patch_size=2, in_channels=16, out_channels=16, num_layers=_LAYERS,
        attention_head_dim=64, num_attention_heads=38, joint_attention_dim=4096, caption_projection_dim=2432,
        pooled_projection_dim=2048, pos_embed_max_size=192, qk_norm="rms_norm",
    )  # fmt: skip
    return lambda rows, side_px: network(
        _empty(rows, 16, side_px // 8, side_px // 8), _empty(rows, 333, 4096), _empty(rows, 2048), _empty(rows)
    )


def flux() -> Call:
    """Return the call of Flux dev."""
    network = _made("FluxTransformer2DModel", num_layers=_LAYERS, num_single_layers=_LAYERS, guidance_embeds=True)

    def call(rows: int, side_px: int) -> object:
        tokens = (side_px // 16) ** 2
        return network(
            _empty(rows, tokens, 64), _empty(rows, 512, 4096), _empty(rows, 768), _empty(rows),
            _empty(tokens, 3), _empty(512, 3), _empty(rows, dtype=torch.float32),
        )  # fmt: skip

    return call


def pixart() -> Call:
    """Return the call of PixArt sigma."""
    network = _made(
        "PixArtTransformer2DModel", num_attention_heads=16, attention_head_dim=72, in_channels=4, out_channels=8,
        num_layers=_LAYERS, cross_attention_dim=1152, sample_size=128, patch_size=2, caption_channels=4096,
        use_additional_conditions=False,
    )  # fmt: skip
    return lambda rows, side_px: network(
        _empty(rows, 4, side_px // 8, side_px // 8), _empty(rows, 300, 4096), timestep=_empty(rows),
        encoder_attention_mask=_empty(rows, 300), added_cond_kwargs={"resolution": None, "aspect_ratio": None},
    )  # fmt: skip


DENOISERS: Mapping[str, tuple[Callable[[], Call], int]] = {
    "StableDiffusionPipeline": (lambda: unet("sd15"), 512),
    "StableDiffusionXLPipeline": (lambda: unet("sdxl"), 1024),
    "StableDiffusion3Pipeline": (stable_diffusion_3, 1024),
    "FluxPipeline": (flux, 512),
    "PixArtSigmaPipeline": (pixart, 1024),
}
"""By pipeline class: what makes the call, and the px per side to count at; text tokens weigh most at a small size."""


def main() -> None:
    """Print a line for each family."""
    print(
        f"{'architecture':<28}{'px':>6}{'px/token':>10}{'of facts':>10}{'values/px':>11}{'of facts':>10}{'GB/row':>8}"
    )
    for name, (make, side_px) in DENOISERS.items():
        found, family = counted(make(), side_px), FAMILIES[name]
        tokens = f"{found.px_per_token:.1f}" if family.patch == 1 else "patches"
        print(f"{name:<28}{side_px:>6}{tokens:>10}{family.px_per_token:>10}{found.values_per_px:>11.1f}"
              f"{family.row_values_per_px:>10}{found.values_per_px * side_px**2 * 2e-9:>8.3f}")  # fmt: skip


if __name__ == "__main__":
    main()
