"""Parts to ``metadata.parquet`` and ``failures.parquet``: one row per task, in manifest order. Idempotent.

More images than one file holds are in numbered files, each in order. Only parts are read whose rows no table has yet,
unless these change what the tables say: then all are made anew. Where one picture answers several manifest rows,
``requests.parquet`` says so. ``README.md`` is for who loads them.

New files are written first, then the note (``finalized.py``), then what they replace is deleted: wherever it stops, the
next finalize goes on from a note that is true, or from none.
"""

from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.output.card import write_card
from pipeline.output.checks import check_object
from pipeline.output.finalized import Left, Table, read_finalized, write_finalized
from pipeline.output.index import CommittedIndex, load_index, part_keys, write_segment
from pipeline.output.layout import FAILURES_KEY, REQUESTS_KEY, part_key, part_of_key
from pipeline.output.precedence import one_per_task
from pipeline.output.renewal import OutgrownError, renewed
from pipeline.output.requests import asked_digest, put_requests
from pipeline.output.segments import segment_keys
from pipeline.output.tables import is_table_key, table_keys
from pipeline.storage.base import ObjectStore

__all__ = ["Finalized", "finalize", "one_per_task"]

_ROUNDS = 3
"""Who still commits after so many will finalize too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finalized:
    ok: int
    failed: int
    parts: int


def finalize(store: ObjectStore, *, reread: bool = False) -> Finalized:
    """Write the tables of all that is committed, and an index segment that makes the next start fast.

    With ``reread`` the tables that are there are read, and made anew where they are not as they were written. All is
    done once more when parts have come meanwhile: whose launch has ended may have written tables with them before ours.
    """
    for _ in range(_ROUNDS):
        made, parts = _round(store, reread)
        if parts == frozenset(map(part_of_key, part_keys(store))):
            break
    return made


def _round(store: ObjectStore, reread: bool) -> tuple[Finalized, frozenset[str]]:
    """Also returns the names of the parts in the tables."""
    index = load_index(store)
    parts = _parts(index)
    base = _standing(store, read_finalized(store), parts, reread)
    written, asked = _tables(store, index, parts, base), asked_digest(store)
    same = (written, asked) == (_without_requests(base), base.asked)
    requests = (same and base.tables.get(REQUESTS_KEY)) or put_requests(store, written)
    failures = written.get(FAILURES_KEY)
    write_card(store, {key: table for key, table in written.items() if is_table_key(key)}, failures)
    write_segment(store, index)
    left = Left(
        tables=written | ({REQUESTS_KEY: requests} if requests else {}),
        segments=frozenset(segment_keys(store)),
        parts=frozenset(parts),
        asked=asked,
    )
    if left != read_finalized(store):
        write_finalized(store, left)
    for key in set(table_keys(store)) - left.tables.keys():
        store.delete(key)
    ok, failed = len(index.tasks) - len(index.failed), len(index.failed)
    return Finalized(ok=ok, failed=failed, parts=len(parts)), left.parts


def _parts(index: CommittedIndex) -> dict[str, str]:
    """Keys of all parts by name, in the order of names."""
    covered = {name for names in index.segments.values() for name in names}
    keys = {part_of_key(key): key for key in index.uncovered} | {name: part_key(*name.split("-")) for name in covered}
    return dict(sorted(keys.items()))


def _standing(store: ObjectStore, left: Left, parts: Mapping[str, str], reread: bool) -> Left:
    """What the last finalize left, as far as it still is so; nothing where a part or a table of images is gone."""

    def stands(key: str, table: Table) -> bool:
        info = store.head(key)
        same = info is not None and info.size_bytes == table.bytes
        return same and not (reread and check_object(store, key, table))

    kept = {key: table for key, table in left.tables.items() if stands(key, table)}
    needed = _without_requests(left).keys()
    if not needed or not needed <= kept.keys() or not left.parts <= parts.keys():
        return Left()
    return Left(tables=kept, parts=left.parts, asked=left.asked)


def _tables(store: ObjectStore, index: CommittedIndex, parts: Mapping[str, str], base: Left) -> dict[str, Table]:
    new = [key for name, key in parts.items() if name not in base.parts]
    if base.tables and not new:
        return _without_requests(base)
    try:
        return renewed(store, index, base, new)
    except OutgrownError:
        assert base.tables
        return renewed(store, index, Left(), parts.values())


def _without_requests(left: Left) -> dict[str, Table]:
    return {key: table for key, table in left.tables.items() if key != REQUESTS_KEY}
