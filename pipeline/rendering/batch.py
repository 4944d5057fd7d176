"""The batch of the denoiser: the state of all its slots in one tensor, and one step for all of them at once.

``planes`` is (planes, slots, channels * height * width), float32. Plane ``INPUT`` is the next input of the network and
``LATENT`` the latent. The tensors that multistep schedulers keep follow, then ``PREDICTION`` and ``NOISE``. One step of
any mix of schedulers is the product of each slot's matrix (``trajectory.py``) with its planes.

The number of a slot is the row of its conditional prompt. A guided slot has a second row, for its unconditional prompt.
"""

from collections.abc import Hashable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.rendering.adapter import Adapter
from pipeline.rendering.backlog import Pending
from pipeline.rendering.preparation import Prepared
from pipeline.rendering.row_time import Call
from pipeline.rendering.stepping import Stepper
from pipeline.rendering.trajectory import STATES

INPUT, LATENT = 0, 1
PREDICTION = LATENT + STATES
NOISE = PREDICTION + 1
PLANES = NOISE + 1
_AFTER, _BEFORE = 1 + STATES, STATES + 2
"""The number of planes that a step writes, from the first on, and of planes that it reads, from the second on."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Slot:
    """A task in the batch."""

    pending: Pending
    prepared: Prepared
    batch_rows: int
    """The number of rows of the whole batch, for the image's metadata."""
    before: Call
    """The last call of the denoiser before the task entered the batch."""

    @property
    def rows(self) -> int:
        """The number of rows that the task takes: 2 if it is guided, else 1."""
        return len(next(iter(self.prepared.rows.values())))


