"""Tasks that wait for a slot, and the order in which they get one."""

from collections import deque
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass
from itertools import islice

from pipeline.recipe import Recipe, RenderTask

LOOKAHEAD = 64
"""Waiting tasks that are looked at beyond the first."""

BatchKey = tuple[int, int]
"""(width, height) in px: what fixes the shapes of a batch."""


@dataclass(slots=True)
class Group:
    """Tasks whose commit waits for all of them."""

    unfinished: int


@dataclass(frozen=True, slots=True)
class Pending:
    """A task and the group it came with, if any."""

    task: RenderTask
    group: Group | None

    @property
    def batch_key(self) -> BatchKey:
        return self.task.recipe.width, self.task.recipe.height


class Backlog:
    """First in, first out, but for an odd row: a guided task that needs two lets unguided ones of its group pass.

    It lets as many pass as the batch has rows, then the row stays free until there are two: nobody starves.
    """

    def __init__(self, rows: int, rows_of: Callable[[Recipe], int]) -> None:
        self._rows, self._rows_of = rows, rows_of
        self._waiting: deque[Pending] = deque()
        self.batch_key: BatchKey | None = None
        """Of the last task taken."""
        self._passed = 0

    def __len__(self) -> int:
        return len(self._waiting)

    def __iter__(self) -> Iterator[RenderTask]:
        """The next tasks, at most ``LOOKAHEAD``."""
        return (pending.task for pending in islice(self._waiting, LOOKAHEAD))

    @property
    def changes_key(self) -> bool:
        """Nothing of the current batch key comes next."""
        return not self._waiting or self._waiting[0].batch_key != self.batch_key

    def add(self, tasks: Iterable[RenderTask], *, grouped: bool) -> None:
        listed = list(tasks)
        group = Group(len(listed)) if grouped else None
        self._waiting.extend(Pending(task, group) for task in listed)

    def take(self, free_rows: int, *, drained: bool) -> Pending | None:
        """The task that may start now; None where it must wait for rows, or for the batch to drain (``drained``)."""
        if not self._waiting or (self.changes_key and not drained):
            return None
        head = self._waiting[0]
        self.batch_key = head.batch_key
        index = 0 if self._rows_of(head.task.recipe) <= free_rows else self._passing(free_rows)
        if index is None:
            return None
        self._passed = self._passed + 1 if index else 0
        taken = self._waiting[index]
        del self._waiting[index]
        return taken

    def _passing(self, free_rows: int) -> int | None:
        head = self._waiting[0]
        if not free_rows or self._passed >= self._rows:
            return None
        for index, pending in enumerate(islice(self._waiting, LOOKAHEAD)):
            if pending.group is not head.group or pending.batch_key != head.batch_key:
                return None
            if self._rows_of(pending.task.recipe) <= free_rows:
                return index
        return None
