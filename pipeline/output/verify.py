"""``verify``: everything a run has, read again and compared with what was recorded when it was written.

It may run beside a launch: tables are read before segments are listed, segments before parts, parts before objects, so
what is committed meanwhile makes at most a table look outdated. Memory holds 17 bytes a task and 16 bytes an object.
"""

from collections import Counter
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import ObjectReplacedError
from pipeline.identity import Ids, IdSet
from pipeline.output.checks import Fault, Part, What, check_object, check_part, check_requests, check_segment, guarded
from pipeline.output.finalized import Left, read_finalized
from pipeline.output.index import is_part_key, part_keys
from pipeline.output.layout import METADATA_KEY, REQUESTS_PREFIX, part_key, part_of_key
from pipeline.output.orphans import key_ids, unnamed
from pipeline.output.outcomes import UNREADABLE, Outcomes, ids_of_hex, united
from pipeline.output.parallel import in_parallel
from pipeline.output.requests import request_keys
from pipeline.output.segments import Segment, segment_keys
from pipeline.output.tables import is_table_key, table_keys, tables_there
from pipeline.parquet import ParquetReader
from pipeline.storage.base import ObjectInfo, ObjectStore

LISTED = 1_000
"""So many faults are named; all are counted."""

_BATCH_ROWS = 2**18
_TRIES = 3
"""To read a table that is replaced while it is read."""
_Mask = NDArray[np.bool_]


@dataclass(frozen=True, slots=True, kw_only=True, eq=False)
class Damage:
    """What has to go before ``render`` makes it again."""

    rows: Mapping[str, _Mask]
    """By part, its rows to drop: their images are gone or corrupt, or they are older failures of the same tasks."""
    parts: tuple[str, ...]
    """Keys of parts that are corrupt, or gone though the index knows them."""
    segments: tuple[str, ...]
    """Keys of index segments that are corrupt."""
    requests: tuple[str, ...]
    """Keys of objects with requests that are corrupt or gone."""

    def __bool__(self) -> bool:
        return bool(self.rows or self.parts or self.segments or self.requests)


@dataclass(frozen=True, slots=True, kw_only=True)
class Reading:
    """How far a verification is."""

    parts_read: int
    parts: int
    objects: int
    size_bytes: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Verified:
    """What a verification found."""

    ok: int
    failed: int
    """Tasks."""
    read: Reading
    counts: Mapping[What, int]
    """Of all faults."""
    faults: tuple[Fault, ...]
    """The first ``LISTED``."""
    damage: Damage
    orphans: tuple[ObjectInfo, ...]
    certain: bool
    """Every part could be read, so an orphan is nobody's."""


def verify(store: ObjectStore, on_progress: Callable[[Reading], None] = lambda _: None) -> Verified:
    """Read all that a run names. Raises ``StoreUnavailableError`` when the store keeps failing; nothing is written."""
    return _Verification(store, on_progress).run()


