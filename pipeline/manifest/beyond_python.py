"""Extra columns with dates, times or durations that Python cannot hold, which travel as text."""

from collections.abc import Collection, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import pyarrow as pa

from pipeline.manifest.uniting import READERS
from pipeline.output.moments import column_beyond_python
from pipeline.parquet import ParquetReader
from pipeline.storage.base import ObjectStore

if TYPE_CHECKING:
    from pipeline.manifest.open import ManifestFile


def beyond_python(
    store: ObjectStore, doubtful: Mapping[str, Collection[str]], files: "Sequence[ManifestFile]"
) -> tuple[str, ...]:
    """Return the extra columns that hold such a value in some file.

    Only columns that are doubtful by their statistics are read.
    """
    places = [
        (name, file.key, theirs)
        for file in files
        for name, theirs in file.extras.items()
        if theirs in doubtful[file.key]
    ]
    with ThreadPoolExecutor(READERS) as pool:
        found = pool.map(lambda place: _is_beyond(store, place[1], place[2]), places)
        return tuple(dict.fromkeys(place[0] for place, beyond in zip(places, found, strict=True) if beyond))


def text_warnings(names: Collection[str]) -> tuple[str, ...]:
    """Return a sentence for each of these columns."""
    return tuple(
        f"the extra column {name!r} is stored as text, since it holds dates, times or durations that Python, and with "
        "it Hugging Face's datasets, cannot hold"
        for name in names
    )


def _is_beyond(store: ObjectStore, key: str, name: str) -> bool:
    """Tell whether the column of a file has such a value. Reading its rows reports a file that breaks off."""
    try:
        with store.open(key) as file:
            return column_beyond_python(ParquetReader(file), name)
    except (pa.ArrowException, OSError):
        return False
