"""Metadata rows of many parts in manifest order, few of them in memory: chunks are sorted into runs on local disk, then
merged. Parts may come in any order.
"""

from collections.abc import Iterable, Iterator, Sequence
from io import BufferedRandom

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.output.extras import conformed
from pipeline.output.local_disk import SORTING, local_disk, temporary_file
from pipeline.output.precedence import Ranks, counting, joined, ranks_of
from pipeline.output.requests import ORDER
from pipeline.output.schema import METADATA_SCHEMA

CHUNK_ROWS = 2**17
CHUNK_BYTES = 128 * 2**20
"""What is sorted at a time."""
BATCH_ROWS = 1024
"""What is read at a time of each run that is merged."""

_RANKED = ("task_id", "status", "created_at", "part_id")
_KEYS = [(name, "ascending") for name in (*ORDER, "task_id")]
Mask = NDArray[np.bool_]


class Sorter:
    """Takes rows of parts, gives those that count, in order. Close it after use: it has files."""

    def __init__(self) -> None:
        self.schemas: list[pa.Schema] = []
        """Of all rows, each once."""
        self.added = 0
        self._held: list[list[pa.Table]] = []
        """By schema, rows that are in no run yet, each with its number before its other columns."""
        self._held_rows = self._held_bytes = 0
        self._runs: list[BufferedRandom] = []
        self._counts: Mask = np.empty(0, np.bool_)

    def __enter__(self) -> "Sorter":
        return self

    def __exit__(self, *_: object) -> None:
        for run in self._runs:
            run.close()

    def add(self, rows: pa.Table) -> None:
        """In the order of their parts' names, which decides between rows that are alike."""
        rows = rows.replace_schema_metadata()
        place = self._place(rows.schema)
        if not rows.num_rows:
            return
        numbers = pa.array(np.arange(self.added, self.added + rows.num_rows))
        self._held[place].append(rows.add_column(0, "number", numbers))
        self.added += rows.num_rows
        self._held_rows += rows.num_rows
        self._held_bytes += rows.nbytes
        if self._held_rows >= CHUNK_ROWS or self._held_bytes >= CHUNK_BYTES:
            self._write_runs()

    def settle(self, expected: int) -> bool:
        """Say that these are all. Whether as many tasks as expected were among them; no more may be."""
        self._write_runs()
        self._counts = np.ones(self.added, np.bool_)
        if self.added > expected:  # as a rule no task comes twice, and nothing has to be looked at
            ranks = joined(ranks for run in self._runs for ranks in _ranks(run))
            self._counts[ranks.numbers] = counting(ranks)
        return int(self._counts.sum()) == expected

    def runs(self, schema: pa.Schema) -> list[Iterator[pa.Table]]:
        """Of rows that count the columns of ``schema``, each run in order. May be asked for again."""
        return [self._read(run, schema) for run in self._runs]

    def _place(self, schema: pa.Schema) -> int:
        for place, known in enumerate(self.schemas):
            if known.equals(schema):
                return place
        self.schemas.append(schema)
        self._held.append([])
        return len(self.schemas) - 1

    def _write_runs(self) -> None:
        for held in filter(None, self._held):
            rows = pa.concat_tables(held).combine_chunks()
            held.clear()
            self._runs.append(temporary_file(SORTING))
            _write_run(self._runs[-1], rows.take(_order(rows)))
        self._held_rows = self._held_bytes = 0

    def _read(self, run: BufferedRandom, schema: pa.Schema) -> Iterator[pa.Table]:
        for rows in _batches(run):
            rows = rows.filter(pa.array(self._counts[rows.column(0).to_numpy()])).remove_column(0)
            yield conformed(rows, schema)


def merged(runs: Sequence[Iterable[pa.Table]]) -> Iterator[pa.Table]:
    """All rows of several runs in order; no two rows may have the same place in it."""
    heads = [_Head(run) for run in runs]
    while heads := [head for head in heads if head.fill()]:
        rows = pa.concat_tables([head.rows for head in heads]).combine_chunks()
        order, ends = _order(rows).to_numpy(), np.cumsum([head.rows.num_rows for head in heads])
        # What a run has yet to give comes after its last row that is here, so up to the first of these all is here.
        places = np.empty(len(order), np.int64)
        places[order] = np.arange(len(order))
        lasts = [places[end - 1] + 1 for head, end in zip(heads, ends, strict=True) if not head.ended]
        taken = order[: min(lasts, default=len(order))]
        yield rows.take(pa.array(taken))
        used = np.bincount(np.searchsorted(ends, taken, side="right"), minlength=len(heads))
        for head, count in zip(heads, used.tolist(), strict=True):
            head.rows = head.rows.slice(count)


class _Head:
    """What is in memory of a run."""

    def __init__(self, run: Iterable[pa.Table]) -> None:
        self.rows = pa.table({})
        self.ended = False
        self._run = iter(run)

    def fill(self) -> bool:
        """Whether there are rows, at least a batch of them unless the run ends."""
        pieces = [self.rows] if self.rows.num_rows else []
        while not self.ended and sum(piece.num_rows for piece in pieces) < BATCH_ROWS:
            more = next(self._run, None)
            self.ended = more is None
            pieces += [more] if more is not None and more.num_rows else []
        self.rows = pa.concat_tables(pieces) if pieces else self.rows
        return bool(pieces)


def _order(rows: pa.Table) -> pa.Array:
    return pc.sort_indices(rows.select([name for name, _ in _KEYS]), sort_keys=_KEYS)


def _write_run(file: BufferedRandom, rows: pa.Table) -> None:
    options = pa.ipc.IpcWriteOptions(compression="lz4")
    with local_disk(SORTING), pa.ipc.new_file(file, rows.schema, options=options) as writer:
        writer.write_table(rows, max_chunksize=BATCH_ROWS)


def _batches(run: BufferedRandom, columns: list[int] | None = None) -> Iterator[pa.Table]:
    run.seek(0)
    reader = pa.ipc.open_file(run, options=pa.ipc.IpcReadOptions(included_fields=columns))
    for number in range(reader.num_record_batches):
        yield pa.Table.from_batches([reader.get_batch(number)])


def _ranks(run: BufferedRandom) -> Iterator[Ranks]:
    columns = [0, *(METADATA_SCHEMA.names.index(name) + 1 for name in _RANKED)]
    return (ranks_of(rows, rows.column(0).to_numpy()) for rows in _batches(run, columns))
