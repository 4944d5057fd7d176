"""The place of one task in the denoising batch, from its first noise to its last latent."""

import inspect
from copy import deepcopy
from typing import Any

import torch
from torch import Tensor

from pipeline.rendering.adapter import Adapter, Rows
from pipeline.rendering.backlog import Pending
from pipeline.rendering.prompts import Conditioning


class Slot:
    """One task with all the state that its picture depends on: scheduler, generator, latent.

    Before each call of the denoiser ``model_input`` and ``timestep`` say what to feed it; ``advance`` takes what
    it predicted. When ``done``, ``latent`` is ready to be decoded.
    """

    def __init__(
        self, adapter: Adapter, pending: Pending, conditioning: Conditioning, pristine_scheduler: Any, batch_rows: int
    ) -> None:
        """``batch_rows``: of the whole batch, as the picture's metadata tells."""
        self._made_of = adapter, pending, conditioning, pristine_scheduler
        self.batch_rows = batch_rows
        self.task, self.group, self.prompt_truncated = pending.task, pending.group, conditioning.prompt_truncated
        self.rows = adapter.rows(self.task.recipe)
        extras = adapter.extras(self.task.recipe)
        self.conditioning: Rows = {
            **conditioning.rows,
            **{name: tensor.expand(self.rows, *tensor.shape[1:]) for name, tensor in extras.items()},
        }
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

    def restarted(self, batch_rows: int) -> "Slot":
        """The same task from its first noise on, in a batch of another number of rows."""
        slot = Slot(*self._made_of, batch_rows)
        slot.render_s = self.render_s
        return slot

    @property
    def done(self) -> bool:
        return self._taken == len(self._scheduler.timesteps)

    def advance(self, predicted: Tensor) -> None:
        """Take the denoiser's output for this slot's rows, (rows, 4, h, w), and step the scheduler once."""
        combined = self._adapter.combine(predicted, self.task.recipe.guidance_scale)
        timestep = self._scheduler.timesteps[self._taken]
        output = self._scheduler.step(combined, timestep, self.latent, return_dict=False, **self._step_options)
        self.latent = self._adapter.stepped(output, self.task.recipe.num_inference_steps)
        self._taken += 1
        if not self.done:
            self._prepare()

    def _prepare(self) -> None:
        timestep = self._scheduler.timesteps[self._taken]
        self.model_input, self.timestep = self._adapter.inputs(self.latent, self._scheduler, timestep)
