"""Committed images: a sample of their rows, and their bytes wherever the layout keeps them."""

import io
import tarfile
from collections.abc import Callable, Iterable, Iterator
from functools import partial
from typing import Any, BinaryIO

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc

from pipeline.errors import JobBrokenError, ObjectMissingError
from pipeline.identity import IdSet
from pipeline.output.finalize import one_per_task
from pipeline.output.index import load_index, part_keys
from pipeline.output.layout import DATA_PREFIX, object_of
from pipeline.output.outcomes import UNREADABLE, outcomes_of
from pipeline.output.parallel import in_parallel
from pipeline.output.part import read_part
from pipeline.output.schema import IMAGE, METADATA_SCHEMA
from pipeline.parquet import ParquetReader
from pipeline.storage.base import ObjectStore

_AHEAD_BYTES = 4 * 2**20
"""Of an archive that is read from front to back, fetched at a time."""


def sample_images(store: ObjectStore, number: int, seed: int) -> list[dict[str, Any]]:
    """Metadata rows of so many images, or of all if there are fewer: the same ones for the same seed.

    Ids are digests, so images evenly spread over them are a fair sample of everything.
    """
    ids = load_index(store).ok.ids()
    edges = np.linspace(0, len(ids), min(number, len(ids)) + 1).astype(np.int64)
    wanted = IdSet(ids[np.random.default_rng(seed).integers(edges[:-1], edges[1:])])
    tables = in_parallel(partial(_rows_of, store, wanted), part_keys(store))
    rows: list[dict[str, Any]] = one_per_task(pa.concat_tables([METADATA_SCHEMA.empty_table(), *tables])).to_pylist()
    return rows


def _rows_of(store: ObjectStore, wanted: IdSet, key: str) -> pa.Table:
    rows = read_part(store, key, METADATA_SCHEMA.names)
    outcomes = outcomes_of(rows)
    return rows.filter(pa.array(outcomes.ok & wanted.contains(outcomes.ids)))


def read_image(store: ObjectStore, file_name: str) -> bytes:
    """An image's file as it was encoded.

    Raises ``ObjectMissingError``, and ``JobBrokenError`` if the object that should hold it does not.
    """
    key, member = object_of(file_name)
    if member is None:
        return store.get(key)
    read = _from_table if key.startswith(DATA_PREFIX) else _from_tar
    with store.open(key) as file:
        try:
            return read(file, member)
        except (*UNREADABLE, tarfile.TarError) as error:
            raise JobBrokenError(f"{store.uri}/{key} does not hold {member}: {error}") from None


def _from_tar(file: BinaryIO, member: str) -> bytes:
    with tarfile.open(fileobj=file, mode="r:") as tar:
        found = tar.extractfile(member)
        assert found is not None  # only folders and links have no content
        return found.read()


def _from_table(file: BinaryIO, member: str) -> bytes:
    parquet = ParquetReader(file)
    for group in range(len(parquet.row_groups)):
        names = parquet.read_row_group(group, ["task_id"])["task_id"]
        row = pc.index(names, member.rpartition(".")[0]).as_py()
        if row >= 0:
            image: bytes = parquet.read_row_group(group, [IMAGE.name])[IMAGE.name][row]["bytes"].as_py()
            return image
    raise KeyError(member)


def read_images(store: ObjectStore, file_names: Iterable[str]) -> Iterator[tuple[str, Callable[[], bytes]]]:
    """Images, each with what gives its bytes and raises what ``read_image`` does; in the order of the objects.

    An object that holds several is read once, from front to back, as the iterator goes on; images that are objects of
    their own are not read before they are asked for.
    """
    members: dict[str, dict[str, str]] = {}
    for file_name in file_names:
        key, member = object_of(file_name)
        if member is None:
            yield file_name, partial(store.get, key)
        else:
            members.setdefault(key, {})[member] = file_name
    for key, wanted in members.items():
        for member, body in _found(store, key, wanted):
            if member in wanted:
                yield wanted.pop(member), partial(bytes, body)
        # What was not found is asked for by itself, which says why.
        yield from ((file_name, partial(read_image, store, file_name)) for file_name in wanted.values())


def _found(store: ObjectStore, key: str, wanted: dict[str, str]) -> Iterator[tuple[str, bytes]]:
    """Members and their bytes, as far as the object can be read."""
    read = _all_from_table if key.startswith(DATA_PREFIX) else _all_from_tar
    try:
        with store.open(key) as file:
            yield from read(file, wanted)
    except (ObjectMissingError, *UNREADABLE, tarfile.TarError):
        return


def _all_from_tar(file: BinaryIO, wanted: dict[str, str]) -> Iterator[tuple[str, bytes]]:
    ahead: Any = file if isinstance(file, io.BufferedReader) else io.BufferedReader(_raw(file), _AHEAD_BYTES)
    with tarfile.open(fileobj=ahead, mode="r:") as tar:
        for member in tar:
            content = tar.extractfile(member) if member.name in wanted else None
            if content is not None:
                yield member.name, content.read()


def _raw(file: Any) -> io.RawIOBase:
    """What stores open is such a file, if it is not buffered already."""
    assert isinstance(file, io.RawIOBase)
    return file


def _all_from_table(file: BinaryIO, wanted: dict[str, str]) -> Iterator[tuple[str, bytes]]:
    parquet = ParquetReader(file)
    for group in range(len(parquet.row_groups)):
        names = {member.rpartition(".")[0]: member for member in wanted}
        ids = parquet.read_row_group(group, ["task_id"])["task_id"].to_pylist()
        if names.keys() & set(ids):
            images = parquet.read_row_group(group, [IMAGE.name])[IMAGE.name]
            for number, task_id in enumerate(ids):
                if task_id in names:
                    yield names[task_id], images[number]["bytes"].as_py()
