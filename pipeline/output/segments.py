"""Index segments: the outcomes of many parts, sorted, in one immutable object.

A segment is named like a part, by the digest of what it says and by that of its own bytes. Who reads one compares what
was read with the name: Parquet does not notice every damage.
"""

import io
import json
from collections.abc import Iterator
from dataclasses import dataclass
from hashlib import blake2b, sha256

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import JobBrokenError
from pipeline.identity import ID_BYTES, IdSet, ids_from_bytes, ids_to_bytes
from pipeline.output.layout import INDEX_PREFIX, part_of_key
from pipeline.output.outcomes import UNREADABLE, Outcomes, in_blocks, ok_of
from pipeline.parquet import ParquetReader
from pipeline.storage.base import ObjectStore

_COVERED = b"darkroom.parts"
_SCHEMA = pa.schema([("task_id", pa.binary(ID_BYTES)), ("status", pa.string())])
_GROUP_IDS = 2**20
_BATCH_IDS = 2**17
_BUFFER_BYTES = 8 * 2**20
"""Bytes of a column that are held at a time; by default Arrow would hold whole columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Segment:
    """What an index segment says."""

    parts: frozenset[str]
    """Names of the parts it covers."""
    blocks: tuple[Outcomes, ...]


def segment_keys(store: ObjectStore) -> list[str]:
    return [info.key for info in store.list(INDEX_PREFIX)]


def put_segment(store: ObjectStore, parts: frozenset[str], tasks: IdSet, failed: IdSet) -> str:
    """Write the segment of these parts, which have these tasks; returns its key."""
    names, buffer, digest = sorted(parts), io.BytesIO(), _Digest()
    schema = _SCHEMA.with_metadata({_COVERED: json.dumps(names)})
    with pq.ParquetWriter(buffer, schema, compression="zstd", use_dictionary=["status"]) as writer:
        for ids in tasks.blocks(_GROUP_IDS):
            packed, ok = ids_to_bytes(ids), ~failed.contains(ids)
            digest.update(packed, ok)
            column = pa.FixedSizeBinaryArray.from_buffers(_SCHEMA.types[0], len(ids), [None, pa.py_buffer(packed)])
            writer.write_table(pa.table([column, pc.if_else(pa.array(ok), "ok", "failed")], schema=schema))
    body = buffer.getvalue()
    key = f"{INDEX_PREFIX}{digest.of(names)}-{sha256(body).hexdigest()[:8]}.parquet"
    store.put(key, body)
    return key


def read_segment(store: ObjectStore, key: str) -> Segment:
    """Raises ``JobBrokenError`` if it cannot be read, or does not say what its name promises."""
    with store.open(key) as file:
        try:
            parquet, digest = ParquetReader(file, buffer_size=_BUFFER_BYTES), _Digest()
            names = json.loads(parquet.schema.metadata[_COVERED])
            blocks = tuple(in_blocks(_outcomes(parquet, digest)))
            if not part_of_key(key).startswith(f"{digest.of(names)}-"):
                raise ValueError("it does not say what its name promises")
        except UNREADABLE as error:
            raise JobBrokenError(f"an index segment cannot be read: {store.uri}/{key}: {error}") from None
    return Segment(parts=frozenset(names), blocks=blocks)


def _outcomes(parquet: ParquetReader, digest: "_Digest") -> Iterator[Outcomes]:
    for batch in parquet.batches(_BATCH_IDS, _SCHEMA.names):
        column, ok = batch["task_id"], ok_of(batch)
        start, stop = column.offset * ID_BYTES, (column.offset + len(column)) * ID_BYTES
        packed = column.buffers()[1][start:stop]
        digest.update(packed, ok)
        yield Outcomes(ids=ids_from_bytes(packed), ok=ok)


class _Digest:
    """Of what a segment says: ids, outcomes and parts, in order, however they are cut into batches."""

    def __init__(self) -> None:
        self._ids, self._ok = blake2b(digest_size=ID_BYTES), blake2b(digest_size=ID_BYTES)

    def update(self, packed_ids: bytes | pa.Buffer, ok: NDArray[np.bool_]) -> None:
        self._ids.update(packed_ids)
        self._ok.update(ok.tobytes())

    def of(self, parts: list[str]) -> str:
        """Hex."""
        whole = blake2b(self._ids.digest() + self._ok.digest(), digest_size=ID_BYTES)
        whole.update(json.dumps(parts).encode())
        return whole.hexdigest()
