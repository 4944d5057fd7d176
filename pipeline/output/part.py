"""The commit: payloads first, then one metadata file that names exactly what it makes true.

A part's name is the digest of the tasks in it and that of its own bytes, so no launch can overwrite another's commit,
and a worker that finds its shard's part already there has nothing to do.
"""

import io
import json
import threading
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from datetime import datetime
from hashlib import sha256
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.errors import JobBrokenError
from pipeline.identity import part_id
from pipeline.output.encode import encode
from pipeline.output.layout import PNG_FILES, Packing, part_key, part_prefix
from pipeline.output.payloads import Stored, StoredObject, open_payloads
from pipeline.output.provenance import provenance_of
from pipeline.output.schema import METADATA_SCHEMA
from pipeline.output.verdicts import kept_verdict
from pipeline.parquet import ParquetReader
from pipeline.readable import in_readable_form
from pipeline.rendering.results import Outcome, Rendered
from pipeline.storage.base import ObjectStore

_OBJECTS = b"darkroom.objects"


@dataclass(frozen=True, slots=True, kw_only=True)
class RunFacts:
    """Columns that are the same in every row of a run."""

    model_id: str
    model_fingerprint: str
    dtype: str
    darkroom_version: str
    attempt: int = 0
    """Which of the launches that try failed tasks again; 0 for the others."""
    packing: Packing = PNG_FILES
    """No column, but how all images are kept."""


class PartWriter:
    """Stores the outcomes of one shard as they come, from any thread, and commits them together."""

    def __init__(self, store: ObjectStore, shard: pa.Table, facts: RunFacts) -> None:
        """``shard`` has planned tasks with distinct ids."""
        self._store, self._facts = store, facts
        self._shard = shard if facts.packing.columns is None else in_readable_form(shard)
        self._payloads = open_payloads(store, facts.packing)
        self._numbers = {item.hex(): number for number, item in enumerate(shard["task_id"].to_pylist())}
        self._rows: dict[int, dict[str, Any]] = {}
        self._lock = threading.Lock()
        self.packed = facts.packing.layout != "files"
        """Whether its images are kept in one object."""
        self.bytes = 0
        """Of the images stored so far."""

    def committed(self) -> pa.Table | None:
        """The metadata of this very shard if it was committed, its failed tasks in this same attempt."""
        for found in self._store.list(part_prefix(part_id(self._shard["task_id"].to_pylist()))):
            rows = read_part(self._store, found.key)
            failed = rows.filter(pc.not_equal(rows["status"], "ok"))
            if not pc.any(pc.less(failed["attempt"], self._facts.attempt)).as_py():
                return rows
        return None

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
            self.bytes += row.get("file_bytes", 0)

    def commit(self, before: Callable[[str], None] = lambda _: None) -> pa.Table:
        """Write the part for the outcomes so far and return its metadata; nothing is true before.

        ``before`` gets the part's id just before it is committed.
        """
        with self._lock:
            numbers = sorted(self._rows)
            rows = [self._rows[number] for number in numbers]
        shard = self._shard.take(pa.array(numbers, pa.int64()))
        name = part_id(shard["task_id"].to_pylist())
        table = _metadata(shard, rows, name, self._facts)
        is_ok = pc.equal(table["status"], "ok")
        table = _with_images(table, is_ok, self._payloads.store(name, table.filter(is_ok)))
        before(name)
        put_part(self._store, name, table)
        return table

    def _stored(self, outcome: Rendered) -> dict[str, Any]:
        facts = self._facts
        text = provenance_of(
            outcome.task,
            facts.packing.provenance,
            model_id=facts.model_id,
            model_fingerprint=facts.model_fingerprint,
        )
        image = encode(outcome.pixels, facts.packing, text)
        self._payloads.add(outcome.task.task_id, image)
        return {
            "status": "ok",
            "verdict": kept_verdict(outcome),
            "pixel_sha256": image.pixel_sha256,
            "file_sha256": image.file_sha256,
            "file_bytes": len(image.body),
            "format": facts.packing.format,
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
        "attempt": facts.attempt,
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


def _with_images(table: pa.Table, is_ok: pa.ChunkedArray, stored: Stored) -> pa.Table:
    """Names the images' files, and in the schema's metadata the objects that hold several."""
    names = pa.array(stored.file_names, pa.string())
    column = pc.replace_with_mask(table["file_name"].combine_chunks(), is_ok.combine_chunks(), names)
    table = table.set_column(table.column_names.index("file_name"), METADATA_SCHEMA.field("file_name"), column)
    return with_objects(table, stored.objects)


def put_part(store: ObjectStore, name: str, part: pa.Table) -> None:
    """The commit itself. ``name`` is the ``part_id`` of its tasks."""
    buffer = io.BytesIO()
    pq.write_table(part, buffer, compression="zstd")
    body = buffer.getvalue()
    store.put(part_key(name, sha256(body).hexdigest()), body)


def with_objects(part: pa.Table, objects: Mapping[str, StoredObject]) -> pa.Table:
    """The part that names these objects with several images, and no others."""
    described = {key: asdict(stored) for key, stored in objects.items()}
    return part.replace_schema_metadata({_OBJECTS: json.dumps(described)} if described else None)


def objects_of(part: pa.Table) -> dict[str, StoredObject]:
    """By key, the objects with several images that a part names; single images have their digests in their rows."""
    found = json.loads((part.schema.metadata or {}).get(_OBJECTS, b"{}"))
    return {key: StoredObject(**described) for key, described in found.items()}


def read_part(store: ObjectStore, key: str, columns: list[str] | None = None) -> pa.Table:
    """A part's metadata, whole or only some columns. ``JobBrokenError`` names a part that cannot be read."""
    try:
        return ParquetReader(store.get(key)).read(columns)
    except pa.ArrowException as error:
        raise JobBrokenError(f"a part cannot be read: {store.uri}/{key}: {error}") from None
