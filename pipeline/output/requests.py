"""``requests.parquet``: which picture answers which manifest row and point, where one picture answers several.

A picture is rendered once, and its metadata names one row that asks for it. A launch of a job with repeats therefore
stores its requests before it renders, and finalize unites those of all launches with what was committed.
"""

import io
from collections.abc import Iterable, Iterator
from concurrent.futures import ThreadPoolExecutor
from datetime import datetime
from hashlib import blake2b, sha256

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline.errors import JobBrokenError, ObjectMissingError
from pipeline.identity import ID_BYTES
from pipeline.output.finalized import Table, forget_finalized
from pipeline.output.layout import REQUESTS_KEY, REQUESTS_PREFIX, requests_key
from pipeline.output.outcomes import UNREADABLE
from pipeline.output.schema import METADATA_SCHEMA
from pipeline.parquet import ParquetReader
from pipeline.planning.requests import REQUEST_COLUMNS
from pipeline.storage.base import ObjectStore

ORDER = (
    "manifest_file", "manifest_row", "width", "height", "scheduler", "seed", "guidance_scale", "num_inference_steps",
)  # fmt: skip
"""What makes a request, and the order of all tables."""

OBJECT_ROWS = 1_000_000
"""Requests per object, about 18 bytes each."""

_SCHEMA = pa.schema([METADATA_SCHEMA.field(name) for name in REQUEST_COLUMNS])
_OUTCOME_COLUMNS = (*REQUEST_COLUMNS, "created_at", "status", "file_name")
_READERS = 16


def write_requests(store: ObjectStore, tables: Iterable[pa.Table]) -> None:
    """Store a launch's requests (``pipeline/planning/requests.py``) in objects named by digest, if not there already.

    One that is there is read: what somebody damaged is written again. Requests of the latest launch count, see
    ``united_requests``: so what is there but older than the objects of other launches is written once more.
    """
    there = {info.key: info.modified for info in store.list(REQUESTS_PREFIX)}
    ours: set[str] = set()
    for table in _cut(tables):
        body = _body(table)
        key = requests_key(_digest(body))
        if key not in there or not _holds(store, key, body):
            store.put(key, body)
        ours.add(key)
    for key in _outdated(there, ours):
        store.put(key, store.get(key))


def has_requests(store: ObjectStore) -> bool:
    """Whether any launch stored requests."""
    return next(store.list(REQUESTS_PREFIX), None) is not None


def request_keys(store: ObjectStore) -> list[str]:
    """Of the objects with the requests of launches."""
    return [info.key for info in store.list(REQUESTS_PREFIX)]


def are_named(key: str, body: bytes) -> bool:
    """Whether these are the bytes that the name of an object with requests tells of."""
    return key == requests_key(_digest(body))


def asked_digest(store: ObjectStore) -> str:
    """Changes whenever what launches asked for does; empty where none stored requests."""
    found = [f"{info.key} {info.modified.isoformat()}" for info in store.list(REQUESTS_PREFIX)]
    return blake2b("\n".join(found).encode(), digest_size=ID_BYTES).hexdigest() if found else ""


def put_requests(store: ObjectStore, tables: Iterable[str]) -> Table | None:
    """Write ``requests.parquet`` if there is to be one, by the ``tables`` of images and failures with these keys."""
    if not has_requests(store):
        return None
    table = united_requests(store, pa.concat_tables([_outcomes(store, key) for key in tables]))
    if table is None:
        return None
    body = _body(table)
    forget_finalized(store)
    store.put(REQUESTS_KEY, body)
    return Table(sha256=sha256(body).hexdigest(), bytes=len(body), rows=table.num_rows)


def united_requests(store: ObjectStore, rows: pa.Table) -> pa.Table | None:
    """The content of ``requests.parquet``; None where every picture was asked for once and no such table was written.

    ``rows`` are the outcomes of all tasks, one each; they are requests themselves, those of launches without repeats.
    Of several requests for the same row and point, which are left by a manifest that was edited, the latest counts.
    Raises ``JobBrokenError`` naming an object that is damaged.
    """
    found = sorted(store.list(REQUESTS_PREFIX), key=lambda info: (info.modified, info.key))
    if not found:
        return None
    committed = rows.select([*REQUEST_COLUMNS, "created_at"]).sort_by("created_at").select(REQUEST_COLUMNS)
    with ThreadPoolExecutor(_READERS) as pool:
        stored = list(pool.map(lambda info: _read(store, info.key), found))
    asked = _latest(pa.concat_tables([committed.cast(_SCHEMA), *stored]))
    repeats = asked.num_rows - pc.count_distinct(asked["task_id"]).as_py()
    return _with_outcomes(asked, rows) if repeats or store.head(REQUESTS_KEY) else None


