"""Sweep points of one prompt row: the axes multiplied out, made effective, each picture once."""

from dataclasses import dataclass
from functools import lru_cache
from hashlib import blake2b
from itertools import product

import numpy as np
from numpy.typing import NDArray

from pipeline.identity import ID_BYTES, pack_point
from pipeline.model.family import Family
from pipeline.schedulers import evaluations


@dataclass(frozen=True, slots=True, kw_only=True)
class Axes:
    """A sweep with every default filled in; a prompt row may replace axes."""

    seeds: tuple[int, ...]
    guidance_scales: tuple[float, ...]
    num_inference_steps: tuple[int, ...]
    schedulers: tuple[str, ...]
    sizes: tuple[tuple[int, int], ...]
    """(width, height) in px"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """Distinct effective points in declared order, as columns of one length."""

    seed: NDArray[np.uint64]
    guidance_scale: NDArray[np.float64]
    """Effective; NaN where the model takes none."""
    num_inference_steps: NDArray[np.uint32]
    scheduler: tuple[str, ...]
    width: NDArray[np.uint32]
    height: NDArray[np.uint32]
    uses_negative_prompt: NDArray[np.bool_]
    evaluations: NDArray[np.uint32]
    """Rows through the denoiser for the whole image."""
    packed: tuple[bytes, ...]
    """As they enter the task id."""
    digest: bytes
    """Equal exactly when the packed points are."""

    def __len__(self) -> int:
        return len(self.packed)


@lru_cache(maxsize=4096)
def points(axes: Axes, family: Family) -> Points:
    """Multiply the axes out, the size turning slowest and the step count fastest.

    Guidance scales that amount to the same for the family are one point.
    """
    guidances = tuple(dict.fromkeys(family.effective_guidance(scale) for scale in axes.guidance_scales))
    grid = list(
        product(
            dict.fromkeys(axes.sizes),
            dict.fromkeys(axes.schedulers),
            dict.fromkeys(axes.seeds),
            guidances,
            dict.fromkeys(axes.num_inference_steps),
        )
    )
    packed = tuple(
        pack_point(
            seed=seed,
            guidance_scale=guidance,
            num_inference_steps=steps,
            scheduler=scheduler,
            width=size[0],
            height=size[1],
        )
        for size, scheduler, seed, guidance, steps in grid
    )
    calls = {(s, n): evaluations(s, n) for s in axes.schedulers for n in axes.num_inference_steps}
    return Points(
        seed=np.array([seed for _, _, seed, _, _ in grid], np.uint64),
        guidance_scale=np.array([np.nan if g is None else g for _, _, _, g, _ in grid], np.float64),
        num_inference_steps=np.array([steps for *_, steps in grid], np.uint32),
        scheduler=tuple(scheduler for _, scheduler, *_ in grid),
        width=np.array([size[0] for size, *_ in grid], np.uint32),
        height=np.array([size[1] for size, *_ in grid], np.uint32),
        uses_negative_prompt=np.array([family.uses_negative_prompt(g) for *_, g, _ in grid], np.bool_),
        evaluations=np.array([family.rows(g) * calls[s, n] for _, s, _, g, n in grid], np.uint32),
        packed=packed,
        digest=blake2b(b"".join(packed), digest_size=ID_BYTES).digest(),
    )
