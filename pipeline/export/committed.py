"""The images of a finished run, one after the other with their metadata, whatever the layout keeps them in."""

import hashlib
import tarfile
import threading
from collections import OrderedDict
from collections.abc import Callable, Collection, Iterator, Mapping
from functools import partial
from io import BufferedRandom
from typing import Any, Protocol

import pyarrow as pa

from pipeline.errors import InputError, JobBrokenError, ObjectMissingError
from pipeline.output.extras import conformed
from pipeline.output.features import large_columns
from pipeline.output.finalized import read_finalized
from pipeline.output.index import part_keys
from pipeline.output.layout import DATA_PREFIX, EXTENSIONS, object_of, part_of_key
from pipeline.output.local_disk import EXPORTING, local_disk, temporary_file
from pipeline.output.moments import columns_beyond_python
from pipeline.output.outcomes import UNREADABLE
from pipeline.output.run import Run, read_run
from pipeline.output.schema import IMAGE
from pipeline.output.tables import is_table_key, schema_of
from pipeline.parquet import ParquetReader
from pipeline.readable import in_readable_form, readable_schema
from pipeline.storage.base import ObjectStore

BATCH_ROWS = 256
_COLUMN_ROWS = 2**16
OPEN_ARCHIVES = 4
"""Packed objects that are kept as local copies: rows that follow each other are mostly of the same."""
_COPY_BYTES = 8 * 2**20

Row = Mapping[str, Any]


class Committed:
    """What there is to export. Close it after use: it has local copies of packed objects."""

    def __init__(self, store: ObjectStore) -> None:
        """Raises ``InputError`` for a run whose tables do not have all that is committed, or no image."""
        run, left = read_run(store), read_finalized(store)
        tables = {key: table for key, table in left.tables.items() if is_table_key(key)}
        if run is None or not tables or left.parts != {part_of_key(key) for key in part_keys(store)}:
            raise InputError(
                "the tables of this output do not have all that is committed",
                where="OUTPUT",
                value=store.uri,
                allowed="an output after `darkroom finalize OUTPUT`, and no launch at work on it",
            )
        self.run: Run = run
        self.number = sum(table.rows for table in tables.values())
        """Of images."""
        if not self.number:
            raise InputError("this output has no image", where="OUTPUT", value=store.uri, allowed="one with images")
        self._texts = frozenset[str]().union(*(_beyond_python(store, key) for key in tables))
        self.schema: pa.Schema = _with_texts(readable_schema(schema_of(store, next(iter(tables)))), self._texts)
        self.large = frozenset[str]().union(*(large_columns(store, key) for key in tables))
        """Columns with whole numbers that ``datasets`` does not take as integers from Python objects."""
        self.extension = EXTENSIONS[run.packing.format]
        self._store, self._tables = store, list(tables)
        self._archives = _Archives(store)

    def close(self) -> None:
        self._archives.close()

    def rows(self) -> Iterator[Row]:
        """The metadata of all images, in the order of the manifest."""
        for key in self._tables:
            with self._store.open(key) as file:
                for batch in ParquetReader(file).batches(BATCH_ROWS):
                    rows = in_readable_form(pa.Table.from_batches([batch]))
                    yield from conformed(rows, _with_texts(rows.schema, self._texts)).to_pylist()

    def column(self, name: str) -> Iterator[pa.Array]:
        """The values of one column of the metadata, in pieces."""
        for key in self._tables:
            with self._store.open(key) as file:
                yield from (batch.column(0) for batch in ParquetReader(file).batches(_COLUMN_ROWS, [name]))

    def image(self, row: Row) -> bytes:
        """The file of a row's image, from any thread. ``JobBrokenError`` where it is not what was committed."""
        key, member = object_of(row["file_name"])
        try:
            body = self._store.get(key) if member is None else self._archives.read(key, member)
        except (ObjectMissingError, KeyError, tarfile.TarError, *UNREADABLE) as error:
            raise JobBrokenError(f"an image cannot be read: {self._store.uri}/{row['file_name']}: {error}") from None
        if hashlib.sha256(body).hexdigest() != row["file_sha256"]:
            raise JobBrokenError(
                f"an image is not as it was committed: {self._store.uri}/{row['file_name']}. `darkroom verify`"
            )
        return body


def _beyond_python(store: ObjectStore, key: str) -> set[str]:
    """Return the columns of a table that become text, since readers fail over some date, time or duration in them."""
    with store.open(key) as file:
        return columns_beyond_python(ParquetReader(file))


def _with_texts(schema: pa.Schema, names: Collection[str]) -> pa.Schema:
    return pa.schema([field.with_type(pa.string()) if field.name in names else field for field in schema])


class _Archive(Protocol):
    def read(self, member: str) -> bytes:
        """Raises ``KeyError`` for a member that it does not have."""


class _Archives:
    """Packed objects as local copies, the last few that were asked for."""

    def __init__(self, store: ObjectStore) -> None:
        self._store = store
        self._open: OrderedDict[str, tuple[BufferedRandom, _Archive]] = OrderedDict()
        self._lock = threading.Lock()

    def read(self, key: str, member: str) -> bytes:
        with self._lock:
            if key not in self._open:
                self._add(key)
            self._open.move_to_end(key)
            return self._open[key][1].read(member)

    def close(self) -> None:
        while self._open:
            self._open.popitem()[1][0].close()

    def _add(self, key: str) -> None:
        if len(self._open) >= OPEN_ARCHIVES:
            self._open.popitem(last=False)[1][0].close()
        file = _copy(partial(self._store.get_range, key))
        kind: Callable[[BufferedRandom], _Archive] = _Table if key.startswith(DATA_PREFIX) else _Tar
        try:
            self._open[key] = file, kind(file)
        except BaseException:
            file.close()
            raise


class _Tar:
    def __init__(self, file: BufferedRandom) -> None:
        self._tar = tarfile.open(fileobj=file, mode="r:")  # noqa: SIM115  # closed with its file

    def read(self, member: str) -> bytes:
        found = self._tar.extractfile(member)
        assert found is not None  # only folders and links have no content
        return found.read()


class _Table:
    """Keeps the images of one row group."""

    def __init__(self, file: BufferedRandom) -> None:
        self._table = ParquetReader(file)
        groups = range(len(self._table.row_groups))
        self._group_of = {name: group for group in groups for name in self._column(group, "task_id")}
        self._group: int | None = None
        self._images: dict[str, bytes] = {}

    def read(self, member: str) -> bytes:
        name = member.rpartition(".")[0]
        group = self._group_of[name]
        if group != self._group:
            images = self._column(group, IMAGE.name)
            self._images = {
                name: image["bytes"] for name, image in zip(self._column(group, "task_id"), images, strict=True)
            }
            self._group = group
        return self._images[name]

    def _column(self, group: int, name: str) -> list[Any]:
        values: list[Any] = self._table.read_row_group(group, [name])[name].to_pylist()
        return values


def _copy(read: Callable[[int, int], bytes]) -> BufferedRandom:
    file, start = temporary_file(EXPORTING), 0
    try:
        while chunk := read(start, _COPY_BYTES):
            with local_disk(EXPORTING):
                file.write(chunk)
            start += len(chunk)
            if len(chunk) < _COPY_BYTES:
                break
        file.seek(0)
    except BaseException:
        file.close()
        raise
    return file
