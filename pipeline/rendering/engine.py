"""Continuous batching: every call of the denoiser is as full as the backlog allows.

A sweep's tasks differ in prompt, seed, guidance scale, step count and scheduler. Each takes a slot of one or two rows
(``batch.py``); a slot that finishes is refilled before the next call. The number of rows never changes, so neither does
a shape, and an image's bytes depend on its recipe alone.

On a GPU the host prepares and launches ahead, and asks later what is done. It waits for the device only for the copy
of finished images, when there is nothing else to do.

Where memory is short, the engine waits for memory that other processes hold. Else the denoiser goes on with fewer rows.
The text encoders and the decoder cannot do with less; they are tried again when the batch is empty.
"""

import logging
from collections import deque
from collections.abc import Callable, Hashable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from typing import Literal

import numpy as np
from numpy.typing import NDArray
from torch import Tensor

from pipeline.model.rows import LEAST_ROWS
from pipeline.recipe import RenderTask
from pipeline.rendering.backlog import Backlog, Pending
from pipeline.rendering.batch import Batch, Slot
from pipeline.rendering.counters import EngineCounters
from pipeline.rendering.decoding import Decoder, Decoding
from pipeline.rendering.determinism import alone_with_torch
from pipeline.rendering.device_memory import Patience, read_memory
from pipeline.rendering.devices import device_name, out_of_memory
from pipeline.rendering.loading import LoadedModel
from pipeline.rendering.preparation import Preparation, Prepared
from pipeline.rendering.results import Failed, Outcome, Rendered, not_finite
from pipeline.rendering.row_time import Call, Mark, RowTime, mark

_log = logging.getLogger(__name__)


