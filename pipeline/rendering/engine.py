"""Continuous batching: every call of the denoiser is as full as the backlog allows.

A sweep's tasks differ in prompt, seed, guidance scale, step count and scheduler. Each takes a slot of one or two rows
(``batch.py``); a slot that finishes is refilled before the next call. The number of rows never changes, so neither does
a shape, and an image's bytes depend on its recipe alone.

On a GPU nothing here waits for the device but the copy of finished images, and that only when there is nothing else to
do: the host prepares and launches ahead, and asks later what is done.
"""

import logging
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import partial

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.recipe import RenderTask
from pipeline.rendering.backlog import Backlog, Group, Pending
from pipeline.rendering.batch import Batch, Slot
from pipeline.rendering.counters import EngineCounters
from pipeline.rendering.decoding import Decoder, Decoding
from pipeline.rendering.device_memory import Patience, read_memory
from pipeline.rendering.devices import device_name, out_of_memory
from pipeline.rendering.loading import LoadedModel
from pipeline.rendering.preparation import Preparation, Prepared
from pipeline.rendering.results import Failed, Outcome, Rendered, not_finite
from pipeline.rendering.row_time import Call, Mark, RowTime, mark

_log = logging.getLogger(__name__)

LEAST_ROWS = 2


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class _Denoised:
    """What a slot leaves behind after its last step."""

    slot: Slot
    latent: Tensor
    """(channels, h, w), float32"""
    last: Call
    """The last call of the denoiser that the task was in."""

    @property
    def task(self) -> RenderTask:
        return self.slot.pending.task


