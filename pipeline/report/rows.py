"""What a contact sheet shows: one row per task, in the order of the sheet, some hundred bytes each.

A sheet is read from the parts, not from the tables: it is right beside a running launch and before any finalize.
"""

from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.output.index import part_keys
from pipeline.output.layout import part_of_key
from pipeline.output.outcomes import ok_of
from pipeline.output.parallel import in_parallel
from pipeline.output.part import read_part
from pipeline.output.precedence import counting, ranks_of
from pipeline.output.requests import ORDER
from pipeline.storage.base import ObjectStore

_COLUMNS = ["task_id", "status", "verdict", "created_at", "part_id", "prompt_id", "prompt", "negative_prompt", *ORDER]
_REPEATED = ("verdict", "prompt", "negative_prompt", "scheduler", "manifest_file")
"""Texts that stand in many rows: kept once."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Prompt:
    """A prompt and where its images are: ``count`` of them from row ``first`` on."""

    text: str
    negative: str | None
    prompt_id: str | None
    """Of the first row of the manifest that has it."""
    first: int
    count: int
    failed: int


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class SheetRows:
    """Prompts in the order of the manifest, each with all its images: by size, scheduler, seed, guidance, steps.

    Rows of one prompt and negative prompt are distinct points of the sweep: else they would be one task.
    """

    parts: tuple[str, ...]
    """Keys."""
    table: pa.Table
    """With the columns ``part`` (its number) and ``row`` (the row in it) beside those of the recipe."""
    ok: NDArray[np.bool_]
    group: NDArray[np.int64]
    """The number of each row's prompt."""

    def __len__(self) -> int:
        return len(self.ok)

    def names(self) -> list[str]:
        """One per row, which says what was rendered and by which part: what is kept under it never changes."""
        suffixes = [part_of_key(key)[-8:] for key in self.parts]
        rows = zip(self.table["task_id"].to_pylist(), self.table["part"].to_pylist(), strict=True)
        return [f"{task_id}-{suffixes[part]}" for task_id, part in rows]

    def prompts(self) -> list[Prompt]:
        first = np.flatnonzero(np.r_[True, np.diff(self.group) > 0]) if len(self) else np.empty(0, np.int64)
        count = np.diff(np.r_[first, len(self)])
        failed = np.bincount(self.group[~self.ok], minlength=len(first))
        texts = self.table.select(["prompt", "negative_prompt", "prompt_id"]).take(pa.array(first))
        columns = [column.to_pylist() for column in texts.columns]
        rows = zip(*columns, first.tolist(), count.tolist(), failed.tolist(), strict=True)
        return [
            Prompt(text=text, negative=negative, prompt_id=prompt_id, first=start, count=number, failed=bad)
            for text, negative, prompt_id, start, number, bad in rows
        ]


def read_rows(store: ObjectStore) -> SheetRows:
    """Every task with an outcome. Raises ``JobBrokenError`` naming a part that cannot be read."""
    keys = part_keys(store)
    tables = list(in_parallel(partial(_read, store), enumerate(keys)))
    if not tables:
        return SheetRows(parts=(), table=pa.table({}), ok=np.empty(0, np.bool_), group=np.empty(0, np.int64))
    rows = pa.concat_tables(tables).unify_dictionaries()
    rows = _with_rows_negatives(rows.filter(pa.array(counting(ranks_of(rows, np.arange(rows.num_rows))))))
    group = _groups(rows)
    order = _order(rows, group)
    rows = rows.drop_columns(["created_at", "part_id", "manifest_file", "manifest_row"]).take(pa.array(order))
    return SheetRows(parts=tuple(keys), table=rows, ok=ok_of(rows), group=group[order])


def _read(store: ObjectStore, numbered: tuple[int, str]) -> pa.Table:
    number, key = numbered
    rows = read_part(store, key, _COLUMNS).replace_schema_metadata()
    for name in _REPEATED:
        rows = rows.set_column(rows.schema.get_field_index(name), name, rows[name].dictionary_encode())
    rows = rows.append_column("part", pa.array(np.full(rows.num_rows, number, np.int32)))
    return rows.append_column("row", pa.array(np.arange(rows.num_rows, dtype=np.int32)))


def _with_rows_negatives(rows: pa.Table) -> pa.Table:
    """The negative prompts of manifest rows: of a task that takes no guidance it was left out, as without effect."""
    _, row = np.unique(np.stack(_manifest_rows(rows)), axis=1, return_inverse=True)
    negative = _codes(rows["negative_prompt"])
    of_row = np.zeros(row.max(initial=0) + 1, np.int64)
    np.maximum.at(of_row, row, negative)
    texts = rows["negative_prompt"].combine_chunks().dictionary
    codes = pa.array(of_row[row] - 1, pa.int32(), mask=of_row[row] == 0)
    column = pa.DictionaryArray.from_arrays(codes, texts)
    return rows.set_column(rows.schema.get_field_index("negative_prompt"), "negative_prompt", column)


def _groups(rows: pa.Table) -> NDArray[np.int64]:
    """For each row the number of its prompt, in the order in which manifests first have them."""
    pair = _codes(rows["prompt"]) * (rows.num_rows + 1) + _codes(rows["negative_prompt"])
    place = np.empty(rows.num_rows, np.int64)
    place[np.lexsort(_manifest_rows(rows))] = np.arange(rows.num_rows)
    pairs, group = np.unique(pair, return_inverse=True)
    first = np.full(len(pairs), rows.num_rows)
    np.minimum.at(first, group, place)
    numbers = np.empty(len(pairs), np.int64)
    numbers[np.argsort(first, kind="stable")] = np.arange(len(pairs))
    return numbers[group]


def _order(rows: pa.Table, group: NDArray[np.int64]) -> NDArray[np.int64]:
    names = ("num_inference_steps", "guidance_scale", "seed")
    steps, guidance, seed = (rows[name].to_numpy() for name in names)
    sizes = (rows["width"].to_numpy(), rows["height"].to_numpy())
    return np.lexsort((steps, guidance, seed, _ranks(rows["scheduler"]), *sizes, group))


def _manifest_rows(rows: pa.Table) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """For each row its row of the manifest and the rank of its file: keys to sort by, the last one first."""
    return np.asarray(pc.fill_null(rows["manifest_row"], -1)), _ranks(rows["manifest_file"])


def _ranks(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Of a column with a dictionary: 0 for null, then the place of its value in the order of all."""
    texts = column.combine_chunks().dictionary
    ranks = np.empty(len(texts) + 1, np.int64)
    ranks[0] = 0
    ranks[1 + np.asarray(pc.sort_indices(texts), np.int64)] = 1 + np.arange(len(texts))
    return ranks[_codes(column)]


def _codes(column: pa.ChunkedArray) -> NDArray[np.int64]:
    """Of a column with a dictionary: 0 for null, else one more than the number of its value."""
    found = column.combine_chunks().indices.cast(pa.int64())
    return np.asarray(pc.fill_null(found, -1)) + 1
