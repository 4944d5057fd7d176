"""Sweep points: axes multiplied out, made effective, each picture once."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from pipeline.planning.grids import Grids
from pipeline.schedulers import evaluations


@dataclass(frozen=True, slots=True, kw_only=True)
class Points:
    """The distinct effective points of some grids, one grid after the other, as columns of one length."""

    seed: NDArray[np.uint64]
    guidance_scale: NDArray[np.float64]
    """Effective; NaN where the model takes none."""
    num_inference_steps: NDArray[np.uint32]
    scheduler: NDArray[np.int64]
    """Which of ``scheduler_names``."""
    scheduler_names: Sequence[str]
    width: NDArray[np.uint32]
    height: NDArray[np.uint32]
    uses_negative_prompt: NDArray[np.bool_]
    evaluations: NDArray[np.uint32]
    """Rows through the denoiser for the whole image."""

    def __len__(self) -> int:
        return len(self.seed)

    def pixels(self) -> NDArray[np.int64]:
        """Width times height."""
        return self.width.astype(np.int64) * self.height


def points(grids: Grids, chosen: NDArray[np.int64]) -> Points:
    """Multiply out the chosen grids, in each the size turning slowest and the step count fastest."""
    counts = grids.counts()[chosen]
    grid = np.repeat(chosen, counts)
    rest = np.arange(len(grid)) - np.repeat(np.cumsum(counts) - counts, counts)
    at = []
    for axis in (grids.num_inference_steps, grids.guidance_scales, grids.seeds, grids.schedulers, grids.sizes):
        rest, index = np.divmod(rest, axis.length[grid])
        at.append(axis.start[grid] + index)
    steps, guidance, seed, scheduler, size = at
    calls = _calls(grids, scheduler, steps)
    return Points(
        seed=grids.seeds.values[seed],
        guidance_scale=grids.guidance_scales.values[guidance],
        num_inference_steps=grids.num_inference_steps.values[steps],
        scheduler=scheduler,
        scheduler_names=grids.schedulers.values.tolist(),
        width=grids.sizes.values[size, 0],
        height=grids.sizes.values[size, 1],
        uses_negative_prompt=grids.uses_negative_prompt[guidance],
        evaluations=(calls * grids.rows[guidance]).astype(np.uint32),
    )


def _calls(grids: Grids, scheduler: NDArray[np.int64], steps: NDArray[np.int64]) -> NDArray[np.int64]:
    """How often the denoiser is called, for pairs of places among the schedulers and the step counts."""
    counts = grids.num_inference_steps.values
    pairs, which = np.unique(scheduler * len(counts) + steps, return_inverse=True)
    names = grids.schedulers.values
    calls = [evaluations(names[pair // len(counts)], int(counts[pair % len(counts)])) for pair in pairs.tolist()]
    return np.array(calls, np.int64)[which]
