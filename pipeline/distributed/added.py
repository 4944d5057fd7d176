"""The list of what a launch added to a run: a table beside its note, made as outcomes come, on local disk."""

import tempfile
from collections import Counter
from types import TracebackType

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.output.layout import added_key
from pipeline.output.schema import METADATA_SCHEMA
from pipeline.storage.base import ObjectStore

COLUMNS = ("task_id", "file_name", "status", "prompt_id", "manifest_file", "manifest_row")
SCHEMA = pa.schema([METADATA_SCHEMA.field(name).with_nullable(True) for name in COLUMNS])
_GATHERED = 2**16
"""Rows that are written together."""


class Added:
    """Takes the outcomes of a launch; use as a context, since it keeps a temporary file."""

    def __init__(self) -> None:
        self.by_manifest: Counter[str] = Counter()
        """Good images by the file that asked for them."""
        self._file = tempfile.TemporaryFile(prefix="darkroom-added-")  # noqa: SIM115  # closed by __exit__
        self._writer = pq.ParquetWriter(self._file, SCHEMA, compression="zstd")
        self._waiting: list[pa.Table] = []
        self._rows = 0

    def __enter__(self) -> "Added":
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._writer.close()
        self._file.close()

    def take(self, outcomes: pa.Table) -> None:
        """Rows with ``COLUMNS`` and any others."""
        good = outcomes.filter(pc.equal(outcomes["status"], "ok"))
        self.by_manifest.update(good["manifest_file"].to_pylist())
        self._waiting.append(outcomes.select(COLUMNS).cast(SCHEMA))
        self._rows += outcomes.num_rows
        if sum(table.num_rows for table in self._waiting) >= _GATHERED:
            self._write()

    def store(self, store: ObjectStore, launch_id: str) -> str | None:
        """Write the list, at the end; returns its key, None when there is nothing in it."""
        if not self._rows:
            return None
        self._write()
        self._writer.close()
        key = added_key(launch_id)
        store.put_file(key, self._file)
        return key

    def _write(self) -> None:
        if self._waiting:
            self._writer.write_table(pa.concat_tables(self._waiting))
            self._waiting = []
