"""A diffusers scheduler, stepped for one image.

Tables of numbers are built with it, and schedulers that are not linear run with it.
"""

import sys
import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from copy import deepcopy
from inspect import signature
from typing import Any

import torch
from torch import Tensor

Place = tuple[str, int | None]
"""The place of a tensor that a scheduler keeps: an attribute, or an item of an attribute that is a list."""

_DRAWING = threading.RLock()
"""The lock of a scheduler's step, during which ``randn_tensor`` of its module may be replaced."""


class Stepper:
    """A copy of a scheduler that has its timesteps set, with the generator of one image."""

    def __init__(
        self,
        scheduler: Any,
        *,
        first: int,
        scaled_input: bool,
        output: int,
        generator: torch.Generator | None = None,
    ) -> None:
        """``scheduler`` has not been stepped. The further arguments are those of ``build_trajectory``."""
        self._scheduler, self._scaled_input, self._output = deepcopy(scheduler), scaled_input, output
        begin = first * getattr(scheduler, "order", 1)
        if first and hasattr(scheduler, "set_begin_index"):
            self._scheduler.set_begin_index(begin)
        self.timesteps: list[Tensor] = list(scheduler.timesteps[begin:])
        self._taken = 0
        takes_generator = "generator" in signature(scheduler.step).parameters
        self._options = {"generator": generator} if takes_generator else {}

    @property
    def initial_scale(self) -> float:
        """The factor of unit noise in the first latent."""
        return float(self._scheduler.init_noise_sigma) if self._scaled_input else 1.0

    def input_scale(self) -> float:
        """Return the factor of the latent in the network's input at this step."""
        if not self._scaled_input:
            return 1.0
        timestep = self.timesteps[self._taken]
        return float(self._scheduler.scale_model_input(torch.ones(1, 1, 1, 1), timestep))

    def step(
        self, prediction: Tensor, latent: Tensor, *, noise: Callable[[torch.dtype], Tensor] | None = None
    ) -> Tensor:
        """Return the next latent. It and the arguments are (1, channels, h, w).

        ``noise`` returns the noise of a dtype in place of the scheduler's own.
        """
        timestep = self.timesteps[self._taken]
        self._taken += 1
        with _DRAWING, _drawing(sys.modules[type(self._scheduler).__module__], noise):
            outputs = self._scheduler.step(prediction, timestep, latent, return_dict=False, **self._options)
        following: Tensor = outputs[self._output if self._output < len(outputs) else 0]
        return following

    def kept(self, shape: torch.Size) -> Mapping[Place, Tensor]:
        """Return the tensors of this shape that the scheduler keeps for its next steps."""
        found: dict[Place, Tensor] = {}
        for name, value in vars(self._scheduler).items():
            items = enumerate(value) if isinstance(value, list | tuple) else [(None, value)]
            found |= {(name, at): item for at, item in items if torch.is_tensor(item) and item.shape == shape}
        return found

    def put(self, place: Place, tensor: Tensor) -> None:
        """Replace a tensor that the scheduler keeps."""
        name, at = place
        if at is None:
            setattr(self._scheduler, name, tensor)
        else:
            getattr(self._scheduler, name)[at] = tensor

    def factors_of_noised(self) -> tuple[float, float]:
        """Return the factors of a clean latent and of unit noise in the latent of the first step."""
        one, zero = torch.ones(1, 1, 1, 1), torch.zeros(1, 1, 1, 1)
        return self._noised(one, zero), self._noised(zero, one)

    def _noised(self, clean: Tensor, noise: Tensor) -> float:
        scheduler, timestep = deepcopy(self._scheduler), self.timesteps[:1]
        if hasattr(scheduler, "scale_noise"):
            return float(scheduler.scale_noise(clean, torch.stack(timestep), noise))
        return float(scheduler.add_noise(clean, noise, torch.stack(timestep)))


@contextmanager
def _drawing(module: Any, noise: Callable[[torch.dtype], Tensor] | None) -> Iterator[None]:
    """Let schedulers of a module take their noise from a function, in this thread alone."""
    had, here = getattr(module, "randn_tensor", None), threading.get_ident()
    if noise is None or had is None:
        yield
        return

    def drawn(*args: Any, **options: Any) -> Tensor:
        """Return the noise. Other threads, such as a library user's own pipelines, draw as ever."""
        result: Tensor = noise(options["dtype"]) if threading.get_ident() == here else had(*args, **options)
        return result

    module.randn_tensor = drawn
    try:
        yield
    finally:
        module.randn_tensor = had
