"""Continuous batching: every call of the denoiser is as full as the backlog allows.

A sweep's tasks differ in prompt, seed, guidance scale, step count and scheduler. Each takes a slot of one or two
rows; a slot that finishes is refilled before the next call. The number of rows never changes, so neither does a
shape, and a picture's bytes depend on its recipe alone.
"""

import logging
import time
from collections.abc import Callable, Iterable, Iterator
from functools import lru_cache

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.nn.functional import pad

from pipeline.errors import JobBrokenError
from pipeline.recipe import RenderTask
from pipeline.rendering.adapter import Rows
from pipeline.rendering.backlog import Backlog, BatchKey, Group, Pending
from pipeline.rendering.counters import EngineCounters
from pipeline.rendering.devices import device_error, device_name, out_of_memory
from pipeline.rendering.loading import LoadedModel
from pipeline.rendering.prompts import Prompts
from pipeline.rendering.results import Failed, Outcome, Rendered, Stage, failure, not_finite
from pipeline.rendering.slots import Slot

_log = logging.getLogger(__name__)

LEAST_ROWS = 2
CACHED_TIMETABLES = 1024
"""Pristine schedulers, one per (scheduler, step count, size): 30 kB each, and up to half a second to build."""


class Engine:
    """Renders tasks on one loaded model; owned and stepped by one thread."""

    def __init__(
        self,
        model: LoadedModel,
        rows: int | Callable[[int, int], int],
        *,
        clock: Callable[[], float] = time.perf_counter,
    ) -> None:
        """``rows`` of the denoiser's batch, for all pictures or by width and height (px).

        At least 2: a guided task takes two.
        """
        if isinstance(rows, int) and rows < LEAST_ROWS:
            raise ValueError(f"an engine needs at least {LEAST_ROWS} rows, not {rows}")
        self._model, self._clock, self._device_name = model, clock, device_name(model.device)
        self._rows_at_first, self._rows_of_key = rows, dict[BatchKey, int]()
        self._decode_rows_of_key = dict[BatchKey, int]()
        self._prompts = Prompts(model.adapter)
        self._timetable = lru_cache(maxsize=CACHED_TIMETABLES)(model.adapter.timetable)
        self._backlog = Backlog(model.adapter.rows)
        self._slots: list[Slot] = []
        self._parked: list[Slot] = []
        """They had to leave the batch when it became smaller, and come back before anything new."""
        self._ready: list[Slot] = []
        """Their latents wait for the decoder."""
        self._flush = False
        """Some group's latents are all there."""
        self._conditioning: Rows | None = None
        """Of the slots as they are; None after one came or left."""
        self._counters = EngineCounters()

    @property
    def busy(self) -> bool:
        return bool(self._backlog or self._slots or self._parked or self._ready)

    @property
    def waiting(self) -> int:
        """Added tasks that have not begun."""
        return len(self._backlog)

    @property
    def counters(self) -> EngineCounters:
        return self._counters

    def add(self, tasks: Iterable[RenderTask], *, flush: bool = False) -> None:
        """Append to the backlog.

        With ``flush`` these tasks are a group: when its last latent is ready, all that wait are decoded at once.
        Without, latents wait until a chunk is full or nothing of their size is left to denoise.
        """
        self._backlog.add(tasks, grouped=flush)

    def drop_waiting(self) -> list[RenderTask]:
        """Forget the tasks that have not begun, and return them: they will have no outcome."""
        dropped = self._backlog.clear()
        for pending in dropped:
            self._settle(pending.group)
        return [pending.task for pending in dropped]

    def render(self, tasks: Iterable[RenderTask]) -> Iterator[Outcome]:
        """Outcomes in completion order, those of tasks added before included."""
        self.add(tasks, flush=True)
        while self.busy:
            yield from self.step()

    @torch.no_grad()
    def step(self) -> list[Outcome]:
        """Refill free slots, call the denoiser once, decode what is ready; returns what finished, in that order.

        A task that cannot be rendered is an outcome too. What the device or the network itself raises goes to the
        caller; the tasks without an outcome then need a new engine.
        """
        outcomes: list[Outcome] = [*self._refill()]
        if self._slots:
            outcomes += self._denoise()
        outcomes += self._decode()
        return outcomes

    @property
    def _rows(self) -> int:
        """Of the batch for the present picture size."""
        key = self._backlog.batch_key
        if key is None:
            return LEAST_ROWS  # any first task fits, and sets the size
        if key not in self._rows_of_key:
            rows = self._rows_at_first
            self._rows_of_key[key] = rows if isinstance(rows, int) else max(LEAST_ROWS, rows(*key))
        return self._rows_of_key[key]

    def _refill(self) -> list[Failed]:
        failed: list[Failed] = []
        while self._parked and self._parked[0].rows <= self._rows - self._used_rows():
            self._slots.append(self._parked.pop(0))
            self._conditioning = None
        if self._parked:
            return failed
        while (pending := self._take()) is not None:
            admitted = self._admit(pending)
            if admitted is None:
                break
            if isinstance(admitted, Slot):
                self._slots.append(admitted)
            else:
                failed.append(admitted)
                self._settle(pending.group)
        return failed

    def _take(self) -> Pending | None:
        return self._backlog.take(self._rows - self._used_rows(), drained=not self._slots and not self._ready)

    def _admit(self, pending: Pending) -> Slot | Failed | None:
        """None where memory was too short: the task waits again, and the batch has become smaller."""
        recipe, adapter, began = pending.task.recipe, self._model.adapter, self._clock()
        stage: Stage = "encode"
        try:
            upcoming = (text for task in self._backlog for text in adapter.texts(task.recipe))
            conditioning = self._prompts.conditioning(adapter.texts(recipe), upcoming)
            encode_s = self._clock() - began
            stage = "denoise"
            timetable = self._timetable(recipe.scheduler, recipe.num_inference_steps, recipe.width, recipe.height)
            slot = Slot(adapter, pending, conditioning, timetable, self._rows)
        except Exception as error:  # the task boundary: what a recipe breaks is that task's failure
            if out_of_memory(error):
                self._shrink_batch(error)
                slot = None
            elif device_error(error):
                raise
            else:
                return failure(pending.task, stage, error)
        if slot is None:
            self._backlog.put_back(pending)
            _give_back_memory()
            return None
        self._conditioning = None
        slot.render_s = self._clock() - began
        self._counters += EngineCounters(encode_s=encode_s, denoise_s=slot.render_s - encode_s)
        return slot

    def _denoise(self) -> list[Failed]:
        began, used = self._clock(), self._used_rows()
        try:
            predicted = self._model.adapter.predict(*self._batch())
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            self._shrink_batch(error)
            predicted = None
        if predicted is None:  # only now is the error gone, and with it what the call had made
            _give_back_memory()
            return []
        by_slot = torch.split(predicted[:used], [slot.rows for slot in self._slots])
        failed = {
            slot: failure for slot, rows in zip(self._slots, by_slot, strict=True) if (failure := _advance(slot, rows))
        }
        self._count_call(self._clock() - began, used)
        left = [slot for slot in self._slots if slot in failed or slot.done]
        for slot in left:
            self._settle(slot.group)
        self._ready += [slot for slot in left if slot not in failed]
        if left:
            self._slots = [slot for slot in self._slots if slot not in left]
            self._conditioning = None
        return [*failed.values()]

    def _shrink_batch(self, error: BaseException) -> None:
        """Go on with the next lower power of two of rows for this picture size.

        Tasks under way start anew: a picture's last bits depend on the rows, and its metadata tells how many.
        """
        smaller = _lower_power_of_two(self._rows)
        if smaller < 2:
            raise JobBrokenError(f"not even one image of this size fits on {self._model.device}: {error}") from error
        key = self._backlog.batch_key
        assert key is not None
        _log.warning("out of memory with %d rows at %d x %d px; going on with %d", self._rows, *key, smaller)
        self._rows_of_key[key] = smaller
        self._conditioning = None
        self._slots, self._parked = ([slot.restarted(smaller) for slot in of] for of in (self._slots, self._parked))
        while self._used_rows() > smaller:
            self._parked.insert(0, self._slots.pop())

    def _batch(self) -> tuple[Tensor, Tensor, Rows]:
        """Latents (rows, c, h, w), timesteps (rows,) and conditioning, each (rows, ...); rows without a task are 0."""
        slots, missing = self._slots, self._rows - self._used_rows()
        latents = torch.cat([slot.model_input.expand(slot.rows, -1, -1, -1) for slot in slots])
        timesteps = torch.tensor([slot.timestep for slot in slots for _ in range(slot.rows)], dtype=torch.float32)
        if self._conditioning is None:
            names = slots[0].conditioning
            self._conditioning = {
                name: _padded(torch.cat([slot.conditioning[name] for slot in slots]), missing) for name in names
            }
        return _padded(latents, missing), self._model.adapter.sent(_padded(timesteps, missing)), self._conditioning

    def _count_call(self, elapsed_s: float, used: int) -> None:
        for slot in self._slots:
            slot.render_s += elapsed_s * slot.rows / used
        self._counters += EngineCounters(
            evaluations=used,
            megapixel_evaluations=used * self._slots[0].task.recipe.megapixels,  # a batch is of one size
            padded_rows=self._rows - used,
            denoiser_calls=1,
            denoise_s=elapsed_s,
        )

    def _settle(self, group: Group | None) -> None:
        """One task less to wait for, its latent being ready or never to come."""
        if group is not None:
            group.unfinished -= 1
            self._flush = self._flush or group.unfinished == 0

    def _decode(self) -> list[Outcome]:
        """Full chunks; all that is ready when a group waits for nothing else or no more of its size will come."""
        outcomes: list[Outcome] = []
        flush = self._flush or (not self._slots and not self._parked and self._backlog.changes_key)
        while len(self._ready) >= self._decode_rows or (flush and self._ready):
            chunk = self._ready[: self._decode_rows]
            try:
                outcomes += self._decode_chunk(chunk)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                self._shrink_decoding(error)
                chunk = []
            if not chunk:
                _give_back_memory()
            del self._ready[: len(chunk)]
        self._flush = False
        return outcomes

    @property
    def _decode_rows(self) -> int:
        """Latents in one call of the autoencoder, for the present picture size."""
        most, key = self._model.adapter.decode_rows, self._backlog.batch_key
        return most if key is None else self._decode_rows_of_key.get(key, most)

    def _shrink_decoding(self, error: BaseException) -> None:
        if self._decode_rows == 1:
            raise JobBrokenError(f"not even one image can be decoded on {self._model.device}: {error}") from error
        key, smaller = self._backlog.batch_key, _lower_power_of_two(self._decode_rows)
        assert key is not None
        _log.warning("out of memory while decoding; going on with %d at a time", smaller)
        self._decode_rows_of_key[key] = smaller

    def _decode_chunk(self, slots: list[Slot]) -> list[Outcome]:
        began = self._clock()
        latents = torch.cat([slot.latent for slot in slots])
        missing = self._decode_rows - len(slots)
        pixels, finite = self._model.adapter.decode(_padded(latents, missing))
        elapsed_s = self._clock() - began
        self._counters += EngineCounters(decode_s=elapsed_s)
        for slot in slots:
            slot.render_s += elapsed_s / len(slots)
        return [
            self._rendered(slot, picture) if ok else not_finite(slot.task)
            for slot, picture, ok in zip(slots, pixels, finite, strict=False)  # the rest is padding
        ]

    def _rendered(self, slot: Slot, pixels: NDArray[np.uint8]) -> Rendered:
        return Rendered(
            task=slot.task,
            pixels=pixels,
            prompt_truncated=slot.prompt_truncated,
            rows=slot.batch_rows,
            render_s=slot.render_s,
            device=self._device_name,
        )

    def _used_rows(self) -> int:
        return sum(slot.rows for slot in self._slots)


def _give_back_memory() -> None:
    if torch.cuda.is_available():
        torch.cuda.empty_cache()


def _lower_power_of_two(number: int) -> int:
    return 1 << ((number - 1).bit_length() - 1)


def _padded(rows: Tensor, missing: int) -> Tensor:
    """(n, ...) to (n + missing, ...), the rest zeros."""
    return pad(rows, (*[0, 0] * (rows.ndim - 1), 0, missing))


def _advance(slot: Slot, predicted: Tensor) -> Failed | None:
    try:
        slot.advance(predicted)
    except Exception as error:  # the task boundary: a scheduler that gives up fails its own task
        if device_error(error):
            raise
        return failure(slot.task, "denoise", error)
    return None
