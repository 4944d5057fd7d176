"""One image of a run by its task id: from the tables, else from the parts that have come since."""

import re
from functools import partial
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import JobBrokenError
from pipeline.output.finalized import read_finalized
from pipeline.output.index import part_keys
from pipeline.output.layout import FAILURES_KEY, part_of_key
from pipeline.output.outcomes import UNREADABLE
from pipeline.output.parallel import in_parallel
from pipeline.output.part import read_part
from pipeline.output.precedence import one_per_task
from pipeline.output.schema import METADATA_SCHEMA
from pipeline.output.tables import table_keys
from pipeline.output.values import python_rows
from pipeline.parquet import ParquetReader
from pipeline.storage.base import ObjectStore

_NAMED = re.compile(r"([0-9a-f]{32})(?:-[0-9a-f]{8})?(?:\.[a-z]+)?")


def task_id_of(name: str) -> str | None:
    """The task that an image's file, a member of a tar or a bare id names by its last segment."""
    found = _NAMED.fullmatch(name.replace("\\", "/").rstrip("/").rpartition("/")[2])
    return found[1] if found else None


def find_row(store: ObjectStore, task_id: str) -> dict[str, Any] | None:
    """The metadata row of a task, of its image before that of a failure; None where there is no outcome."""
    for key in table_keys(store):
        if found := _in_table(store, key, task_id):
            return found
    since = _in_parts(store, task_id)
    if since is not None and since["status"] == "ok":
        return since
    failed = _in_table(store, FAILURES_KEY, task_id) if store.head(FAILURES_KEY) else None
    return since or failed


def _in_table(store: ObjectStore, key: str, task_id: str) -> dict[str, Any] | None:
    with store.open(key) as file:
        try:
            table = ParquetReader(file)
            for group in range(len(table.row_groups)):
                number = pc.index(table.read_row_group(group, ["task_id"])["task_id"], task_id).as_py()
                if number >= 0:
                    return _only(table.read_row_group(group).slice(number, 1))
        except UNREADABLE as error:
            raise JobBrokenError(f"a table cannot be read: {store.uri}/{key}: {error}") from None
    return None


def _in_parts(store: ObjectStore, task_id: str) -> dict[str, Any] | None:
    """Of parts that are in no table yet."""
    done = read_finalized(store).parts
    keys = [key for key in part_keys(store) if part_of_key(key) not in done]
    found = [rows for rows in in_parallel(partial(_in_part, store, task_id), keys) if rows is not None]
    if not found:
        return None
    counting: dict[str, Any] = one_per_task(
        pa.concat_tables([rows.select(METADATA_SCHEMA.names) for rows in found])
    ).to_pylist()[0]
    whole = next(rows for rows in found if rows["part_id"][0].as_py() == counting["part_id"])
    return _only(whole.slice(0, 1)) | counting


def _in_part(store: ObjectStore, task_id: str, key: str) -> pa.Table | None:
    if pc.index(read_part(store, key, ["task_id"])["task_id"], task_id).as_py() < 0:
        return None
    rows = read_part(store, key).replace_schema_metadata()
    return rows.filter(pc.equal(rows["task_id"], task_id))


def _only(rows: pa.Table) -> dict[str, Any]:
    (row,) = python_rows(rows)
    return row