class _Verification:
    """One pass; its fields are what was found so far."""

    def __init__(self, store: ObjectStore, on_progress: Callable[[Reading], None]) -> None:
        self._store, self._on_progress = store, on_progress
        self._counts: Counter[What] = Counter()
        self._faults: list[Fault] = []
        self._faulty: dict[str, What] = {}
        """Tables, requests, segments and parts with a fault."""
        self._outcomes: dict[str, Outcomes] = {}
        """By part."""
        self._to_drop: dict[str, _Mask] = {}
        self._named: list[Ids] = []
        self._objects = self._size_bytes = 0
        self._table = METADATA_KEY
        """The last file of the images' metadata."""
        self._noted = Left()
        """What the last finalize that ended left."""

    def run(self) -> Verified:
        self._check_noted()
        listed = self._table_ids()
        segments = segment_keys(self._store)
        sound = self._read_segments(segments)
        parts = part_keys(self._store)
        self._check_parts(parts)
        self._compare_segments(sound, frozenset(map(part_of_key, parts)))
        tasks, failed = united(list(self._outcomes.values()))
        images = tasks.without(failed)
        if listed is not None:
            self._compare_table(listed, images)
        self._drop_older_failures(IdSet().union(listed or []).without(images))
        orphans, certain = self._orphans(parts)
        return Verified(
            ok=len(tasks) - len(failed),
            failed=len(failed),
            read=self._reading(len(parts)),
            counts=dict(self._counts),
            faults=tuple(self._faults),
            damage=Damage(
                rows=self._to_drop,
                parts=tuple(self._damaged(is_part_key)),
                segments=tuple(key for key in segments if self._faulty.get(key) == "corrupt"),
                requests=tuple(self._damaged(lambda key: key.startswith(REQUESTS_PREFIX))),
            ),
            orphans=orphans,
            certain=certain,
        )

    def _damaged(self, is_such: Callable[[str], bool]) -> Iterator[str]:
        return (key for key, what in self._faulty.items() if is_such(key) and what != "unreadable")

    def _add(self, fault: Fault, *, image: bool = False) -> None:
        if not image:
            if fault.key in self._faulty:
                return
            self._faulty[fault.key] = fault.what
        self._counts[fault.what] += 1
        if len(self._faults) < LISTED:
            self._faults.append(fault)

    def _check_noted(self) -> None:
        """What finalize left is there, and the tables are as it left them; asked again when another one began."""
        left = read_finalized(self._store)
        while (faults := self._faults_of_noted(left)) and left != (now := read_finalized(self._store)):
            left = now
        self._noted = left
        requests = in_parallel(partial(check_requests, self._store), request_keys(self._store))
        for fault in (*faults, *filter(None, requests)):
            self._add(fault)

    def _faults_of_noted(self, left: Left) -> list[Fault]:
        checked = in_parallel(lambda table: check_object(self._store, *table), left.tables.items())
        gone = dict.fromkeys(left.segments - set(segment_keys(self._store)), "an index segment that finalize left")
        gone |= dict.fromkeys(left.requests - set(request_keys(self._store)), "requests that finalize had")
        return [
            *(fault for fault in checked if fault is not None),
            *(Fault(key=key, what="missing", detail=gone[key]) for key in sorted(gone)),
        ]

    def _table_ids(self) -> list[Ids] | None:
        """The ids in ``metadata.parquet`` or the numbered files, those that count; None where one cannot be read."""
        if any(map(is_table_key, self._faulty)):
            return None
        found: list[Ids] = []
        noted = list(filter(is_table_key, self._noted.tables))
        for key in noted or table_keys(self._store) or [METADATA_KEY]:
            self._table = key
            read = guarded(key, partial(_ids_in_table, self._store, key))
            if isinstance(read, Fault):
                self._add(read if read.what != "missing" or key == METADATA_KEY else _replaced(key))
                return None
            found += read
        return found

    def _read_segments(self, keys: Sequence[str]) -> dict[str, Segment]:
        """Those that are sound."""
        found: dict[str, Segment] = {}
        for key, segment in zip(keys, in_parallel(partial(check_segment, self._store), keys), strict=True):
            if isinstance(segment, Fault):
                self._add(segment)
            else:
                found[key] = segment
        return found

    def _check_parts(self, keys: Sequence[str]) -> None:
        """The parts, and every object that they name."""
        for part, number, fault in in_parallel(self._check_named, self._named_objects(keys)):
            self._objects += 1
            self._size_bytes += part.objects[number][1].bytes
            self._on_progress(self._reading(len(keys)))
            if fault is not None:
                self._add(fault, image=True)
                if fault.what != "unreadable":
                    rows = self._to_drop.setdefault(part.key, np.zeros(len(part.outcomes.ok), np.bool_))
                    rows |= part.object_of_row == number

    def _named_objects(self, keys: Sequence[str]) -> Iterator[tuple[Part, int]]:
        for part in in_parallel(partial(check_part, self._store), keys):
            if isinstance(part, Fault):
                self._add(part)
            else:
                self._outcomes[part.key] = part.outcomes
                self._named.append(key_ids(key for key, _ in part.objects))
                yield from ((part, number) for number in range(len(part.objects)))

    def _check_named(self, item: tuple[Part, int]) -> tuple[Part, int, Fault | None]:
        part, number = item
        return part, number, check_object(self._store, *part.objects[number])

    def _compare_segments(self, segments: Mapping[str, Segment], there: frozenset[str]) -> None:
        """Each has the tasks of the parts it covers, and those are there."""
        for key, segment in segments.items():
            for name in sorted(segment.parts - there):
                self._add(Fault(key=_key_of(name), what="missing", detail=f"a part that {key} covers"))
            covered = [self._outcomes[part] for name in segment.parts if (part := _key_of(name)) in self._outcomes]
            if len(covered) == len(segment.parts) and not _same(united(covered), united(list(segment.blocks))):
                self._add(Fault(key=key, what="corrupt", detail="its tasks are not those of the parts it covers"))

    def _compare_table(self, listed: list[Ids], images: IdSet) -> None:
        found = IdSet().union(listed)
        counts = {
            "committed images are not in it": len(images.without(found)),
            "rows are of no committed image": len(found.without(images)),
            "rows are of an image that has one": sum(map(len, listed)) - len(found),
        }
        details = [f"{count:,} {what}" for what, count in counts.items() if count]
        if not self._noted.tables:
            details.append("the finalize that wrote it has not ended")
        if details:
            self._add(Fault(key=self._table, what="outdated", detail=", ".join(details)))

    def _drop_older_failures(self, lost: IdSet) -> None:
        """A task whose image is lost must not count as failed because an earlier attempt did: it would stay so."""
        lost = lost.union([self._outcomes[key].ids[rows] for key, rows in self._to_drop.items()])
        for key, outcomes in self._outcomes.items():
            failures = ~outcomes.ok & lost.contains(outcomes.ids)
            if failures.any():
                self._to_drop[key] = self._to_drop.get(key, np.False_) | failures

    def _orphans(self, parts: Sequence[str]) -> tuple[tuple[ObjectInfo, ...], bool]:
        """What no part names, nor any part committed since; and whether all parts could be asked."""
        nameless = [*unnamed(self._store, IdSet().union(self._named)), *self._tables_left_over()]
        late = sorted(set(part_keys(self._store)) - set(parts))
        read = list(in_parallel(partial(check_part, self._store), late))
        since = {key for part in read if isinstance(part, Part) for key, _ in part.objects}
        certain = all(isinstance(part, Part) for part in read) and not any(map(is_part_key, self._faulty))
        return tuple(info for info in nameless if info.key not in since), certain

    def _tables_left_over(self) -> list[ObjectInfo]:
        """Of a finalize that was killed, or that has yet to note them."""
        found = tables_there(self._store)
        noted = read_finalized(self._store).tables
        return [info for info in found if info.key not in noted] if noted else []

    def _reading(self, parts: int) -> Reading:
        return Reading(parts_read=len(self._outcomes), parts=parts, objects=self._objects, size_bytes=self._size_bytes)


def _ids_in_table(store: ObjectStore, key: str) -> list[Ids] | Fault:
    for _ in range(_TRIES):
        with suppress(ObjectReplacedError), store.open(key) as file:
            try:
                batches = ParquetReader(file).batches(_BATCH_ROWS, ["task_id"])
                return [ids_of_hex(pa.Table.from_batches([batch])["task_id"]) for batch in batches]
            except UNREADABLE as error:
                return Fault(key=key, what="corrupt", detail=f"no table: {error}")
    return _replaced(key)


def _replaced(key: str) -> Fault:
    return Fault(key=key, what="outdated", detail="a finalize replaced it while it was read")


def _key_of(part_name: str) -> str:
    return part_key(*part_name.split("-"))


def _same(one: tuple[IdSet, IdSet], other: tuple[IdSet, IdSet]) -> bool:
    return all(np.array_equal(mine.ids(), theirs.ids()) for mine, theirs in zip(one, other, strict=True))
