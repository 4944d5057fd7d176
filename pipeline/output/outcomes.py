"""Outcomes in columns: 17 bytes a task, read from Parquet without a Python object for any."""

from binascii import unhexlify
from collections.abc import Iterable, Iterator
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.identity import ID_BYTES, Ids, IdSet, ids_from_bytes

UNREADABLE = (pa.ArrowException, OSError, ValueError, KeyError, TypeError)
"""What reading a damaged Parquet file may raise; errors of the store are none of these."""

_BLOCK_IDS = 2**21
"""In an array: 32 MiB, from which on the C library gives memory back to the system as soon as it is freed."""


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Outcomes:
    """Tasks, and whether each has a picture."""

    ids: Ids
    ok: NDArray[np.bool_]

    def __len__(self) -> int:
        return len(self.ids)

    def __getitem__(self, tasks: slice) -> "Outcomes":
        return Outcomes(ids=self.ids[tasks], ok=self.ok[tasks])


def outcomes_of(part: pa.Table) -> Outcomes:
    """The outcomes in a part's columns ``task_id`` and ``status``."""
    return Outcomes(ids=ids_of_hex(part["task_id"]), ok=ok_of(part))


def ok_of(rows: pa.Table | pa.RecordBatch) -> NDArray[np.bool_]:
    """Which rows have a picture."""
    return np.asarray(pc.equal(rows["status"], "ok"), np.bool_)


def ids_of_hex(column: pa.ChunkedArray) -> Ids:
    """Ids from their hex digits. Raises ``ValueError`` for what is no id."""
    return ids_from_bytes(b"".join(map(_unhexed, column.chunks)))


def _unhexed(texts: pa.StringArray) -> bytes:
    if not len(texts):
        return b""
    _, offsets, digits = texts.buffers()
    ends = np.frombuffer(offsets, np.int32)[texts.offset : texts.offset + len(texts) + 1]
    if (np.diff(ends) != 2 * ID_BYTES).any():
        raise ValueError("a task_id is not 32 hex digits")
    return unhexlify(digits[int(ends[0]) : int(ends[-1])])


def united(blocks: list[Outcomes]) -> tuple[IdSet, IdSet]:
    """All tasks and those that failed, where ok wins. Empties ``blocks``, so that memory holds the ids once."""
    failed = IdSet().union([block.ids[~block.ok] for block in blocks])
    if len(failed):
        failed = failed.without(IdSet().union([block.ids[block.ok & failed.contains(block.ids)] for block in blocks]))
    count = sum(map(len, blocks))
    return IdSet.gathered((blocks.pop(0).ids for _ in range(len(blocks))), count), failed


def in_blocks(pieces: Iterable[Outcomes]) -> Iterator[Outcomes]:
    """The same in large arrays, the last of them not full: what is not filled takes no memory."""
    block, used = _empty_block(), 0
    for piece in pieces:
        while len(piece):
            taken = piece[: _BLOCK_IDS - used]
            block.ids[used : used + len(taken)] = taken.ids
            block.ok[used : used + len(taken)] = taken.ok
            used += len(taken)
            piece = piece[len(taken) :]
            if used == _BLOCK_IDS:
                yield block
                block, used = _empty_block(), 0
    yield block[:used]


def _empty_block() -> Outcomes:
    return Outcomes(ids=np.empty((_BLOCK_IDS, 2), np.uint64), ok=np.empty(_BLOCK_IDS, np.bool_))
