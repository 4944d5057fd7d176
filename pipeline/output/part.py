"""The commit: payloads first, then one metadata file that names exactly what it makes true.

A part's name is the digest of the tasks in it and that of its own bytes, so no launch can overwrite another's commit,
and a worker that finds its shard's part already there has nothing to do.
"""

import io
import threading
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import JobBrokenError
from pipeline.identity import part_id
from pipeline.output.encode import encode_png
from pipeline.output.layout import image_key, part_key, part_prefix
from pipeline.output.schema import METADATA_SCHEMA
from pipeline.rendering.results import Outcome, Rendered
from pipeline.storage.base import ObjectStore


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """Columns that are the same in every row of a run."""

    model_id: str
    model_fingerprint: str
    dtype: str
    darkroom_version: str


class PartWriter:
    """Stores the outcomes of one shard as they come, from any thread, and commits them together."""

    def __init__(self, store: ObjectStore, shard: pa.Table, facts: RunFacts) -> None:
        """``shard`` has planned tasks with distinct ids."""
        self._store, self._shard, self._facts = store, shard, facts
        self._numbers = {item.hex(): number for number, item in enumerate(shard["task_id"].to_pylist())}
        self._rows: dict[int, dict[str, Any]] = {}
        self._lock = threading.Lock()

    def committed(self) -> pa.Table | None:
        """The metadata of this very shard if an earlier attempt committed it."""
        found = next(self._store.list(part_prefix(part_id(self._shard["task_id"].to_pylist()))), None)
        return None if found is None else read_part(self._store, found.key)

    def put(self, outcome: Outcome, ready_at: datetime) -> None:
        """Encode and store one outcome's picture and note its row; ``ready_at``: when its pixels were (UTC)."""
        row = (
            self._stored(outcome)
            if isinstance(outcome, Rendered)
            else _failed(outcome.verdict, outcome.stage, outcome.error)
        )
        row["created_at"] = ready_at
        with self._lock:
            self._rows[self._numbers[outcome.task.task_id]] = row

    def commit(self) -> pa.Table:
        """Write the part for the outcomes so far and return its metadata; nothing is true before."""
        with self._lock:
            numbers = sorted(self._rows)
            rows = [self._rows[number] for number in numbers]
        shard = self._shard.take(pa.array(numbers, pa.int64()))
        name = part_id(shard["task_id"].to_pylist())
        table = _metadata(shard, rows, name, self._facts)
        buffer = io.BytesIO()
        pq.write_table(table, buffer, compression="zstd")
        body = buffer.getvalue()
        self._store.put(part_key(name, sha256(body).hexdigest()), body)
        return table

    def _stored(self, outcome: Rendered) -> dict[str, Any]:
        image = encode_png(outcome.pixels)
        key = image_key(outcome.task.task_id, image.file_sha256)
        self._store.put(key, image.body)
        return {
            "file_name": key,
            "status": "ok",
            "verdict": "ok",
            "pixel_sha256": image.pixel_sha256,
            "file_sha256": image.file_sha256,
            "file_bytes": len(image.body),
            "format": "png",
            "prompt_truncated": outcome.prompt_truncated,
            "rows": outcome.rows,
            "device": outcome.device,
            "render_s": outcome.render_s,
            "encode_s": image.encode_s,
        }


def _failed(verdict: str, stage: str, error: str) -> dict[str, Any]:
    return {"status": "failed", "verdict": verdict, "error": f"{stage}: {error}"}


def _metadata(shard: pa.Table, rows: list[dict[str, Any]], name: str, facts: RunFacts) -> pa.Table:
    constants = {
        "part_id": name,
        "attempt": 0,
        "model_id": facts.model_id,
        "model_fingerprint": facts.model_fingerprint,
        "dtype": facts.dtype,
        "darkroom_version": facts.darkroom_version,
    }
    columns: list[pa.ChunkedArray | pa.Array] = []
    for field in METADATA_SCHEMA:
        if field.name == "task_id":
            columns.append(pa.array([item.hex() for item in shard["task_id"].to_pylist()], pa.string()))
        elif field.name in shard.column_names:
            columns.append(shard[field.name].cast(field.type))
        else:
            values = [row.get(field.name, constants.get(field.name)) for row in rows]
            columns.append(pa.array(values, field.type))
    extras = [name for name in shard.column_names if name not in METADATA_SCHEMA.names and name != "evaluations"]
    schema = METADATA_SCHEMA
    for extra in extras:
        schema = schema.append(shard.schema.field(extra))
    return pa.table([*columns, *(shard[extra] for extra in extras)], schema=schema)


def read_part(store: ObjectStore, key: str, columns: list[str] | None = None) -> pa.Table:
    """A part's metadata, whole or only some columns. ``JobBrokenError`` names a part that cannot be read."""
    try:
        return pq.read_table(io.BytesIO(store.get(key)), columns=columns, partitioning=None)
    except pa.ArrowException as error:
        raise JobBrokenError(f"a part cannot be read: {store.uri}/{key}: {error}") from None
