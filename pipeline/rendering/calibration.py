"""How fast the denoiser is and what memory it takes, by rows of its batch, on this device."""

import time
from collections.abc import Iterator
from dataclasses import dataclass

import torch

from pipeline.recipe import Recipe
from pipeline.rendering.devices import out_of_memory
from pipeline.rendering.loading import LoadedModel
from pipeline.rendering.prompts import Prompts

_WARM_UP_CALLS = 2
_LEAST_CALLS = 3
GOOD_ENOUGH = 0.95
"""Of the best rate: fewer rows start sooner, drain faster and leave memory."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Measured:
    """One batch shape."""

    rows: int
    call_s: float
    """Seconds per call of the denoiser, the median."""
    peak_bytes: int | None
    """Of GPU memory, weights included; None on a CPU."""

    @property
    def evaluations_per_s(self) -> float:
        return self.rows / self.call_s


def measure(model: LoadedModel, rows: int, width: int, height: int, seconds: float) -> Measured:
    """Call the denoiser on full batches of pictures (px) for about so many seconds.

    Raises what ``out_of_memory`` tells when they do not fit.
    """
    adapter = model.adapter
    prompts = Prompts(adapter)
    recipe = Recipe(
        prompt="calibration", negative_prompt=None, seed=0,
        guidance_scale=adapter.family.effective_guidance(adapter.family.guidance_scale),
        num_inference_steps=1, scheduler=adapter.family.schedulers()[0], width=width, height=height,
    )  # fmt: skip
    texts = adapter.texts(recipe)
    with torch.no_grad():
        own = {**prompts.conditioning(texts, ()).rows, **adapter.extras(recipe)}
        conditioning = {name: tensor[-1:].expand(rows, *tensor.shape[1:]).contiguous() for name, tensor in own.items()}
        factor = adapter.latent_factor
        shape = (rows, adapter.latent_channels, height // factor, width // factor)
        latents = torch.randn(shape, dtype=adapter.dtype, device=adapter.device)
        timesteps = torch.full((rows,), 500.0, device=adapter.device)
        if model.device != "cpu":
            torch.cuda.reset_peak_memory_stats()
        times: list[float] = []
        began = time.perf_counter()
        while len(times) < _WARM_UP_CALLS + _LEAST_CALLS or time.perf_counter() - began < seconds:
            start = time.perf_counter()
            adapter.predict(latents, timesteps, conditioning)
            if model.device != "cpu":
                torch.cuda.synchronize()
            times.append(time.perf_counter() - start)
    steady = sorted(times[_WARM_UP_CALLS:])
    peak = torch.cuda.max_memory_allocated() if model.device != "cpu" else None
    return Measured(rows=rows, call_s=steady[len(steady) // 2], peak_bytes=peak)


def calibrate(model: LoadedModel, width: int, height: int, seconds: float, most_rows: int = 128) -> Iterator[Measured]:
    """Powers of two from 2 on, until memory ends or twice the rows gain less than 2 %."""
    before: Measured | None = None
    rows = 2
    while rows <= most_rows:
        try:
            now = measure(model, rows, width, height, seconds)
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            return
        yield now
        if before is not None and now.evaluations_per_s < 1.02 * before.evaluations_per_s and rows >= 16:
            return
        before, rows = now, rows * 2


def best_rows(measured: list[Measured]) -> int:
    """The fewest rows that come within ``GOOD_ENOUGH`` of the best rate."""
    best = max(one.evaluations_per_s for one in measured)
    return min(one.rows for one in measured if one.evaluations_per_s >= GOOD_ENOUGH * best)
