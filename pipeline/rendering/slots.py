"""The place of one task in the denoising batch, from its first noise to its last latent."""

import inspect
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from pipeline.rendering.backlog import Pending
from pipeline.rendering.prompts import Conditioning
from pipeline.rendering.stable_diffusion import StableDiffusion


class Slot:
    """One task with all the state that its picture depends on: scheduler, generator, latent.

    Before each call of the denoiser ``model_input`` and ``timestep`` say what to feed it; ``advance`` takes what
    it predicted. When ``done``, ``latent`` is ready to be decoded.
    """

    def __init__(
        self, adapter: StableDiffusion, pending: Pending, conditioning: Conditioning, pristine_scheduler: Any
    ) -> None:
        self.task, self.group, self.conditioning = pending.task, pending.group, conditioning
        self.rows = len(conditioning.rows)
        self.render_s = 0.0
        self._adapter = adapter
        # A shallow copy would share the histories that multistep schedulers keep in lists.
        self._scheduler = deepcopy(pristine_scheduler)
        generator = torch.Generator("cpu").manual_seed(self.task.recipe.seed)
        takes_generator = "generator" in inspect.signature(self._scheduler.step).parameters
        self._step_options = {"generator": generator} if takes_generator else {}
        self._taken = 0
        self.latent = adapter.start(self.task.recipe, generator, self._scheduler)
        self._prepare()

    @property
    def done(self) -> bool:
        return self._taken == len(self._scheduler.timesteps)

    def advance(self, predicted: Tensor) -> None:
        """Take the denoiser's output for this slot's rows, (rows, 4, h, w), and step the scheduler once."""
        combined = self._adapter.combine(predicted, self.task.recipe.guidance_scale)
        timestep = self._scheduler.timesteps[self._taken]
        self.latent = self._scheduler.step(combined, timestep, self.latent, return_dict=False, **self._step_options)[0]
        self._taken += 1
        if not self.done:
            self._prepare()

    def _prepare(self) -> None:
        timestep = self._scheduler.timesteps[self._taken]
        self.model_input, self.timestep = self._adapter.inputs(self.latent, self._scheduler, timestep)
