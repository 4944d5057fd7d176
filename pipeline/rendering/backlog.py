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
"""The most waiting tasks from which the next one is chosen."""

MOST_PASSED = 16
"""The most tasks that may start ahead of a guided task that waits for two rows."""


@dataclass(slots=True, eq=False)
class Pending:
    """A waiting task."""

    task: RenderTask
    group: object | None
    """An object that all tasks of a group share; None for a task without a group."""
    batch_key: Hashable
    """``Family.batch_key`` of the task. A batch holds tasks of one key."""
    evaluations: int
    """The number of calls of the denoiser that the task takes part in, whether in one row or two."""
    prepared: "Future[Any] | None" = field(default=None, repr=False)
    """The result of its preparation (``preparation.py``); None before it is requested."""


class Backlog:
    """A queue, first in, first out, with two exceptions.

    The last tasks start longest first, so that the batch does not end with one long task alone in it. An unguided task
    may start before a guided one of its group when only one row is free. After ``MOST_PASSED`` such starts the row
    stays free until there are two, so that the guided task does not starve.
    """

    def __init__(self, family: Family) -> None:
        self._family = family
        self._waiting: deque[Pending] = deque()
        self.batch_key: Hashable = None
        """The key of the last task taken."""
        self._passed = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[Pending]:
        """Iterate over the tasks, roughly in the order in which they will start."""
        order = self._order() if self._waiting else ()
        return chain((self._waiting[index] for index in order), islice(self._waiting, len(order), None))

    @property
    def changes_key(self) -> bool:
        """Whether the next task, if there is one, has another batch key than the last one taken."""
        return not self._waiting or self._waiting[0].batch_key != self.batch_key

    def add(self, tasks: Iterable[RenderTask], *, grouped: bool) -> None:
        """Append tasks, as one group if ``grouped``."""
        group = object() if grouped else None
        self._waiting.extend(
            Pending(task, group, self._family.batch_key(task.recipe), _evaluations(task.recipe)) for task in tasks
        )

    def put_back(self, taken: Sequence[Pending]) -> None:
        """Put tasks that were taken at the front again, in the given order."""
        self._waiting.extendleft(reversed(taken))

    def clear(self) -> list[Pending]:
        """Remove and return all waiting tasks."""
        dropped = list(self._waiting)
        self._waiting.clear()
        return dropped

    def take(self, free_rows: int, *, drained: bool) -> Pending | None:
        """Remove and return the task that may start now.

        Return None if it must wait for rows, or if its key is another one and the batch is not ``drained``.
        """
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
        """Return the index of the first waiting task that fits, or None if it may not pass those before it."""
        order = self._order()
        for place, index in enumerate(order):
            if self._family.rows(self._waiting[index].task.recipe.guidance_scale) <= free_rows:
                self._passed = self._passed + 1 if place else 0
                return index
            if self._passed >= MOST_PASSED:
                return None
        return None

    def _order(self) -> Sequence[int]:
        """Return the indices of the waiting tasks that may start, in the order in which they may.

        They are the tasks at the front with the first one's group and batch key, at most ``LOOKAHEAD``.
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
    except InputError:  # no such scheduler: the task fails when it starts
        return 0
