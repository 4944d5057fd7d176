"""Dropping what is damaged from a run, so that the next ``render`` makes exactly that again.

Nothing sound is lost, wherever this stops: sound rows stand in a new part before the old one goes, and the segments
that cover the old part go before it does. Done once more, it goes on. Images stay; those nothing names are orphans.
"""

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
from numpy.typing import NDArray

from pipeline.errors import JobBrokenError, ObjectMissingError
from pipeline.identity import part_id
from pipeline.output.layout import object_of, part_of_key
from pipeline.output.parallel import in_parallel
from pipeline.output.part import objects_of, put_part, read_part, with_objects
from pipeline.output.schema import METADATA_SCHEMA
from pipeline.output.segments import read_segment, segment_keys
from pipeline.output.verify import Damage
from pipeline.storage.base import ObjectStore


def drop_damaged(store: ObjectStore, damage: Damage) -> int:
    """Take what ``verify`` found damaged out of the run; returns how many images known by name that were.

    Tables are as before: finalize writes them again.
    """
    images = sum(in_parallel(lambda item: _keep_sound(store, *item), damage.rows.items()))
    replaced = sorted({*damage.rows, *damage.parts})
    names = frozenset(map(part_of_key, replaced))
    for key in segment_keys(store):
        if key in damage.segments or _covers_any(store, key, names):
            store.delete(key)
    for key in (*replaced, *damage.requests):
        store.delete(key)
    return images


def _keep_sound(store: ObjectStore, key: str, dropped: NDArray[np.bool_]) -> int:
    """Put the part of the rows that stay, if any do; returns how many images do not."""
    rows = read_part(store, key)
    gone, rest = rows.filter(pa.array(dropped)), rows.filter(pa.array(~dropped))
    if rest.num_rows:
        name = part_id(map(bytes.fromhex, rest["task_id"].to_pylist()))
        put_part(store, name, _as_part(rest, name))
    return int(pc.sum(pc.equal(gone["status"], "ok")).as_py())


def _as_part(rows: pa.Table, name: str) -> pa.Table:
    """Rows of a part as one of their own, which names only the objects that they are in."""
    field = METADATA_SCHEMA.field("part_id")
    ids = pa.array([name] * rows.num_rows, field.type)
    held = {object_of(file_name)[0] for file_name in rows["file_name"].to_pylist() if file_name is not None}
    objects = {key: stored for key, stored in objects_of(rows).items() if key in held}
    return with_objects(rows.set_column(rows.column_names.index(field.name), field, ids), objects)


def _covers_any(store: ObjectStore, key: str, parts: frozenset[str]) -> bool:
    """Whether a segment covers one of the parts; one that cannot be read may."""
    try:
        return bool(read_segment(store, key).parts & parts)
    except JobBrokenError:
        return True
    except ObjectMissingError:  # merged with others meanwhile
        return False
