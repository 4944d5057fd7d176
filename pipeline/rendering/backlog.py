"""Tasks that wait for a slot, and the order in which they get one."""

from collections import deque
from collections.abc import Hashable, Iterable, Iterator, Sequence
from concurrent.futures import Future
from dataclasses import dataclass, field
from itertools import chain, islice, takewhile
from typing import Any

from pipeline.errors import InputError
from pipeline.model.family import Family
from pipeline.recipe import Recipe, RenderTask
from pipeline.schedulers import evaluations

LOOKAHEAD = 64
"""Waiting tasks that are looked at beyond the first."""

MOST_PASSED = 16


@dataclass(slots=True, eq=False)
class Pending:
    """A task that waits."""

    task: RenderTask
    group: object | None
    """The same for all tasks of a group, None without."""
    batch_key: Hashable
    """``Family.batch_key`` of the task: a batch holds tasks of one key."""
    evaluations: int
    """Calls of the denoiser that the task stays for; the rows it takes do not matter for the end of the batch."""
    prepared: "Future[Any] | None" = field(default=None, repr=False)
    """Its preparation, where that has been asked for (``preparation.py``)."""


class Backlog:
    """First in, first out, but for two things.

    The last tasks there are start longest first, so that the batch does not end with one long task alone in it. And a
    guided task that needs two rows lets unguided ones of its group have an odd one: ``MOST_PASSED`` times, then the
    row stays free until there are two, so that nobody starves.
    """

    def __init__(self, family: Family) -> None:
        self._family = family
        self._waiting: deque[Pending] = deque()
        self.batch_key: Hashable = None
        """Of the last task taken."""
        self._passed = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Pending]:
        """Iterate over the tasks about in the order in which they will start."""
        order = self._order() if self._waiting else ()
        return chain((self._waiting[index] for index in order), islice(self._waiting, len(order), None))

    @property
    def changes_key(self) -> bool:
        """Nothing of the current batch key comes next."""
        return not self._waiting or self._waiting[0].batch_key != self.batch_key

    def add(self, tasks: Iterable[RenderTask], *, grouped: bool) -> None:
        group = object() if grouped else None
        self._waiting.extend(
            Pending(task, group, self._family.batch_key(task.recipe), _evaluations(task.recipe)) for task in tasks
        )

    def put_back(self, taken: Sequence[Pending]) -> None:
        """Let tasks that were taken come next again, in the given order."""
        self._waiting.extendleft(reversed(taken))

    def clear(self) -> list[Pending]:
        """Take out all that waits."""
        dropped = list(self._waiting)
        self._waiting.clear()
        return dropped

    def take(self, free_rows: int, *, drained: bool) -> Pending | None:
        """The task that may start now; None where it must wait for rows, or for the batch to drain (``drained``)."""
        if not free_rows or not self._waiting or (self.changes_key and not drained):
            return None
        self.batch_key = self._waiting[0].batch_key
        index = self._next(free_rows)
        if index is not None:
            taken = self._waiting[index]
            del self._waiting[index]
            return taken
        return None

    def _next(self, free_rows: int) -> int | None:
        """Which waiting task starts: the first in turn that fits, if it may pass those before it."""
        order = self._order()
        for place, index in enumerate(order):
            if self._family.rows(self._waiting[index].task.recipe.guidance_scale) <= free_rows:
                self._passed = self._passed + 1 if place else 0
                return index
            if self._passed >= MOST_PASSED:
                return None
        return None

    def _order(self) -> Sequence[int]:
        """Return the waiting tasks that may start, in turn: those of the first one's group and batch key.

        They are the first ones there are, and at most ``LOOKAHEAD``.
        """
        head = self._waiting[0]
        fellows = list(
            takewhile(
                lambda pending: pending.group is head.group and pending.batch_key == head.batch_key,
                islice(self._waiting, LOOKAHEAD),
            )
        )
        if len(fellows) < len(self._waiting):
            return range(len(fellows))
        return sorted(range(len(fellows)), key=lambda index: -fellows[index].evaluations)


def _evaluations(recipe: Recipe) -> int:
    try:
        return evaluations(recipe.scheduler, recipe.num_inference_steps)
    except InputError:  # no such scheduler: the task fails when it starts, in its turn
        return 0
