"""Where exports go: any store, with tables and archives made in a local file first, so that memory holds neither."""

import io
import json
import tarfile
from collections.abc import Callable, Iterable, Iterator, Mapping
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.errors import OutputError, StoreError
from pipeline.export.committed import Committed, Row
from pipeline.output.layout import EXPORT_MARK
from pipeline.output.local_disk import EXPORTING, local_disk, temporary_file
from pipeline.output.parallel import in_parallel
from pipeline.storage.base import ObjectStore

Progress = Callable[[int], None]
"""Gets the number of images that are exported."""
_GROUP_ROWS = 4096
_MARK = {EXPORT_MARK: b"true"}


def require_empty(destination: ObjectStore) -> None:
    """``OutputError`` where something is already: an export is never mixed with anything."""
    try:
        found = next(iter(destination.list()), None)
    except StoreError as error:
        raise OutputError(f"this place cannot be read: {error}", where="DEST", value=destination.uri) from None
    if found is not None:
        raise OutputError(
            f"there is something at this place, {found.key} for one",
            where="DEST",
            value=destination.uri,
            allowed="an empty or new directory or prefix",
        )


def put_images(
    committed: Committed,
    destination: ObjectStore,
    placed: Iterable[tuple[Row, str]],
    on_progress: Progress,
    convert: Callable[[Row, bytes], bytes] = lambda _, body: body,
) -> Iterator[Row]:
    """Write the image of every row under its key, many at once; yields the rows in order as theirs are there."""

    def put(item: tuple[Row, str]) -> Row:
        row, key = item
        destination.put(key, convert(row, committed.image(row)))
        return row

    for done, row in enumerate(in_parallel(put, placed), 1):
        on_progress(done)
        yield row


class TableFile:
    """A Parquet file written row by row, marked so that no folder of prompts takes it for one. Use as a context."""

    def __init__(self, schema: pa.Schema) -> None:
        self._schema, self._held = schema, list[Mapping[str, Any]]()
        self._file = temporary_file(EXPORTING)
        self._writer = pq.ParquetWriter(self._file, schema.with_metadata(_MARK), compression="zstd")

    def __enter__(self) -> "TableFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._writer.close()
        self._file.close()

    def add(self, row: Mapping[str, Any]) -> None:
        """A row; columns it lacks are null."""
        self._held.append(row)
        if len(self._held) == _GROUP_ROWS:
            self._write()

    def put(self, destination: ObjectStore, key: str) -> None:
        """Store it; nothing can be added after."""
        self._write()
        self._writer.close()
        self._file.flush()
        destination.put_file(key, self._file)

    def _write(self) -> None:
        if not self._held:
            return
        with local_disk(EXPORTING):
            self._writer.write_table(pa.Table.from_pylist(self._held, schema=self._schema))
        self._held = []


class TarFile:
    """A tar whose bytes follow from its members. Use as a context."""

    def __init__(self) -> None:
        self._file = temporary_file(EXPORTING)
        self._tar = tarfile.open(fileobj=self._file, mode="w", format=tarfile.USTAR_FORMAT)  # noqa: SIM115  # below

    def __enter__(self) -> "TarFile":
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    def add(self, name: str, body: bytes) -> None:
        member = tarfile.TarInfo(name)
        member.size = len(body)
        with local_disk(EXPORTING):
            self._tar.addfile(member, io.BytesIO(body))

    def put(self, destination: ObjectStore, key: str) -> None:
        self._tar.close()
        self._file.flush()
        destination.put_file(key, self._file)


def put_json(destination: ObjectStore, key: str, value: Any, indent: int | None = None) -> None:
    destination.put(key, json.dumps(value, ensure_ascii=False, indent=indent).encode())
