"""The tables of a run as files: ``metadata.parquet``, or numbered ones where there are too many rows for one."""

import hashlib
import re
from collections.abc import Iterable, Iterator, Sequence
from io import BufferedRandom
from itertools import count
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq

from pipeline.identity import Ids, IdSet
from pipeline.output.finalized import Table
from pipeline.output.layout import IMAGES_PREFIX, METADATA_KEY
from pipeline.output.local_disk import SORTING, local_disk, temporary_file
from pipeline.output.orphans import key_ids
from pipeline.output.sorting import BATCH_ROWS
from pipeline.parquet import ParquetReader
from pipeline.storage.base import ObjectInfo, ObjectStore

TABLE_ROWS = 5_000_000
"""The most rows of a file."""
AXES = ("seed", "guidance_scale", "num_inference_steps", "scheduler", "width", "height")
FEW = 12

_GROUP_ROWS = 2**16
_COPY_BYTES = 8 * 2**20
_PREFIX = "metadata-"
_NUMBERED = re.compile(re.escape(_PREFIX) + r"([0-9]{5,})\.parquet")


def table_keys(store: ObjectStore) -> list[str]:
    """The keys of the files that hold the images' metadata, in their order. Not all of them may count."""
    return [info.key for info in tables_there(store)]


def tables_there(store: ObjectStore) -> list[ObjectInfo]:
    single = store.head(METADATA_KEY)
    numbered = [info for info in store.list(_PREFIX) if is_table_key(info.key)]
    return ([single] if single else []) + sorted(numbered, key=lambda info: _number(info.key))


def is_table_key(key: str) -> bool:
    return key == METADATA_KEY or _NUMBERED.fullmatch(key) is not None


def new_keys(store: ObjectStore) -> Iterator[str]:
    """``metadata-00000.parquet`` and so on, beyond all that are there: a numbered file is never overwritten."""
    last = max(map(_number, table_keys(store)), default=-1)
    return (f"{_PREFIX}{number:05}.parquet" for number in count(last + 1))


def _number(key: str) -> int:
    found = _NUMBERED.fullmatch(key)
    return int(found[1]) if found else -1


class Rows:
    """Rows to come in pieces, taken so many at a time."""

    def __init__(self, pieces: Iterator[pa.Table], schema: pa.Schema) -> None:
        self.schema = schema
        self._pieces, self._held = pieces, schema.empty_table()

    def take(self, number: int) -> pa.Table:
        """The next rows, fewer at the end, in one chunk a column."""
        held, there = [self._held], self._held.num_rows
        while there < number and (more := next(self._pieces, None)) is not None:
            held.append(more)
            there += more.num_rows
        rows = pa.concat_tables(held)
        self._held = rows.slice(number)
        return rows.slice(0, number).combine_chunks()


def put_table(store: ObjectStore, key: str, rows: Rows, number: int) -> Table:
    """Write the next ``number`` rows. Groups are of one size, whatever pieces come: equal rows make equal bytes."""
    facts = _Facts()
    with temporary_file(SORTING) as file:
        with local_disk(SORTING), pq.ParquetWriter(file, rows.schema, compression="zstd") as writer:
            while facts.rows < number:
                group = rows.take(min(_GROUP_ROWS, number - facts.rows))
                assert group.num_rows, f"{facts.rows:,} of {number:,} rows came"
                writer.write_table(group)
                facts.add(group)
        file.flush()
        size_bytes = file.tell()
        file.seek(0)
        digest = hashlib.file_digest(file, "sha256").hexdigest()
        store.put_file(key, file)
    return facts.table(digest, size_bytes)


def fetch(store: ObjectStore, key: str, wanted: Table, file: BufferedRandom) -> bool:
    """Copy a table into a local file; whether it is as noted. Raises ``ObjectMissingError``."""
    digest = hashlib.sha256()
    for start in range(0, wanted.bytes, _COPY_BYTES):
        chunk = store.get_range(key, start, _COPY_BYTES)
        digest.update(chunk)
        with local_disk(SORTING):
            file.write(chunk)
    return digest.hexdigest() == wanted.sha256


def batches(file: BufferedRandom) -> Iterator[pa.Table]:
    """The rows of a table, few at a time."""
    file.seek(0)
    for batch in ParquetReader(file).batches(BATCH_ROWS):
        yield pa.Table.from_batches([batch])


def schema_of(store: ObjectStore, key: str) -> pa.Schema:
    with store.open(key) as file:
        return ParquetReader(file).schema.remove_metadata()


def few(values: Iterable[Any]) -> list[Any]:
    """The different ones in order, nulls last; of more than ``FEW`` the first ``FEW`` and the last."""
    ordered = sorted(set(values), key=lambda value: (value is None, value))
    return ordered if len(ordered) <= FEW else [*ordered[:FEW], ordered[-1]]


class _Facts:
    """What is noted of a table, gathered group by group."""

    def __init__(self) -> None:
        self.rows = 0
        self._prompts: list[Ids] = []
        self._values: dict[str, list[Any]] = {axis: [] for axis in AXES}
        self._objects: set[str] = set()

    def add(self, rows: pa.Table) -> None:
        self.rows += rows.num_rows
        self._prompts.append(key_ids(rows["prompt"].unique().to_pylist()))
        for axis, values in self._values.items():
            self._values[axis] = few([*values, *rows[axis].unique().to_pylist()])
        self._objects.update(_objects(rows))

    def table(self, sha256: str, size_bytes: int) -> Table:
        return Table(
            sha256=sha256,
            bytes=size_bytes,
            rows=self.rows,
            prompts=len(IdSet().union(self._prompts)),
            values=self._values,
            objects=sorted(self._objects),
        )


def _objects(rows: pa.Table) -> Sequence[str]:
    names = rows["file_name"].drop_null()
    if not len(names) or names[0].as_py().startswith(IMAGES_PREFIX):
        return ()
    keys: list[str] = pc.replace_substring_regex(names, "/[^/]*$", "").unique().to_pylist()
    return keys
