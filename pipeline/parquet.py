"""Parquet files, read on the calling thread only.

A thread of Arrow's pools that drops the last reference to a Python file, or to Python bytes, needs the interpreter.
While the interpreter shuts down, CPython ends such a thread in the middle of C++ code, which aborts the process:
"terminate called without an active exception", exit code 134. Nothing read here reaches those pools: columns are
neither prefetched nor decoded in parallel. Every module reads Parquet through this one.
"""

import io
from collections.abc import Iterator, Sequence
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

READ_AHEAD_BYTES = 2**20
"""Bytes that one request to object storage fetches at least; small neighbouring columns then share a request."""


class ParquetReader:
    """One open Parquet file.

    ``source`` is a file as an ``ObjectStore`` opens it, or the bytes of one. The caller closes the file.
    Raises ``pa.ArrowException`` or ``OSError`` for what is not Parquet, here and in every read.
    """

    def __init__(self, source: BinaryIO | bytes, *, buffer_size: int = 0, verify_checksums: bool = False) -> None:
        opened = pa.BufferReader(source) if isinstance(source, bytes) else pa.PythonFile(_buffered(source), mode="r")
        self._file = pq.ParquetFile(
            opened, pre_buffer=False, buffer_size=buffer_size, page_checksum_verification=verify_checksums
        )

    @property
    def metadata(self) -> pq.FileMetaData:
        """The file's footer."""
        return self._file.metadata

    @property
    def schema(self) -> pa.Schema:
        """The Arrow schema, with its metadata."""
        return self._file.schema_arrow

    @property
    def row_groups(self) -> tuple[int, ...]:
        """The number of rows of each row group."""
        return tuple(self.metadata.row_group(number).num_rows for number in range(self.metadata.num_row_groups))

    def read(self, columns: Sequence[str] | None = None) -> pa.Table:
        """Return the whole table, or some columns of it. Raise ``KeyError`` for a column that is not there."""
        return self._file.read(self._present(columns), use_threads=False)

    def read_row_group(self, number: int, columns: Sequence[str] | None = None) -> pa.Table:
        """Return one row group, as ``read`` does."""
        return self._file.read_row_group(number, self._present(columns), use_threads=False)

    def batches(
        self, rows: int, columns: Sequence[str] | None = None, row_groups: Sequence[int] | None = None
    ) -> Iterator[pa.RecordBatch]:
        """Yield batches of at most ``rows`` rows, of all row groups or of some."""
        wanted: dict[str, Any] = {} if row_groups is None else {"row_groups": list(row_groups)}
        yield from self._file.iter_batches(rows, columns=self._present(columns), use_threads=False, **wanted)

    def _present(self, columns: Sequence[str] | None) -> list[str] | None:
        """Return the columns. pyarrow would leave out the ones that a file lacks without an error."""
        if columns is None:
            return None
        for name in columns:
            if name not in self.schema.names:
                raise KeyError(name)
        return list(columns)


def _buffered(file: BinaryIO) -> BinaryIO:
    """Return the file with read-ahead if it has none: each read of a raw one is a request to a server."""
    return io.BufferedReader(file, READ_AHEAD_BYTES) if isinstance(file, io.RawIOBase) else file