_Need = Literal["prepare", "decode", "decode again"]


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
    """Render tasks on one loaded model; one thread owns and steps it."""

    def __init__(
        self,
        model: LoadedModel,
        rows: int | Callable[[int, int], int],
        *,
        patience: Patience | None = None,
        on_begin: Callable[[RenderTask], None] = lambda _: None,
    ) -> None:
        """``rows`` of the denoiser's batch, for all images or by width and height (px).

        At least 2: a guided task takes two. ``patience`` waits for memory that other processes hold. ``on_begin`` gets
        each task before any work for it begins, from any thread.
        """
        if isinstance(rows, int) and rows < LEAST_ROWS:
            raise ValueError(f"an engine needs at least {LEAST_ROWS} rows, not {rows}")
        self._model, self._adapter, self._device_name = model, model.adapter, device_name(model.device)
        self._rows_at_first, self._rows_of_key = rows, dict[Hashable, int]()
        self._backlog = Backlog(model.adapter.family)
        self._preparation = Preparation(model.adapter, on_begin)
        self._batch: Batch | None = None
        self._patience = patience or Patience(partial(read_memory, model.device))
        self._row_time = RowTime(model.adapter.device)
        self._denoised: deque[_Denoised] = deque()
        """They wait for the decoder."""
        self._decoder = Decoder(model.adapter)
        self._decodings: deque[tuple[_Denoised, Decoding]] = deque()
        """The device works on them."""
        self._drains_for: _Need | None = None
        """What needs the memory of the batch: no task starts until the batch is empty."""
        self._without_preparation = False
        """The denoiser is tried once more with nothing beside it, before its rows fall; until an image is finished."""
        self._counters = EngineCounters()

    @property
    def busy(self) -> bool:
        return bool(self._backlog or self._used_rows or self._denoised or self._decodings)

    @property
    def waiting(self) -> int:
        """The number of added tasks that have not begun."""
        return len(self._backlog)

    @property
    def counters(self) -> EngineCounters:
        return self._counters

    def add(self, tasks: Iterable[RenderTask], *, grouped: bool = False) -> None:
        """Append to the backlog. A group's tasks may pass each other, but none of an earlier group."""
        self._backlog.add(tasks, grouped=grouped)

    def drop_waiting(self) -> list[RenderTask]:
        """Forget the tasks that have not begun, and return them: they will have no outcome."""
        dropped = self._backlog.clear()
        self._preparation.forget_undone(dropped)
        self._fits("prepare")
        return [pending.task for pending in dropped]

    def render(self, tasks: Iterable[RenderTask]) -> Iterator[Outcome]:
        """Yield outcomes in completion order, those of tasks added before included."""
        self.add(tasks, grouped=True)
        while self.busy:
            yield from self.step()

    @alone_with_torch
    def step(self) -> list[Outcome]:
        """Refill free slots, call the denoiser once, start decoding what is denoised; return what finished, in order.

        A task that cannot be rendered is an outcome too. What the device or the network itself raises goes to the
        caller; the tasks without an outcome then need a new engine.
        """
        if self._patience.doze():
            return self._collect()
        outcomes: list[Outcome] = [*self._refill()]
        if self._used_rows:
            self._denoise()
        self._decode()
        return [*outcomes, *self._collect()]

    @property
    def _used_rows(self) -> int:
        return 0 if self._batch is None else self._batch.used_rows

    def _refill(self) -> list[Failed]:
        """Give free rows to tasks that wait; returns those that cannot be rendered."""
        if self._drains_for and (self._used_rows or self._denoised or self._decodings):
            return []
        failed: list[Failed] = []
        self._prepare_ahead()
        while (pending := self._take()) is not None:
            prepared = self._prepared(pending)
            if isinstance(prepared, Failed):
                failed.append(prepared)
            elif prepared is None or not self._admit(pending, prepared):
                break
        self._prepare_ahead()
        return failed

    def _prepared(self, pending: Pending) -> Prepared | Failed | None:
        """Return a task prepared or failed; None where there is no memory now."""
        with self._short_of_memory(partial(self._drain, "prepare")):
            prepared = self._preparation.result(pending)
            self._fits("prepare")
            return prepared
        self._put_back([pending])
        return None

    def _prepare_ahead(self) -> None:
        """Have as many tasks prepared as may start at once."""
        if self._drains_for or self._without_preparation or self._patience.pausing:
            return
        rows = 0 if self._batch is None else self._batch.rows
        self._preparation.start(self._backlog, most=max(rows, self._adapter.encode_rows))

    def _take(self) -> Pending | None:
        """Take the next task that may start. A batch without tasks takes one of any key."""
        empty = not self._used_rows
        free = LEAST_ROWS if self._batch is None or empty else self._batch.free_rows
        return self._backlog.take(free, drained=empty)

    def _admit(self, pending: Pending, prepared: Prepared) -> bool:
        """Give a task its slot; returns False where there is no memory for it now."""
        with self._short_of_memory(partial(self._take_fewer_rows, pending)):
            if self._batch is None or self._batch.key != pending.batch_key:
                self._batch = None  # free its memory before the next one takes some
                shape = prepared.latent.shape
                self._batch = Batch(self._adapter, self._rows_for(pending), shape, key=pending.batch_key)
            slot = Slot(pending=pending, prepared=prepared, batch_rows=self._batch.rows, before=self._row_time.last)
            self._batch.admit(slot)
            self._counters += EngineCounters(encode_s=prepared.seconds)
            return True
        self._begin_anew(pending)
        return False

    def _rows_for(self, pending: Pending) -> int:
        """Return the rows of the batch for tasks of this key."""
        key, recipe = pending.batch_key, pending.task.recipe
        if key not in self._rows_of_key:
            rows = self._rows_at_first
            fitting = rows if isinstance(rows, int) else max(LEAST_ROWS, rows(recipe.width, recipe.height))
            self._rows_of_key[key] = fitting
        return self._rows_of_key[key]

    def _denoise(self) -> None:
        batch = self._batch
        assert batch is not None
        one = batch.slots[0].pending
        with self._short_of_memory(partial(self._take_fewer_rows, one)):
            began = mark(self._adapter.device)
            batch.advance(batch.predict())
            self._count_call(batch, began)
            for slot, latent in batch.take_finished():
                self._denoised.append(_Denoised(slot=slot, latent=latent, last=self._row_time.last))
            return
        self._begin_anew(one)

    @contextmanager
    def _short_of_memory(self, do_with_less: Callable[[BaseException], None]) -> Iterator[None]:
        """Go on after the block where it finds no memory.

        Wait for what other processes hold, else call ``do_with_less``, which raises where nothing less is possible.
        """
        try:
            yield
        except (RuntimeError, MemoryError) as error:
            if not out_of_memory(error):
                raise
            if not self._patience.wait_for_others(error):
                do_with_less(error)

    def _drain(self, need: _Need, error: BaseException) -> None:
        """Let the batch become empty, and try again then what has found no memory beside it."""
        empty = not self._used_rows and all(decoding.ready for _, decoding in self._decodings)
        if empty and self._batch is None and self._drains_for == need:
            what = f"not even one image fits on {self._model.device} to {need} it"
            raise self._patience.too_small(what, error) from error
        if self._drains_for != need:
            _log.warning("out of memory to %s an image; no other one starts until there is room", need)
        self._drains_for = need
        if empty:
            self._batch = None  # its memory is what the next try gets

    def _begin_anew(self, one: Pending) -> None:
        """Let ``one`` and the tasks of the batch start anew.

        They could not go on: an image's last bits depend on the rows, and its metadata tells how many.
        """
        started = [] if self._batch is None else [slot.pending for slot in self._batch.slots]
        self._batch = None
        self._put_back(started if one in started else [*started, one])

    def _put_back(self, taken: Sequence[Pending]) -> None:
        self._backlog.put_back(taken)
        self._preparation.forget_undone(self._backlog)

    def _take_fewer_rows(self, one: Pending, error: BaseException) -> None:
        """Go on with the next lower power of two of rows for the batch key of a task.

        But try once more with the same rows where a preparation may have been under way: rows decide last bits, and so
        may not depend on what happens to run beside the denoiser.
        """
        if not self._without_preparation:
            self._without_preparation = True
            _log.warning("out of memory to denoise; trying again with nothing beside the denoiser")
            return
        self._without_preparation = False
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

    def _decode(self) -> None:
        """Start decoding every latent that is ready."""
        while self._denoised:
            with self._short_of_memory(partial(self._drain, "decode")):
                self._decodings.append((self._denoised[0], self._decoder.start(self._denoised[0].latent)))
                self._denoised.popleft()
                self._fits("decode")
                continue
            return

    def _fits(self, need: _Need) -> None:
        """Go on as before the shortage of something, which has found memory."""
        if self._drains_for == need:
            self._drains_for = None

    def _collect(self) -> list[Outcome]:
        """Return what the device has decoded by now. Wait for it where nothing else is to do."""
        outcomes: list[Outcome] = []
        idle = not self._used_rows and (self._drains_for is not None or not (self._denoised or self._backlog))
        while self._decodings and (idle or self._decodings[0][1].ready):
            outcome = self._outcome(*self._decodings[0])
            if outcome is None:
                break
            self._decodings.popleft()
            outcomes.append(outcome)
            idle = False
        self._counters += EngineCounters(denoise_s=self._row_time.settle())
        return outcomes

    def _outcome(self, denoised: _Denoised, decoding: Decoding) -> Outcome | None:
        """Return what became of a task; None where there is no memory for it now."""
        with self._short_of_memory(partial(self._drain, "decode again")):
            pixels, finite = decoding.result()
            self._fits("decode again")
            self._patience.progressed()
            self._without_preparation = False
            self._counters += EngineCounters(denoise_s=self._row_time.settle(), decode_s=decoding.seconds)
            return self._rendered(denoised, pixels, decoding.seconds) if finite else not_finite(denoised.task)
        return None

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
