"""Parts to ``metadata.parquet`` and ``failures.parquet``: one row per task, in manifest order. Idempotent.

Where one picture answers several manifest rows, ``requests.parquet`` says so. ``README.md`` is for who loads them.
"""

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from hashlib import sha256

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.output.card import write_card
from pipeline.output.finalized import write_finalized
from pipeline.output.index import load_index, part_keys, write_segment
from pipeline.output.layout import FAILURES_KEY, METADATA_KEY, REQUESTS_KEY
from pipeline.output.part import read_part
from pipeline.output.payloads import StoredObject
from pipeline.output.requests import ORDER, united_requests
from pipeline.output.schema import METADATA_SCHEMA
from pipeline.storage.base import ObjectStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Finalized:
    ok: int
    failed: int
    parts: int


def finalize(store: ObjectStore) -> Finalized:
    """Write the tables of all that is committed, and an index segment that makes the next start fast."""
    keys = part_keys(store)
    with ThreadPoolExecutor(16) as pool:
        tables = list(pool.map(lambda key: read_part(store, key), keys))
    rows = one_per_task(_joined([METADATA_SCHEMA.empty_table(), *tables]))
    rows = rows.sort_by([(name, "ascending") for name in ORDER])
    ok = rows.filter(pc.equal(rows["status"], "ok"))
    failed = rows.filter(pc.not_equal(rows["status"], "ok"))
    written = {METADATA_KEY: _write(store, METADATA_KEY, ok)}
    if failed.num_rows or store.head(FAILURES_KEY):
        written[FAILURES_KEY] = _write(store, FAILURES_KEY, failed)
    requests = united_requests(store, rows)
    if requests is not None:
        written[REQUESTS_KEY] = _write(store, REQUESTS_KEY, requests)
    write_card(store, ok, failed.num_rows)
    write_segment(store, load_index(store))
    write_finalized(store, written)
    return Finalized(ok=ok.num_rows, failed=failed.num_rows, parts=len(keys))


def _joined(tables: list[pa.Table]) -> pa.Table:
    """All rows. A manifest's extra column may have had several types: numbers are widened, the rest becomes text."""
    try:
        return pa.concat_tables(tables, promote_options="permissive")
    except (pa.ArrowTypeError, pa.ArrowInvalid):
        texts = [name for name, types in _extra_types(tables).items() if len(types) > 1]
        return pa.concat_tables([_with_texts(table, texts) for table in tables], promote_options="permissive")


def _extra_types(tables: list[pa.Table]) -> dict[str, set[pa.DataType]]:
    found: dict[str, set[pa.DataType]] = {}
    for table in tables:
        for field in table.schema:
            if field.name not in METADATA_SCHEMA.names and not pa.types.is_null(field.type):
                found.setdefault(field.name, set()).add(field.type)
    return found


def _with_texts(table: pa.Table, names: list[str]) -> pa.Table:
    for name in names:
        if name in table.column_names:
            texts = [None if value is None else str(value) for value in table[name].to_pylist()]
            table = table.set_column(table.column_names.index(name), name, pa.array(texts, pa.string()))
    return table


def one_per_task(rows: pa.Table) -> pa.Table:
    """Of several rows for one task: ok before failed, then the latest, then the smaller ``part_id``."""
    ranked = pa.table(
        {
            "task_id": rows["task_id"],
            "failed": pc.not_equal(rows["status"], "ok"),
            "created_at": rows["created_at"],
            "part_id": rows["part_id"],
            "number": pa.array(np.arange(rows.num_rows)),
        }
    ).sort_by(
        [("task_id", "ascending"), ("failed", "ascending"), ("created_at", "descending"), ("part_id", "ascending")]
    )
    ids = ranked["task_id"].combine_chunks()
    first = np.ones(len(ids), np.bool_)
    if len(ids) > 1:
        first[1:] = pc.not_equal(ids[1:], ids[:-1]).to_numpy(zero_copy_only=False)
    return rows.take(ranked["number"].filter(pa.array(first)))


def _write(store: ObjectStore, key: str, table: pa.Table) -> StoredObject:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    body = buffer.getvalue()
    store.put(key, body)
    return StoredObject(sha256=sha256(body).hexdigest(), bytes=len(body))
