"""Local disk that an export works on: copies of archives it reads, tables and archives it writes."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedRandom

from pipeline.errors import StoreUnavailableError


def scratch_file() -> BufferedRandom:
    """A file without a name: a process that is killed leaves none behind."""
    with local_disk():
        return tempfile.TemporaryFile()


@contextmanager
def local_disk() -> Iterator[None]:
    """Says which disk it is that is full, and what to do."""
    try:
        yield
    except OSError as error:
        raise StoreUnavailableError(
            f"an export cannot be prepared in {tempfile.gettempdir()}: {error.strerror or error}. "
            "Free some space there, or set TMPDIR to a folder on another disk, and run again"
        ) from error