def _cut(tables: Iterable[pa.Table]) -> Iterator[pa.Table]:
    """The same rows, so many at a time wherever batches end, so that the same rows make the same objects."""
    held = _SCHEMA.empty_table()
    for table in tables:
        ids = _hex(table["task_id"].combine_chunks())
        table = table.set_column(table.column_names.index("task_id"), _SCHEMA.field("task_id"), ids)
        held = pa.concat_tables([held, table.cast(_SCHEMA)])
        while held.num_rows >= OBJECT_ROWS:
            yield held.slice(0, OBJECT_ROWS)
            held = held.slice(OBJECT_ROWS)
    if held.num_rows:
        yield held


def _hex(ids: pa.Array) -> pa.Array:
    """Ids of 16 bytes as hex digits, without an object for each."""
    packed = ids.buffers()[1][ids.offset * ID_BYTES : (ids.offset + len(ids)) * ID_BYTES]
    digits, ends = packed.to_pybytes().hex().encode(), np.arange(len(ids) + 1, dtype=np.int32) * (2 * ID_BYTES)
    return pa.StringArray.from_buffers(len(ids), pa.py_buffer(ends), pa.py_buffer(digits))


def _body(table: pa.Table) -> bytes:
    buffer = io.BytesIO()
    pq.write_table(table.combine_chunks(), buffer, compression="zstd")
    return buffer.getvalue()


def _digest(body: bytes) -> str:
    return blake2b(body, digest_size=ID_BYTES).hexdigest()


def _holds(store: ObjectStore, key: str, body: bytes) -> bool:
    try:
        return store.get(key) == body
    except ObjectMissingError:  # dropped since it was listed
        return False


def _outdated(there: dict[str, datetime], ours: set[str]) -> list[str]:
    """Our objects that are older than others; a server may give times to the second."""
    others = [modified for key, modified in there.items() if key not in ours]
    return [key for key in sorted(ours & there.keys()) if others and there[key] <= max(others)]


def _outcomes(store: ObjectStore, key: str) -> pa.Table:
    with store.open(key) as file:
        return ParquetReader(file).read(_OUTCOME_COLUMNS)


def _read(store: ObjectStore, key: str) -> pa.Table:
    body = store.get(key)
    if not are_named(key, body):
        raise JobBrokenError(
            f"requests are not as they were written: {store.uri}/{key}. The `darkroom render` that stored them does it "
            "again; `darkroom verify --drop-damaged` goes on without them"
        )
    try:
        return ParquetReader(body).read().cast(_SCHEMA)
    except UNREADABLE as error:
        raise JobBrokenError(f"requests cannot be read: {store.uri}/{key}: {error}") from None


def _latest(requests: pa.Table) -> pa.Table:
    """One request per row and point, the last of them, in order."""
    ordered = requests.sort_by([(name, "ascending") for name in ORDER])  # stable
    last = np.append(_changes(ordered), True)
    return ordered.filter(pa.array(last))


def _changes(ordered: pa.Table) -> NDArray[np.bool_]:
    """For each row but the last, whether the next is another request."""
    changed = np.zeros(ordered.num_rows - 1, np.bool_)
    for name in ORDER:
        one, next_one = ordered[name][:-1], ordered[name][1:]
        both_null = pc.and_(one.is_null(), next_one.is_null())
        same = pc.fill_null(pc.or_kleene(pc.equal(one, next_one), both_null), False)
        changed |= ~same.to_numpy()
    return changed


def _with_outcomes(asked: pa.Table, rows: pa.Table) -> pa.Table:
    at = pc.index_in(asked["task_id"], value_set=rows["task_id"])
    status = pc.fill_null(rows["status"].take(at), "missing")
    return asked.append_column("status", status).append_column("file_name", rows["file_name"].take(at))