class Engine:
    """Renders tasks on one loaded model; owned and stepped by one thread."""

    def __init__(
        self,
        model: LoadedModel,
        rows: int | Callable[[int, int], int],
        *,
        decode_rows: Callable[[int, int], int] | None = None,
        patience: Patience | None = None,
    ) -> None:
        """``rows`` of the denoiser's batch, for all images or by width and height (px).

        At least 2: a guided task takes two. ``decode_rows`` of the decoder are by width and height, or the adapter's.
        ``patience`` waits for memory that other processes hold.
        """
        if isinstance(rows, int) and rows < LEAST_ROWS:
            raise ValueError(f"an engine needs at least {LEAST_ROWS} rows, not {rows}")
        self._model, self._adapter, self._device_name = model, model.adapter, device_name(model.device)
        self._rows_at_first, self._rows_of_key = rows, dict[Hashable, int]()
        self._decode_rows_at_first, self._decode_rows_of_key = decode_rows, dict[Hashable, int]()
        self._backlog = Backlog(model.adapter.family)
        self._preparation = Preparation(model.adapter)
        self._batch: Batch | None = None
        self._patience = patience or Patience(partial(read_memory, model.device))
        self._row_time = RowTime(model.adapter.device)
        self._denoised: list[_Denoised] = []
        """They wait for the decoder."""
        self._decoder = Decoder(model.adapter)
        self._decodings: deque[tuple[Sequence[_Denoised], Decoding]] = deque()
        """The device works on them."""
        self._flush = False
        """Some group's latents are all there."""
        self._counters = EngineCounters()

    @property
    def busy(self) -> bool:
        return bool(self._backlog or self._used_rows or self._denoised or self._decodings)

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
        """Refill free slots, call the denoiser once, start decoding what is ready; returns what finished, in order.

        A task that cannot be rendered is an outcome too. What the device or the network itself raises goes to the
        caller; the tasks without an outcome then need a new engine.
        """
        if self._patience.doze():
            self._preparation.forget_failures(self._backlog)
            return self._collect()
        outcomes: list[Outcome] = [*self._refill()]
        if self._used_rows:
            self._denoise()
        self._decode()
        self._patience.step_done()
        return [*outcomes, *self._collect()]

    @property
    def _used_rows(self) -> int:
        return 0 if self._batch is None else self._batch.used_rows

    def _refill(self) -> list[Failed]:
        """Give free rows to tasks that wait; returns those that cannot be rendered."""
        failed: list[Failed] = []
        self._prepare_ahead()
        while (pending := self._take()) is not None:
            rows = self._rows_for(pending)
            try:
                prepared = self._preparation.result(pending)
                if isinstance(prepared, Prepared):
                    self._admit(pending, prepared, rows)
                else:
                    failed.append(prepared)
                    self._settle(pending.group)
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                self._make_room(pending, error)
                break
        self._prepare_ahead()
        return failed

    def _prepare_ahead(self) -> None:
        """Have as many tasks prepared as may start at once."""
        rows = 0 if self._batch is None else self._batch.rows
        self._preparation.start(self._backlog, most=max(rows, self._adapter.encode_rows))

    def _take(self) -> Pending | None:
        """The next task that may start; a batch without tasks takes one of any key."""
        empty = not self._used_rows
        free = LEAST_ROWS if self._batch is None or empty else self._batch.free_rows
        return self._backlog.take(free, drained=empty and not self._denoised)

    def _admit(self, pending: Pending, prepared: Prepared, rows: int) -> None:
        if self._batch is None or self._batch.key != pending.batch_key:
            self._batch = None  # free its memory before the next one takes some
            self._batch = Batch(self._adapter, rows, prepared.latent.shape, key=pending.batch_key)
        slot = Slot(pending=pending, prepared=prepared, batch_rows=self._batch.rows, before=self._row_time.last)
        self._batch.admit(slot)
        self._counters += EngineCounters(encode_s=prepared.seconds)

    def _rows_for(self, pending: Pending) -> int:
        """Rows of the batch for tasks of this key."""
        key, recipe = pending.batch_key, pending.task.recipe
        if key not in self._rows_of_key:
            rows = self._rows_at_first
            fitting = rows if isinstance(rows, int) else max(LEAST_ROWS, rows(recipe.width, recipe.height))
            self._rows_of_key[key] = fitting
        return self._rows_of_key[key]

    def _denoise(self) -> None:
        batch = self._batch
        assert batch is not None
        began = mark(self._adapter.device)
        try:
            batch.advance(batch.predict())
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            self._make_room(batch.slots[0].pending, error)
            return
        self._count_call(batch, began)
        for slot, latent in batch.take_finished():
            self._settle(slot.pending.group)
            self._denoised.append(_Denoised(slot=slot, latent=latent, last=self._row_time.last))

    def _make_room(self, one: Pending, error: BaseException) -> None:
        """Wait where other processes hold the memory, else take fewer rows. ``one`` and the batch's tasks start anew.

        They could not go on: an image's last bits depend on the rows, and its metadata tells how many.
        """
        if not self._patience.wait_for_others(error):
            self._shrink_batch(one, error)
        started = [] if self._batch is None else [slot.pending for slot in self._batch.slots]
        self._backlog.put_back(started if one in started else [*started, one])
        self._preparation.forget_failures(self._backlog)
        self._batch = None

    def _shrink_batch(self, one: Pending, error: BaseException) -> None:
        """Go on with the next lower power of two of rows for the batch key of a task."""
        key, recipe = one.batch_key, one.task.recipe
        rows = self._rows_of_key[key]
        smaller = _lower_power_of_two(rows)
        if smaller < LEAST_ROWS:
            what = f"not even one image of this size fits on {self._model.device}"
            raise self._patience.too_small(what, error) from error
        size = f"{recipe.width} x {recipe.height} px"
        _log.warning("out of memory with %d rows at %s; going on with %d", rows, size, smaller)
        self._rows_of_key[key] = smaller

    def _count_call(self, batch: Batch, began: Mark) -> None:
        used = batch.used_rows
        self._row_time.note(began, mark(self._adapter.device), used)
        self._counters += EngineCounters(
            evaluations=used,
            megapixel_evaluations=used * batch.slots[0].pending.task.recipe.megapixels,  # a batch is of one size
            padded_rows=batch.rows - used,
            denoiser_calls=1,
        )

    def _settle(self, group: Group | None) -> None:
        """One task less to wait for, its latent being ready or never to come."""
        if group is not None:
            group.unfinished -= 1
            self._flush = self._flush or group.unfinished == 0

    def _decode(self) -> None:
        """Full chunks; all that is ready when a group waits for nothing else or no more of its size will come."""
        flush = self._flush or (not self._used_rows and self._backlog.changes_key)
        while self._denoised and (len(self._denoised) >= self._decode_rows or flush):
            chunk = self._denoised[: self._decode_rows]
            try:
                latents = torch.stack([denoised.latent for denoised in chunk])
                self._decodings.append((chunk, self._decoder.start(latents, self._decode_rows)))
            except (RuntimeError, MemoryError) as error:
                if not out_of_memory(error):
                    raise
                if self._patience.wait_for_others(error):
                    return
                self._shrink_decoding(error)
            else:
                del self._denoised[: len(chunk)]
        self._flush = False

    @property
    def _decode_rows(self) -> int:
        """Latents in one call of the autoencoder, for the batch key of those that wait for it."""
        key, recipe = self._backlog.batch_key, self._denoised[0].task.recipe
        if key not in self._decode_rows_of_key:
            rows = self._decode_rows_at_first
            self._decode_rows_of_key[key] = rows(recipe.width, recipe.height) if rows else self._adapter.decode_rows
        return self._decode_rows_of_key[key]

    def _shrink_decoding(self, error: BaseException) -> None:
        if self._decode_rows == 1:
            what = f"not even one image can be decoded on {self._model.device}"
            raise self._patience.too_small(what, error) from error
        smaller = _lower_power_of_two(self._decode_rows)
        _log.warning("out of memory while decoding; going on with %d at a time", smaller)
        self._decode_rows_of_key[self._backlog.batch_key] = smaller

    def _collect(self) -> list[Outcome]:
        """What the device has decoded by now; where nothing else is to do, what it decodes next."""
        outcomes: list[Outcome] = []
        idle = not (self._used_rows or self._backlog or self._denoised)
        while self._decodings and (idle or self._decodings[0][1].ready):
            outcomes += self._outcomes(*self._decodings.popleft())
            idle = False
        self._counters += EngineCounters(denoise_s=self._row_time.settle())
        return outcomes

    def _outcomes(self, chunk: Sequence[_Denoised], decoding: Decoding) -> list[Outcome]:
        pixels, finite = decoding.result()
        self._counters += EngineCounters(denoise_s=self._row_time.settle(), decode_s=decoding.seconds)
        return [
            self._rendered(denoised, image, decoding.seconds / len(chunk)) if ok else not_finite(denoised.task)
            for denoised, image, ok in zip(chunk, pixels, finite, strict=True)
        ]

    def _rendered(self, denoised: _Denoised, pixels: NDArray[np.uint8], decode_s: float) -> Rendered:
        slot = denoised.slot
        denoise_s = slot.rows * denoised.last.seconds_since(slot.before)
        return Rendered(
            task=denoised.task,
            pixels=pixels,
            prompt_truncated=slot.prepared.prompt_truncated,
            rows=slot.batch_rows,
            render_s=slot.prepared.seconds + denoise_s + decode_s,
            device=self._device_name,
        )


def _lower_power_of_two(number: int) -> int:
    return 1 << ((number - 1).bit_length() - 1)
