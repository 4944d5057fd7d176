"""Local disk that larger work is done on, since memory may not hold it."""

import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedRandom

from pipeline.errors import StoreUnavailableError

GATHERING = "images cannot be gathered"
SORTING = "tables cannot be sorted"
EXPORTING = "an export cannot be prepared"


def temporary_file(what: str) -> BufferedRandom:
    """A file without a name: a process that is killed leaves none behind. ``what`` as in ``local_disk``."""
    with local_disk(what):
        return tempfile.TemporaryFile()


@contextmanager
def local_disk(what: str) -> Iterator[None]:
    """Says what cannot be done, as above, which disk it is that is full, and what to do."""
    try:
        yield
    except OSError as error:
        raise StoreUnavailableError(
            f"{what} in {tempfile.gettempdir()}: {error.strerror or error}. "
            "Free some space there, or set TMPDIR to a folder on another disk, and run again"
        ) from error
