"""Which tasks a run has committed: index segments, and the parts that no segment covers yet."""

import io
import json
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import blake2b

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import JobBrokenError
from pipeline.identity import ID_BYTES, Ids, IdSet, ids_from_bytes
from pipeline.output.layout import INDEX_PREFIX, PARTS_PREFIX, part_of_key
from pipeline.output.part import read_part
from pipeline.storage.base import ObjectStore

_READERS = 16
_COVERED = b"darkroom.parts"


@dataclass(frozen=True, slots=True, kw_only=True)
class CommittedIndex:
    """Every task with an outcome; ok wins over failed."""

    ok: IdSet
    failed: IdSet
    """Those that have no picture."""
    uncovered: tuple[str, ...]
    """Keys of parts that no segment covers."""

    def all(self) -> IdSet:
        return self.ok.union([self.failed.ids()])


def load_index(store: ObjectStore) -> CommittedIndex:
    """Read what is committed. Raises ``JobBrokenError`` naming a part or segment that cannot be read."""
    ok: list[Ids] = []
    failed: list[Ids] = []
    covered: set[str] = set()
    # Parts are listed first: a segment written meanwhile may then cover more, never less, than was listed.
    parts = [info.key for info in store.list(PARTS_PREFIX)]
    for key in [info.key for info in store.list(INDEX_PREFIX)]:
        table = _segment(store, key)
        covered.update(json.loads(table.schema.metadata[_COVERED]))
        _sort_in(table, ok, failed)
    uncovered = tuple(key for key in parts if part_of_key(key) not in covered)
    for table in _read_ids(store, uncovered):
        _sort_in(table, ok, failed)
    done = IdSet().union(ok)
    broken = IdSet().union(failed).ids()
    return CommittedIndex(ok=done, failed=IdSet(broken[~done.contains(broken)]), uncovered=uncovered)


def write_segment(store: ObjectStore, index: CommittedIndex) -> None:
    """Gather the parts not covered yet in one immutable object, named by the digest of their names."""
    if not index.uncovered:
        return
    names = [part_of_key(key) for key in index.uncovered]
    table = pa.concat_tables(_read_ids(store, index.uncovered)).sort_by("task_id")
    table = table.replace_schema_metadata({_COVERED: json.dumps(names)})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    name = blake2b("".join(sorted(names)).encode(), digest_size=ID_BYTES).hexdigest()
    store.put(f"{INDEX_PREFIX}{name}.parquet", buffer.getvalue())


def _read_ids(store: ObjectStore, keys: tuple[str, ...]) -> Iterator[pa.Table]:
    def read(key: str) -> pa.Table:
        table = read_part(store, key, ["task_id", "status"])
        ids = pa.array(map(bytes.fromhex, table["task_id"].to_pylist()), pa.binary(ID_BYTES))
        return pa.table({"task_id": ids, "status": table["status"]})

    with ThreadPoolExecutor(_READERS) as pool:
        yield from pool.map(read, keys)


def _segment(store: ObjectStore, key: str) -> pa.Table:
    try:
        table = pq.read_table(io.BytesIO(store.get(key)), partitioning=None)
    except pa.ArrowException as error:
        raise JobBrokenError(f"an index segment cannot be read: {store.uri}/{key}: {error}") from None
    return table


def _sort_in(table: pa.Table, ok: list[Ids], failed: list[Ids]) -> None:
    ids = np.asarray(ids_from_bytes(b"".join(table["task_id"].to_pylist())))
    is_ok = pc.equal(table["status"], "ok").to_numpy()
    ok.append(ids[is_ok])
    failed.append(ids[~is_ok])
