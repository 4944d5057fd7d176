"""Parts to ``metadata.parquet`` and ``failures.parquet``: one row per task, in manifest order. Idempotent.

More images than one file holds are in numbered files, each in order. Only parts are read whose rows no table has yet,
unless these change what the tables say: then all are made anew. Where one picture answers several manifest rows,
``requests.parquet`` says so. ``README.md`` is for who loads them.

New files are written first, then the note (``finalized.py``), then what they replace is deleted: wherever it stops, the
next finalize goes on from a note that is true, or from none. Several may run at once. So each deletes only files that
were noted or that are its own, never one that another may be about to note, and looks at the end whether all that is
noted is there.
"""

from collections.abc import Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta

from pipeline.errors import ObjectMissingError, ObjectReplacedError
from pipeline.output.card import write_card
from pipeline.output.checks import check_object
from pipeline.output.finalized import Left, Table, read_finalized, write_finalized
from pipeline.output.index import CommittedIndex, load_index, part_keys, write_segment
from pipeline.output.layout import FAILURES_KEY, METADATA_KEY, REQUESTS_KEY, part_key, part_of_key
from pipeline.output.precedence import one_per_task
from pipeline.output.renewal import OutgrownError, renewed
from pipeline.output.requests import asked_digest, put_requests, request_keys
from pipeline.output.segments import segment_keys
from pipeline.output.shard_list import write_shard_list
from pipeline.output.tables import is_table_key, tables_there
from pipeline.storage.base import ObjectStore

__all__ = ["Finalized", "finalize", "one_per_task"]

_ROUNDS = 3
"""Who still commits after so many will finalize too."""
_ABANDONED_AFTER = timedelta(days=1)
"""No finalize takes so long from its first file to its note."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Finalized:
    ok: int
    failed: int
    parts: int


def finalize(store: ObjectStore, *, reread: bool = False) -> Finalized:
    """Write the tables of all that is committed, and an index segment that makes the next start fast.

    With ``reread`` the tables that are there are read, and made anew where they are not as they were written. All is
    done once more when parts have come meanwhile, or another finalize has replaced what was read or written here.
    """
    ours: set[str] = set()
    for rounds_left in reversed(range(_ROUNDS)):
        try:
            made = _round(store, reread, ours)
        except (ObjectMissingError, ObjectReplacedError):
            if not rounds_left:
                raise
            continue  # what was read has been replaced
        if _is_settled(store, made, ours):
            break
    return made


def _round(store: ObjectStore, reread: bool, ours: set[str]) -> Finalized:
    """``ours``: keys of the tables that earlier rounds wrote, whatever became of them; those of this one are added."""
    index, before = load_index(store), read_finalized(store)
    parts = _parts(index)
    base = _standing(store, before, parts, reread)
    written, asked = _tables(store, index, parts, base, ours), asked_digest(store)
    same = (written, asked) == (_without_requests(base), base.asked)
    requests = (same and base.tables.get(REQUESTS_KEY)) or put_requests(store, written)
    failures = written.get(FAILURES_KEY)
    images = {key: table for key, table in written.items() if is_table_key(key)}
    write_card(store, images, failures)
    write_shard_list(store, images.values())
    write_segment(store, index)
    there, overtaken = {info.key for info in tables_there(store)}, read_finalized(store)
    known = ours.union(before.tables, before.replaced, overtaken.tables, overtaken.replaced)
    left = Left(
        tables=written | ({REQUESTS_KEY: requests} if requests else {}),
        segments=frozenset(segment_keys(store)),
        parts=frozenset(parts),
        requests=frozenset(request_keys(store)),
        asked=asked,
        replaced=frozenset(there & known - written.keys()),
    )
    if left != overtaken:
        write_finalized(store, left)
    _delete_replaced(store, left.replaced)
    ok, failed = len(index.tasks) - len(index.failed), len(index.failed)
    return Finalized(ok=ok, failed=failed, parts=len(parts))


def _delete_replaced(store: ObjectStore, replaced: AbstractSet[str]) -> None:
    """Delete those of these tables of images that are not noted, and what a finalize that was killed left long ago.

    A ``metadata.parquet`` beside numbered files always goes: who is about to note one knows fewer parts, and will look.
    """
    noted = read_finalized(store).tables
    if not noted:
        return
    long_ago = datetime.now(UTC) - _ABANDONED_AFTER
    for info in tables_there(store):
        if info.key not in noted and (info.key in {METADATA_KEY, *replaced} or info.modified < long_ago):
            store.delete(info.key)


def _is_settled(store: ObjectStore, made: Finalized, ours: set[str]) -> bool:
    """Whether the tables that are noted, whoever wrote them, have the rows of all parts, as ours do, and are there."""
    left = read_finalized(store)
    if ours - left.tables.keys():
        _delete_replaced(store, ours)
    if made.parts != len(left.parts) or left.parts != set(map(part_of_key, part_keys(store))):
        return False
    return all(_stands(store, key, table) for key, table in left.tables.items())


def _parts(index: CommittedIndex) -> dict[str, str]:
    """Keys of all parts by name, in the order of names."""
    covered = {name for names in index.segments.values() for name in names}
    keys = {part_of_key(key): key for key in index.uncovered} | {name: part_key(*name.split("-")) for name in covered}
    return dict(sorted(keys.items()))


def _standing(store: ObjectStore, left: Left, parts: Mapping[str, str], reread: bool) -> Left:
    """What the last finalize left, as far as it still is so; nothing where a part or a table of images is gone."""

    def sound(key: str, table: Table) -> bool:
        return _stands(store, key, table) and not (reread and check_object(store, key, table))

    kept = {key: table for key, table in left.tables.items() if sound(key, table)}
    needed = _without_requests(left).keys()
    if not needed or not needed <= kept.keys() or not left.parts <= parts.keys():
        return Left()
    return Left(tables=kept, parts=left.parts, asked=left.asked)


def _stands(store: ObjectStore, key: str, table: Table) -> bool:
    info = store.head(key)
    return info is not None and info.size_bytes == table.bytes


def _tables(
    store: ObjectStore, index: CommittedIndex, parts: Mapping[str, str], base: Left, ours: set[str]
) -> dict[str, Table]:
    new = [key for name, key in parts.items() if name not in base.parts]
    if base.tables and not new:
        return _without_requests(base)
    try:
        return renewed(store, index, base, new, ours)
    except OutgrownError:
        assert base.tables
        return renewed(store, index, Left(), parts.values(), ours)


def _without_requests(left: Left) -> dict[str, Table]:
    return {key: table for key, table in left.tables.items() if key != REQUESTS_KEY}
