"""From parts to tables: the tables that are there, and the rows of parts that none of them has yet.

A file of images that is full is never touched. A smaller one is merged with what is new when that is no less, so that
many small launches leave few files and each row is written few times.
"""

from collections.abc import Iterable, Iterator, Mapping
from contextlib import ExitStack, suppress
from functools import partial
from io import BufferedRandom

import pyarrow as pa

from pipeline.errors import JobBrokenError, ObjectMissingError
from pipeline.output import tables
from pipeline.output.extras import conformed, united, with_texts
from pipeline.output.finalized import Left, Table, forget_finalized
from pipeline.output.index import CommittedIndex
from pipeline.output.layout import FAILURES_KEY, METADATA_KEY
from pipeline.output.local_disk import SORTING, temporary_file
from pipeline.output.outcomes import UNREADABLE, ids_of_hex, ok_of
from pipeline.output.parallel import in_parallel
from pipeline.output.part import read_part
from pipeline.output.sorting import Sorter, merged
from pipeline.storage.base import ObjectStore


class OutgrownError(Exception):
    """What is new cannot stand beside what the tables have: rows would have to change, or types of columns."""


def renewed(
    store: ObjectStore, index: CommittedIndex, base: Left, new: Iterable[str], put: set[str]
) -> dict[str, Table]:
    """The tables of images and failures, by key, once the rows of ``new`` parts are among those that ``base`` has.

    The key of each table that is written is added to ``put``, also where it comes to nothing in the end. Raises
    ``OutgrownError``, which it does not do without tables to begin with, and ``JobBrokenError`` naming a part that
    cannot be read.
    """
    with ExitStack() as files:
        renewal = _Renewal(store, index, base, files, put)
        renewal.gather(new)
        return renewal.write()


class _Renewal:
    def __init__(self, store: ObjectStore, index: CommittedIndex, base: Left, files: ExitStack, put: set[str]) -> None:
        self._store, self._index, self._files, self._written = store, index, files, put
        self._images = {key: table for key, table in base.tables.items() if tables.is_table_key(key)}
        self._failures = base.tables.get(FAILURES_KEY)
        self._ok, self._failed = files.enter_context(Sorter()), files.enter_context(Sorter())
        self._new_images = len(index.tasks) - len(index.failed) - sum(table.rows for table in self._images.values())

    def gather(self, parts: Iterable[str]) -> None:
        """Take in the rows of parts, then the earlier failures where they do not stay as they are."""
        for rows in in_parallel(partial(_read, self._store), parts):
            ok = ok_of(rows)
            self._ok.add(rows.filter(pa.array(ok)))
            self._add_failures(rows.filter(pa.array(~ok)))
        if self._failures and self._failures_change():
            for rows in tables.batches(self._local(FAILURES_KEY, self._failures)):
                self._add_failures(rows)
        failures = len(self._index.failed) if self._failures_change() else 0
        if not (self._ok.settle(self._new_images) and self._failed.settle(failures)):
            raise OutgrownError("tasks of new parts are in the tables already")

    def write(self) -> dict[str, Table]:
        own = [tables.schema_of(self._store, key) for key in self._images][:1]
        schemas = [*own, *self._ok.schemas]
        schema = united(schemas)
        if own and not schema.equals(own[0]):
            raise OutgrownError("columns of new parts have other types")
        try:
            return self._tables(schema)
        except pa.ArrowInvalid as error:
            if own:
                raise OutgrownError(str(error)) from None
            return self._tables(with_texts(schemas))

    def _tables(self, schema: pa.Schema) -> dict[str, Table]:
        written = self._image_tables(schema)
        if self._failures_change():
            rows = tables.Rows(merged(self._failed.runs(schema)), schema)
            forget_finalized(self._store)
            written[FAILURES_KEY] = self._put(FAILURES_KEY, rows, len(self._index.failed))
        elif self._failures:
            written[FAILURES_KEY] = self._failures
        return written

    def _image_tables(self, schema: pa.Schema) -> dict[str, Table]:
        if self._images and not self._new_images:
            return self._images
        taken = taken_in(self._images, self._new_images)
        written = {key: table for key, table in self._images.items() if key not in taken}
        held = [self._conformed(key, schema) for key in taken]
        rows = tables.Rows(merged([*self._ok.runs(schema), *held]), schema)
        count = self._new_images + sum(self._images[key].rows for key in taken)
        if count <= tables.TABLE_ROWS and not written:
            forget_finalized(self._store)
            return {METADATA_KEY: self._put(METADATA_KEY, rows, count)}
        for key, start in zip(tables.new_keys(self._store), range(0, count, tables.TABLE_ROWS), strict=False):
            written[key] = self._put(key, rows, min(tables.TABLE_ROWS, count - start))
        return written

    def _put(self, key: str, rows: tables.Rows, number: int) -> Table:
        self._written.add(key)
        return tables.put_table(self._store, key, rows, number)

    def _failures_change(self) -> bool:
        if self._failures is None:
            return bool(len(self._index.failed)) or self._store.head(FAILURES_KEY) is not None
        return self._failed.added > 0 or self._failures.rows != len(self._index.failed)

    def _add_failures(self, rows: pa.Table) -> None:
        """Those of tasks that have no image."""
        self._failed.add(rows.filter(pa.array(self._index.failed.contains(ids_of_hex(rows["task_id"])))))

    def _conformed(self, key: str, schema: pa.Schema) -> Iterator[pa.Table]:
        return (conformed(rows, schema) for rows in tables.batches(self._local(key, self._images[key])))

    def _local(self, key: str, table: Table) -> BufferedRandom:
        file = self._files.enter_context(temporary_file(SORTING))
        with suppress(ObjectMissingError):
            if tables.fetch(self._store, key, table, file):
                return file
        raise OutgrownError(f"{key} is not as it was written")


def taken_in(images: Mapping[str, Table], new_rows: int) -> list[str]:
    """Keys of the files whose rows are written anew with ``new_rows``: all of them as long as one file can hold all."""
    rows = sum(table.rows for table in images.values())
    if METADATA_KEY in images or rows + new_rows <= tables.TABLE_ROWS:
        return list(images)
    taken: list[str] = []
    for key in reversed(list(images)):
        if images[key].rows > new_rows or images[key].rows >= tables.TABLE_ROWS:
            break
        taken.append(key)
        new_rows += images[key].rows
    return taken


def _read(store: ObjectStore, key: str) -> pa.Table:
    try:
        return read_part(store, key)
    except UNREADABLE as error:
        raise JobBrokenError(f"a part cannot be read: {store.uri}/{key}: {error}") from None
