"""Hugging Face's ``imagefolder``: images, and ``metadata.parquet`` whose ``file_name`` says which is which."""

import pyarrow as pa

from pipeline.export.committed import Committed, Row
from pipeline.export.writing import Progress, TableFile, put_images
from pipeline.output.schema import METADATA_SCHEMA, payload_columns
from pipeline.storage.base import ObjectStore


def export_imagefolder(committed: Committed, destination: ObjectStore, on_progress: Progress) -> None:
    """``images/<2 hex>/<task_id>.png`` and ``metadata.parquet`` at the root."""
    described = payload_columns(committed.schema.empty_table()).schema
    schema = pa.schema([METADATA_SCHEMA.field("file_name"), *described, METADATA_SCHEMA.field("verdict")])
    placed = ((row, _key(row, committed.extension)) for row in committed.rows())
    with TableFile(schema) as table:
        for row in put_images(committed, destination, placed, on_progress):
            table.add({**row, "file_name": _key(row, committed.extension)})
        table.put(destination, "metadata.parquet")


def _key(row: Row, extension: str) -> str:
    return f"images/{row['task_id'][:2]}/{row['task_id']}.{extension}"
