"""Parquet is read on the calling thread, so that no thread of Arrow needs Python while it shuts down."""

import io
import threading

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.parquet import READ_AHEAD_BYTES, ParquetReader
from tests.exits import VERBS, Exits

ROWS, GROUP_ROWS = 4_000, 500
TABLE = pa.table(
    {"number": np.arange(ROWS), "text": [f"row {number}" for number in range(ROWS)], "noise": np.random.rand(ROWS)}
)


class Watched(io.BytesIO):
    """A file that notes which threads read it."""

    def __init__(self, body: bytes) -> None:
        super().__init__(body)
        self.threads: set[int] = set()

    def read(self, size: int | None = -1) -> bytes:
        self.threads.add(threading.get_ident())
        return super().read(size)


class Remote(io.RawIOBase):
    """A file of which each read is a request."""

    def __init__(self, body: bytes) -> None:
        super().__init__()
        self._body, self._position = body, 0
        self.requests = 0

    def readable(self) -> bool:
        return True

    def seekable(self) -> bool:
        return True

    def seek(self, offset: int, whence: int = 0) -> int:
        self._position = {0: 0, 1: self._position, 2: len(self._body)}[whence] + offset
        return self._position

    def readinto(self, buffer: bytearray) -> int:  # type: ignore[override]
        self.requests += 1
        found = self._body[self._position : self._position + len(buffer)]
        buffer[: len(found)] = found
        self._position += len(found)
        return len(found)


@pytest.fixture(scope="module")
def body() -> bytes:
    buffer = io.BytesIO()
    pq.write_table(TABLE, buffer, row_group_size=GROUP_ROWS)
    return buffer.getvalue()


def test_every_way_of_reading_stays_on_the_calling_thread(body: bytes) -> None:
    watched = Watched(body)
    reader = ParquetReader(watched)
    assert reader.read().equals(TABLE)
    assert reader.read_row_group(1, ["text"]).equals(TABLE.slice(GROUP_ROWS, GROUP_ROWS).select(["text"]))
    assert pa.Table.from_batches(reader.batches(300, row_groups=[0, 7])).num_rows == 2 * GROUP_ROWS
    assert reader.row_groups == (GROUP_ROWS,) * (ROWS // GROUP_ROWS)
    assert watched.threads == {threading.get_ident()}


def test_bytes_are_read_as_a_file_is(body: bytes) -> None:
    assert ParquetReader(body).read(["noise", "number"]).equals(TABLE.select(["noise", "number"]))


def test_a_column_that_is_not_there_is_an_error(body: bytes) -> None:
    with pytest.raises(KeyError, match="absent"):
        ParquetReader(body).read(["number", "absent"])


def test_neighbouring_columns_share_a_request(body: bytes) -> None:
    assert len(body) < READ_AHEAD_BYTES
    remote = Remote(body)
    assert ParquetReader(remote).read().equals(TABLE)  # type: ignore[arg-type]  # a raw file, as S3Store opens it
    assert remote.requests <= 4, "the footer, then all row groups"


@pytest.fixture(scope="module")
def exits(tmp_path_factory: pytest.TempPathFactory) -> Exits:
    return Exits(tmp_path_factory.mktemp("exits"))


@pytest.mark.parametrize("verb", VERBS)
def test_verbs_that_read_parquet_end_with_exit_code_0(exits: Exits, verb: str) -> None:
    """`python -m tests.exits 100` does it a hundred times."""
    assert exits.codes(verb, 2) == [0] * 2
