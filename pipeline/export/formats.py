"""The forms a finished run can be handed on in."""

from collections.abc import Callable, Mapping
from contextlib import closing

from pipeline.export.committed import Committed
from pipeline.export.diffusiondb import export_diffusiondb
from pipeline.export.geneval import export_geneval
from pipeline.export.imagefolder import export_imagefolder
from pipeline.export.webdataset import export_webdataset
from pipeline.export.writing import require_empty
from pipeline.storage.base import ObjectStore

FORMATS: Mapping[str, Callable[[Committed, ObjectStore, Callable[[int], None]], None]] = {
    "imagefolder": export_imagefolder,
    "webdataset": export_webdataset,
    "diffusiondb": export_diffusiondb,
    "geneval": export_geneval,
}


def export(store: ObjectStore, destination: ObjectStore, form: str, on_progress: Callable[[int, int], None]) -> int:
    """Write all images of a run in one of ``FORMATS``; returns how many. ``on_progress`` gets done and total.

    Raises ``InputError`` before anything is written: the tables are not up to date, or the destination is not empty.
    """
    require_empty(destination)
    with closing(Committed(store)) as committed:
        FORMATS[form](committed, destination, lambda done: on_progress(done, committed.number))
        return committed.number
