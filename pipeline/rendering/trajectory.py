"""The steps of a scheduler as a table of numbers.

Between two evaluations of the network every common scheduler is linear in the latent, the tensors it keeps, the
prediction and the noise. The numbers depend on its configuration, the step count and the size alone. So nothing is
derived by hand: diffusers' own ``step`` runs once on basis vectors, and what comes out are the numbers.

What is not linear (``thresholding``, ``clip_sample``) is found by running the scheduler on random numbers beside its
table. Each image then steps a scheduler of its own.
"""

from collections.abc import Callable
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.rendering.stepping import Place, Stepper

STATES = 7
"""Tensors that are carried from step to step, the latent included. It is the same number for every scheduler, so that
an image does not depend on its neighbours' schedulers. Solvers up to order 4 keep at most six beside the latent."""

_LATENT, _PREDICTION, _NOISE = 0, STATES, STATES + 1
_SHAPE = torch.Size((1, STATES + 2, 1, 1))
_TESTED = torch.Size((1, 1, 8, 8))
_LOUD = 30.0
"""Standard deviation of the latents and predictions on which a table is compared with its scheduler.

It is large enough for any clipping, of what comes from either."""
_TOLERANCE = 1e-3
"""Largest difference, relative to the largest number."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Trajectory:
    """The steps of one scheduler, shared by all images with the same scheduler, step count, size and first step."""

    timesteps: NDArray[np.float32]
    """(steps,)"""
    matrices: NDArray[np.float32]
    """(steps, 1 + STATES, STATES + 2): from (latent, kept…, prediction, noise) before a step to (the network's next
    input, latent, kept…) after it. Zeros for a scheduler that is not linear."""
    draws: NDArray[np.bool_]
    """(steps,): whether the step takes noise."""
    draws_float32: bool
    """Noise is drawn in float32 even where the network works in half precision."""
    first_input: float
    """Factor of the latent in the network's first input."""
    initial: float
    """Factor of unit noise in the first latent of an image that starts from noise."""
    clean: float
    """Factor of a clean latent in the first latent of an image that starts from an image."""
    noise: float
    """Factor of unit noise beside it."""
    alone: Callable[..., Stepper] | None = None
    """Makes the stepper of one image, ``generator=`` of which it draws, where the scheduler is not linear."""


def build_trajectory(scheduler: object, *, first: int = 0, scaled_input: bool = True, output: int = 0) -> Trajectory:
    """Run a set scheduler that was never stepped on basis vectors, from its inference step ``first`` on.

    A solver that starts in the middle has no history there. ``scaled_input``: the pipeline scales the first noise and
    the network's input as the scheduler says. ``output``: which of the outputs of ``step`` the pipeline goes on with,
    the first where there are fewer.
    """
    begin = partial(Stepper, scheduler, first=first, scaled_input=scaled_input, output=output)
    begun = begin()
    count = len(begun.timesteps)
    table = _table(begin())
    linear = table is not None and _reproduces(begin(), table[0])
    if table is None or not linear:
        table = np.zeros((count, 1 + STATES, STATES + 2), np.float32), np.zeros(count, np.bool_)
    matrices, draws = table
    clean, noise = begun.factors_of_noised()
    return Trajectory(
        timesteps=np.array([float(timestep) for timestep in begun.timesteps], np.float32),
        matrices=matrices,
        draws=draws,
        draws_float32=_draws_float32(begin()),
        first_input=begun.input_scale(),
        initial=begun.initial_scale,
        clean=clean,
        noise=noise,
        alone=None if linear else begin,
    )


def _table(stepper: Stepper) -> tuple[NDArray[np.float32], NDArray[np.bool_]] | None:
    """Return the matrices and draws of all steps; None if the scheduler keeps or draws more than there is room for."""
    count = len(stepper.timesteps)
    matrices = np.zeros((count, 1 + STATES, STATES + 2), np.float32)
    draws = np.zeros(count, np.bool_)
    planes: dict[Place, int] = {}
    """The plane of each tensor that the scheduler keeps."""
    for number in range(count):
        for place, plane in planes.items():
            stepper.put(place, _basis(plane))
        scale = stepper.input_scale()
        if number:
            # The input of this step is a multiple of the latent that the step before gave.
            matrices[number - 1, 0] = scale * matrices[number - 1, 1 + _LATENT]
        drawn: list[torch.dtype] = []
        latent = stepper.step(_basis(_PREDICTION), _basis(_LATENT), noise=partial(_draw, drawn, _basis(_NOISE)))
        if len(drawn) > 1:
            return None
        draws[number] = bool(drawn)
        kept = stepper.kept(_SHAPE)
        planes = {place: plane for place, plane in planes.items() if place in kept}
        for place in kept:
            free = [plane for plane in range(1, STATES) if plane not in planes.values()]
            if place not in planes:
                if not free:
                    return None
                planes[place] = free[0]
        matrices[number, 1 + _LATENT] = latent.flatten()
        for place, plane in planes.items():
            matrices[number, 1 + plane] = kept[place].flatten()
    return matrices, draws


def _basis(plane: int) -> Tensor:
    vector = torch.zeros(_SHAPE)
    vector[0, plane] = 1
    return vector


def _draw(drawn: list[torch.dtype], noise: Tensor, dtype: torch.dtype) -> Tensor:
    """Note that noise of a dtype was drawn."""
    drawn.append(dtype)
    return noise.to(dtype)


def _reproduces(stepper: Stepper, matrices: NDArray[np.float32]) -> bool:
    """Return whether a table does what its scheduler does with random latents, predictions and noise."""
    generator = torch.Generator().manual_seed(0)
    latent = torch.randn(_TESTED, generator=generator) * _LOUD
    planes = torch.zeros(STATES, _TESTED.numel())
    planes[_LATENT] = latent.flatten()
    for matrix in torch.from_numpy(matrices):
        prediction, drawn = (torch.randn(_TESTED, generator=generator) * scale for scale in (_LOUD, 1.0))
        stepper.input_scale()
        latent = stepper.step(prediction, latent, noise=partial(_draw, [], drawn))
        planes = (matrix @ torch.cat([planes, prediction.flatten()[None], drawn.flatten()[None]]))[1:]
        apart = (planes[_LATENT] - latent.flatten()).abs().max()
        if not apart <= _TOLERANCE * latent.abs().max():
            return False
    return True


def _draws_float32(stepper: Stepper) -> bool:
    """Return whether the scheduler draws its noise in float32 for a network in half precision."""
    drawn: list[torch.dtype] = []
    zeros = torch.zeros(_TESTED, dtype=torch.bfloat16)
    for _ in stepper.timesteps:
        stepper.input_scale()
        stepper.step(zeros, zeros, noise=partial(_draw, drawn, zeros))
        if drawn:
            return drawn[0] == torch.float32
    return False
