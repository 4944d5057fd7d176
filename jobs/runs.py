"""Finding the run at an output: what every verb that takes ``OUTPUT`` begins with."""

from pipeline.errors import InputError, StoreError
from pipeline.output.run import read_run
from pipeline.storage.base import ObjectStore
from pipeline.storage.location import open_store
from pipeline.storage.s3_settings import S3Settings

_DEFAULTS = S3Settings()


def open_run(uri: str, s3: S3Settings = _DEFAULTS) -> ObjectStore:
    """The store of a run. ``InputError`` when there is none, or within seconds when it cannot be reached."""
    first = open_store(uri, s3.impatient(), where="OUTPUT")
    try:
        run = read_run(first)
    except StoreError as error:
        raise InputError(
            f"the output cannot be read: {error}", where="OUTPUT", value=uri, allowed="an output of `darkroom render`"
        ) from None
    if run is None:
        raise InputError(
            "there is no run at this output", where="OUTPUT", value=uri, allowed="an output of `darkroom render`"
        )
    return open_store(uri, s3)
