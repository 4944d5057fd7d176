"""The one type of an extra column whose type differs from file to file, by the rule of launches."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor

import pyarrow as pa
import pyarrow.types as t

from pipeline.manifest import arrow_types
from pipeline.output.extras import converted, united_type
from pipeline.parquet import ParquetReader
from pipeline.storage.base import ObjectStore

READERS = 16
"""Files read at a time: in a store far away each is a wait."""
_BATCH_ROWS = 65_536

Places = Mapping[pa.DataType, list[tuple[str, str]]]
"""Plain type → the files that have it, each with its name of the column."""


def settled_type(store: ObjectStore, places: Places) -> pa.DataType:
    """Return the type that holds every value of a column exactly, text where there is no other.

    Files are read only where their type leaves it open whether their values fit, such as 64-bit integers among floats.
    """
    kind = united_type(places)
    if t.is_string(kind):
        return kind
    open_ = [place for before, found in places.items() if not _always_fits(before, kind) for place in found]
    with ThreadPoolExecutor(READERS) as pool:
        fits = pool.map(lambda place: _fits(store, place[0], place[1], kind), open_)
        return kind if all(fits) else pa.string()


def _always_fits(before: pa.DataType, kind: pa.DataType) -> bool:
    if before == kind or t.is_null(before) or (t.is_floating(before) and t.is_floating(kind)):
        return True
    if not t.is_integer(before):
        return False
    wider = before.bit_width < 64 and (t.is_integer(kind) or kind == pa.float64())
    return bool(wider and before.bit_width < kind.bit_width)


def _fits(store: ObjectStore, key: str, name: str, kind: pa.DataType) -> bool:
    with store.open(key) as file:
        for batch in ParquetReader(file).batches(_BATCH_ROWS, [name]):
            try:
                converted(arrow_types.as_plain(batch.column(name)), kind)
            except pa.ArrowException:
                return False
    return True