class Batch:
    """Slots of one batch key. ``admit``, ``advance`` and ``take_finished`` change them."""

    def __init__(self, adapter: Adapter, rows: int, latent_shape: torch.Size, *, key: Hashable) -> None:
        """``latent_shape`` is (channels, height, width) of every latent, in latent pixels."""
        self.rows, self.key = rows, key
        self._adapter, self._shape = adapter, latent_shape
        size = latent_shape.numel()
        self._planes, self._next = (
            torch.zeros(PLANES, rows, size, dtype=torch.float32, device=adapter.device) for _ in range(2)
        )
        self._conditioning: dict[str, Tensor] = {}
        self._slots: dict[int, Slot] = {}
        self._free = list(range(rows))
        self._steppers: dict[int, Stepper] = {}
        """The steppers of the slots whose schedulers are not linear."""
        self._every_row = np.arange(rows)
        self._owner, self._unconditional = self._every_row.copy(), self._every_row.copy()
        """The slot of each row, and the row of each slot's unconditional prompt, its own if unguided; both (rows,)."""
        self._guidance = np.ones(rows, np.float32)
        self._products: Tensor | None = None
        """(slots, planes written, planes read): the matrices of the step that ``predict`` has begun."""
        self._sent: tuple[Tensor, Tensor, Tensor] | None = None
        """The three arrays above on the device; None after a change of slots."""
        self._step = np.zeros(rows, np.int64)
        self._steps = np.zeros(rows, np.int64)
        """Steps taken and steps in all, each (slots,); 0 for a free slot."""
        self._matrices = np.zeros((rows, 1, _AFTER * _BEFORE), np.float32)
        self._timesteps = np.zeros((rows, 1), np.float32)
        self._draws = np.zeros((rows, 1), np.bool_)

    @property
    def slots(self) -> Sequence[Slot]:
        """The tasks in the batch, in the order of their admission."""
        return list(self._slots.values())

    @property
    def used_rows(self) -> int:
        """The number of rows that tasks have."""
        return self.rows - len(self._free)

    @property
    def free_rows(self) -> int:
        """The number of rows without a task."""
        return len(self._free)

    def admit(self, slot: Slot) -> None:
        """Give a task its rows. Enough of them must be free."""
        prepared = slot.prepared
        self._free.sort()
        rows, self._free = self._free[: slot.rows], self._free[slot.rows :]
        name = rows[-1]
        self._slots[name] = slot
        self._owner[rows] = name
        self._unconditional[name] = rows[0]
        self._guidance[name] = prepared.guidance
        self._sent = None
        self._write_numbers(name, prepared)
        self._planes[:, name].zero_()
        self._planes[LATENT, name] = prepared.latent.flatten()
        torch.mul(self._planes[LATENT, name], prepared.trajectory.first_input, out=self._planes[INPUT, name])
        for key, tensor in prepared.rows.items():
            if key not in self._conditioning:
                self._conditioning[key] = tensor.new_zeros(self.rows, *tensor.shape[1:])
            for row, own in zip(rows, tensor, strict=True):
                self._conditioning[key][row] = own

    def predict(self) -> Tensor:
        """Call the denoiser once for all rows; return predictions, (rows, channels, height, width), for ``advance``."""
        owner, _, _ = self._on_device()
        numbers = self._matrices[self._every_row, self._step]
        timesteps = self._timesteps[self._owner, self._step[self._owner]]
        sent = self._adapter.sent(torch.from_numpy(np.concatenate([numbers.ravel(), timesteps])))
        self._products = sent[: numbers.size].view(self.rows, _AFTER, _BEFORE)
        latents = self._planes[INPUT].index_select(0, owner).to(self._adapter.dtype)
        return self._adapter.predict(latents.view(-1, *self._shape), sent[numbers.size :], self._conditioning)

    def advance(self, predicted: Tensor) -> None:
        """Take one step of every slot's scheduler with the predictions of ``predict``."""
        _, unconditional, guidance = self._on_device()
        conditional = predicted.flatten(1).float()
        planes, after = self._planes, self._next
        self._adapter.combine(conditional.index_select(0, unconditional), conditional, guidance, out=planes[PREDICTION])
        self._draw_noise()
        assert self._products is not None
        torch.bmm(self._products, planes[1:].transpose(0, 1), out=after[:_AFTER].transpose(0, 1))
        for name, stepper in self._steppers.items():
            self._advance_alone(name, stepper)
        self._planes, self._next = after, planes
        self._step += self._steps > 0

    def take_finished(self) -> list[tuple[Slot, Tensor]]:
        """Remove and return the finished slots, each with its latent, (channels, height, width)."""
        names = [name for name in self._slots if self._step[name] == self._steps[name]]
        if not names:
            return []
        latents = torch.stack([self._planes[LATENT, name] for name in names]).view(-1, *self._shape)
        return [(self._leave(name), latent) for name, latent in zip(names, latents, strict=True)]

    def _write_numbers(self, name: int, prepared: Prepared) -> None:
        trajectory = prepared.trajectory
        steps = len(trajectory.timesteps)
        self._step[name], self._steps[name] = 0, steps
        # There is one entry more than steps, so that a free slot and a finished one read zeros.
        self._matrices, self._timesteps, self._draws = (
            _with_columns(numbers, steps + 1) for numbers in (self._matrices, self._timesteps, self._draws)
        )
        self._matrices[name, :steps] = trajectory.matrices.reshape(steps, -1)
        self._draws[name, :steps] = trajectory.draws
        if trajectory.alone is not None:
            self._steppers[name] = trajectory.alone(generator=prepared.generator)
        self._timesteps[name, :steps] = trajectory.timesteps

    def _on_device(self) -> tuple[Tensor, Tensor, Tensor]:
        """Return three tensors on the device.

        They are the slot of each row, (rows,), the row of each slot's unconditional prompt, (slots,), and the guidance,
        (slots, 1).
        """
        if self._sent is None:
            owner, unconditional, guidance = (
                self._adapter.sent(torch.from_numpy(array.copy()))
                for array in (self._owner, self._unconditional, self._guidance)
            )
            self._sent = owner, unconditional, guidance[:, None]
        return self._sent

    def _draw_noise(self) -> None:
        """Draw the noise of this step, each slot from its own generator, while the device runs the network."""
        drawing = np.flatnonzero(self._draws[self._every_row, self._step])
        if not len(drawing):
            return
        pinned = self._adapter.device.type == "cuda"
        noise = torch.zeros(self._planes[NOISE].shape, dtype=torch.float32, pin_memory=pinned)
        for name in drawing.tolist():
            prepared = self._slots[name].prepared
            dtype = torch.float32 if prepared.trajectory.draws_float32 else self._adapter.dtype
            drawn = torch.randn(self._shape, generator=prepared.generator, dtype=dtype)
            noise[name] = drawn.flatten()
        self._planes[NOISE].copy_(noise, non_blocking=True)

    def _advance_alone(self, name: int, stepper: Stepper) -> None:
        # Schedulers keep their arguments, and later steps overwrite the planes, so pass copies.
        prediction, before = (self._planes[plane, name].view(1, *self._shape).clone() for plane in (PREDICTION, LATENT))
        latent = stepper.step(prediction, before).flatten()
        self._next[LATENT, name] = latent
        if self._step[name] + 1 < self._steps[name]:
            self._next[INPUT, name] = stepper.input_scale() * latent

    def _leave(self, name: int) -> Slot:
        rows = sorted({name, int(self._unconditional[name])})
        self._free += rows
        self._owner[rows] = rows
        self._unconditional[name], self._guidance[name] = name, 1.0
        self._step[name] = self._steps[name] = 0
        self._matrices[name], self._timesteps[name], self._draws[name] = 0, 0, False
        self._steppers.pop(name, None)
        self._sent = None
        return self._slots.pop(name)


def _with_columns(numbers: NDArray[Any], columns: int) -> NDArray[Any]:
    """Return the array, (slots, columns, …), or a copy with zeros appended if it has too few columns."""
    missing = columns - numbers.shape[1]
    if missing <= 0:
        return numbers
    return np.pad(numbers, [(0, 0), (0, missing), *[(0, 0)] * (numbers.ndim - 2)])
