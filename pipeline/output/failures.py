"""Why tasks have no image: read from ``failures.parquet`` and the parts it does not have yet."""

from collections.abc import Iterable, Iterator
from functools import partial

import pyarrow as pa

from pipeline.errors import JobBrokenError, ObjectMissingError
from pipeline.identity import IdSet
from pipeline.output.finalized import read_finalized
from pipeline.output.index import CommittedIndex, part_keys
from pipeline.output.layout import FAILURES_KEY, part_of_key
from pipeline.output.local_disk import SORTING, temporary_file
from pipeline.output.outcomes import UNREADABLE, ids_of_hex, ok_of
from pipeline.output.parallel import in_parallel
from pipeline.output.part import read_part
from pipeline.output.precedence import one_per_task
from pipeline.output.schema import METADATA_SCHEMA
from pipeline.output.tables import batches, fetch
from pipeline.storage.base import ObjectStore

_COLUMNS = ["task_id", "part_id", "status", "verdict", "error", "created_at"]
_SCHEMA = pa.schema([METADATA_SCHEMA.field(name) for name in _COLUMNS])


def failed_rows(store: ObjectStore, index: CommittedIndex) -> pa.Table:
    """A row for each failed task of the index, with ``verdict`` and ``error``; tasks dropped since have none.

    Raises ``JobBrokenError`` naming a part that cannot be read.
    """
    parts, left = part_keys(store), read_finalized(store)
    if left.tables and left.parts <= set(map(part_of_key, parts)):
        new = [key for key in parts if part_of_key(key) not in left.parts]
        tables = [*_in_table(store, index.failed), *_in_parts(store, index.failed, new)]
        rows = one_per_task(pa.concat_tables([_none(), *tables]))
        if rows.num_rows == len(index.failed):
            return rows
    return one_per_task(pa.concat_tables([_none(), *_in_parts(store, index.failed, parts)]))


def _in_table(store: ObjectStore, failed: IdSet) -> Iterator[pa.Table]:
    """Nothing where the table is not as it was noted: a finalize may replace it."""
    table = read_finalized(store).tables.get(FAILURES_KEY)
    if table is None:
        return
    with temporary_file(SORTING) as file:
        try:
            sound = fetch(store, FAILURES_KEY, table, file)
        except ObjectMissingError:
            return
        for rows in batches(file) if sound else ():
            yield _failed(rows.select(_COLUMNS), failed)


def _in_parts(store: ObjectStore, failed: IdSet, keys: Iterable[str]) -> Iterator[pa.Table]:
    return in_parallel(partial(_in_part, store, failed), keys)


def _in_part(store: ObjectStore, failed: IdSet, key: str) -> pa.Table:
    try:
        return _failed(read_part(store, key, _COLUMNS), failed)
    except ObjectMissingError:  # dropped since it was listed
        return _none()
    except UNREADABLE as error:
        raise JobBrokenError(f"a part cannot be read: {store.uri}/{key}: {error}") from None


def _failed(rows: pa.Table, failed: IdSet) -> pa.Table:
    """The failures among them of tasks that no other attempt has made good."""
    rows = rows.cast(_SCHEMA).filter(pa.array(~ok_of(rows)))
    return rows.filter(pa.array(failed.contains(ids_of_hex(rows["task_id"]))))


def _none() -> pa.Table:
    return _SCHEMA.empty_table()
