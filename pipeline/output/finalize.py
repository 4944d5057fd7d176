"""Parts to ``metadata.parquet`` and ``failures.parquet``: one row per task, in manifest order. Idempotent."""

import io
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.output.index import load_index, write_segment
from pipeline.output.layout import FAILURES_KEY, METADATA_KEY, PARTS_PREFIX
from pipeline.output.part import read_part
from pipeline.output.schema import METADATA_SCHEMA
from pipeline.storage.base import ObjectStore

_ORDER = (
    "manifest_file", "manifest_row", "width", "height", "scheduler", "seed", "guidance_scale", "num_inference_steps",
)  # fmt: skip


@dataclass(frozen=True, slots=True, kw_only=True)
class Finalized:
    ok: int
    failed: int
    parts: int


def finalize(store: ObjectStore) -> Finalized:
    """Write the tables of all that is committed, and an index segment that makes the next start fast."""
    keys = [info.key for info in store.list(PARTS_PREFIX)]
    with ThreadPoolExecutor(16) as pool:
        tables = list(pool.map(lambda key: read_part(store, key), keys))
    rows = one_per_task(_joined([METADATA_SCHEMA.empty_table(), *tables]))
    rows = rows.sort_by([(name, "ascending") for name in _ORDER])
    ok = rows.filter(pc.equal(rows["status"], "ok"))
    failed = rows.filter(pc.not_equal(rows["status"], "ok"))
    _write(store, METADATA_KEY, ok)
    if failed.num_rows or store.head(FAILURES_KEY):
        _write(store, FAILURES_KEY, failed)
    write_segment(store, load_index(store))
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


def _write(store: ObjectStore, key: str, table: pa.Table) -> None:
    buffer = io.BytesIO()
    pq.write_table(table, buffer, compression="zstd")
    store.put(key, buffer.getvalue())
