"""Requests: every manifest row and point that asks for a picture, also where an earlier row asked for the same one."""

from collections.abc import Callable, Iterable, Iterator

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.identity import Ids, IdSet, ids_from_bytes
from pipeline.planning.grids import OVERRIDE_COLUMNS
from pipeline.planning.rows import Numbered, Rows, among, keep_rows
from pipeline.planning.selection import Selection
from pipeline.planning.tasks import Space, plan_batch

REQUEST_COLUMNS = (
    "manifest_file", "manifest_row", "prompt_id",
    "seed", "guidance_scale", "num_inference_steps", "scheduler", "width", "height", "task_id",
)  # fmt: skip
_READ = ("prompt", "negative_prompt", "prompt_id", "manifest_file", "manifest_row", *OVERRIDE_COLUMNS)


def requests(
    read: Callable[[], Iterable[Numbered]], space: Space, selection: Selection, unusable: Rows
) -> Iterator[pa.Table]:
    """All requests that the selected tasks answer, in manifest order and in bounded tables of ``REQUEST_COLUMNS``.

    ``read`` starts a pass over the manifest. Of the rows that ``selection`` skips, the ``unusable`` ask for nothing.
    """
    picked = None if selection.picks is None else _picked(read(), space, selection)
    for numbered in read():
        asking = keep_rows(_narrow(numbered), _may_ask(numbered[1], selection, unusable))
        for table in plan_batch(asking, space, Selection(), IdSet()):
            wanted = table if picked is None else table.filter(pa.array(picked.contains(_ids(table))))
            if wanted.num_rows:
                yield wanted.select(REQUEST_COLUMNS)


def _picked(batches: Iterable[Numbered], space: Space, selection: Selection) -> IdSet:
    planned = (plan_batch(_narrow(numbered), space, selection, IdSet()) for numbered in batches)
    return IdSet().union([_ids(table) for tables in planned for table in tables])


def _narrow(numbered: Numbered) -> Numbered:
    """Without the manifest's extra columns, which may be heavy."""
    batch, global_rows = numbered
    return batch.select(_READ), global_rows


def _may_ask(global_rows: Rows, selection: Selection, unusable: Rows) -> NDArray[np.bool_]:
    """Which rows may ask for selected tasks: those with a pick, and those with a task of an earlier row."""
    usable = ~among(global_rows, unusable)
    if selection.picks is None:
        return usable
    picked, repeated = among(global_rows, selection.picks[:, 0]), among(global_rows, selection.skipped)
    return usable & (picked | repeated | among(global_rows, selection.repeats[:, 0]))


def _ids(planned: pa.Table) -> Ids:
    return ids_from_bytes(planned["task_id"].combine_chunks().buffers()[1])
