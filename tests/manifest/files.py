"""Manifests made and read the way every test here does it."""

from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.manifest.columns import ColumnMapping
from pipeline.manifest.open import Manifest, open_manifest
from pipeline.manifest.read import read_rows
from pipeline.manifest.rules import RowRules
from pipeline.output.schema import RESERVED
from pipeline.storage.s3_settings import S3Settings

RULES = RowRules(size_factor=8, schedulers=frozenset({"ddim", "euler"}), reserved=RESERVED)


def write(path: Path, table: pa.Table | dict[str, Any], **options: Any) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    pq.write_table(pa.table(table), path, **options)
    return path


def opened(path: Path | str, columns: ColumnMapping | None = None) -> Manifest:
    return open_manifest(str(path), columns=columns or {}, rules=RULES, s3=S3Settings())


def rows(manifest: Manifest) -> list[dict[str, Any]]:
    return [row for batch in read_rows(manifest) for row in batch.table.to_pylist()]
