"""Hugging Face's ``imagefolder``: images, and ``metadata.parquet`` whose ``file_name`` says which is which."""

from collections.abc import Set as AbstractSet

import pyarrow as pa

from pipeline.export.committed import Committed, Row
from pipeline.export.writing import Progress, TableFile, put_images
from pipeline.output.features import names_paths
from pipeline.output.schema import METADATA_SCHEMA, payload_columns
from pipeline.readable import replaced
from pipeline.storage.base import ObjectStore

WHOLE = pa.decimal128(20, 0)
"""Every whole number of 64 bits."""


def export_imagefolder(committed: Committed, destination: ObjectStore, on_progress: Progress) -> None:
    """``images/<2 hex>/<task_id>.png`` and ``metadata.parquet`` at the root."""
    described = payload_columns(committed.schema.empty_table()).schema
    others = [_for_folders(field, committed.large) for field in described]
    schema = pa.schema([METADATA_SCHEMA.field("file_name"), *others, METADATA_SCHEMA.field("verdict")])
    placed = ((row, _key(row, committed.extension)) for row in committed.rows())
    with TableFile(schema) as table:
        for row in put_images(committed, destination, placed, on_progress):
            table.add({**row, "file_name": _key(row, committed.extension)})
        table.put(destination, "metadata.parquet")


def _for_folders(field: pa.Field, large: AbstractSet[str]) -> pa.Field:
    """Return the column as ``imagefolder`` reads it.

    It takes plain strings under names such as ``source_file_name`` for paths of images, and fails over whole numbers
    above 2**63 - 1.
    """
    if names_paths(pa.schema([field])):
        field = field.with_type(replaced(field.type, pa.string(), pa.string_view()))
    return field.with_type(replaced(field.type, pa.uint64(), WHOLE)) if field.name in large else field


def _key(row: Row, extension: str) -> str:
    return f"images/{row['task_id'][:2]}/{row['task_id']}.{extension}"
