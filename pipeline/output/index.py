"""Which tasks a run has committed: its parts say so, and index segments gather the ids of many parts.

Segments are a cache. One counts only while every part it covers is there and it can be read itself; the parts of one
that does not count are read instead, and the next finalize replaces it. So a part may be deleted, and segments merged
or lost, at any moment, and nothing is taken for committed that is not.
"""

import re
from collections.abc import Iterable, Iterator, Mapping
from collections.abc import Set as AbstractSet
from dataclasses import dataclass
from functools import partial

from pipeline.errors import JobBrokenError, ObjectMissingError
from pipeline.identity import IdSet
from pipeline.output.layout import PARTS_PREFIX, part_of_key
from pipeline.output.outcomes import UNREADABLE, Outcomes, in_blocks, outcomes_of, united
from pipeline.output.parallel import in_parallel
from pipeline.output.segments import Segment, put_segment, read_segment, segment_keys
from pipeline.parquet import ParquetReader
from pipeline.storage.base import ObjectStore

MAX_SEGMENTS = 64
"""Beyond so many, the next segment takes in all others: a start then reads one object again, not hundreds."""

_PART = re.compile(re.escape(PARTS_PREFIX) + r"[0-9a-f]{2}/[0-9a-f]{32}-[0-9a-f]{8}\.parquet")


@dataclass(frozen=True, slots=True, kw_only=True)
class CommittedIndex:
    """Every task with an outcome; ok wins over failed."""

    tasks: IdSet
    failed: IdSet
    """Those among them that have no picture."""
    uncovered: tuple[str, ...]
    """Keys of parts that no segment covers."""
    segments: Mapping[str, frozenset[str]]
    """Keys of the segments that count, each with the names of the parts it covers."""
    stale: tuple[str, ...]
    """Keys of those that do not count."""

    @property
    def ok(self) -> IdSet:
        """Those that have a picture."""
        return self.tasks.without(self.failed)

    def all(self) -> IdSet:
        return self.tasks


def is_part_key(key: str) -> bool:
    return _PART.fullmatch(key) is not None


def part_keys(store: ObjectStore) -> list[str]:
    """The keys of all parts; what else may lie between them is left out."""
    return [info.key for info in store.list(PARTS_PREFIX) if is_part_key(info.key)]


def load_index(store: ObjectStore) -> CommittedIndex:
    """Read what is committed. Raises ``JobBrokenError`` naming a part that cannot be read."""
    # Segments are listed first: the parts they cover, which are older, are then surely among those listed.
    keys = segment_keys(store)
    parts = {part_of_key(key): key for key in part_keys(store)}
    segments = _counting_segments(store, keys, parts.keys())
    covers = {key: segment.parts for key, segment in segments.items()}
    covered = frozenset[str]().union(*covers.values())
    # Nothing but the list may hold on to the blocks, so that each can be freed when it has been taken in.
    blocks = [block for key in covers for block in segments.pop(key).blocks]
    uncovered, more = _read_parts(store, [key for name, key in parts.items() if name not in covered])
    blocks += more
    del more
    tasks, failed = united(blocks)
    stale = tuple(key for key in keys if key not in covers)
    return CommittedIndex(tasks=tasks, failed=failed, uncovered=uncovered, segments=covers, stale=stale)


def _counting_segments(store: ObjectStore, keys: list[str], parts: AbstractSet[str]) -> dict[str, Segment]:
    read = zip(keys, in_parallel(partial(_segment_or_none, store), keys), strict=True)
    return {key: segment for key, segment in read if segment is not None and segment.parts <= parts}


def write_segment(store: ObjectStore, index: CommittedIndex) -> None:
    """Gather the parts not covered yet in one immutable object, together with all segments where those are many.

    What it replaces is deleted after it is there.
    """
    merged = tuple(index.segments) if len(index.segments) + bool(index.uncovered) > MAX_SEGMENTS else ()
    written = None
    if index.uncovered or merged:
        covered = frozenset(map(part_of_key, index.uncovered)).union(*(index.segments[key] for key in merged))
        written = put_segment(store, covered, *_gathered(store, index, everything=bool(merged)))
    for key in {*merged, *index.stale} - {written}:
        store.delete(key)


def _segment_or_none(store: ObjectStore, key: str) -> Segment | None:
    try:
        return read_segment(store, key)
    except (JobBrokenError, ObjectMissingError):  # merged with others since it was listed
        return None


def _read_parts(store: ObjectStore, keys: Iterable[str]) -> tuple[tuple[str, ...], list[Outcomes]]:
    """Which of these parts are there, and all their outcomes; one that was dropped since it was listed is not."""
    there: list[str] = []

    def read() -> Iterator[Outcomes]:
        for key, outcomes in in_parallel(partial(_read_part, store), keys):
            if outcomes is not None:
                there.append(key)
                yield outcomes

    blocks = list(in_blocks(read()))
    return tuple(there), blocks


def _read_part(store: ObjectStore, key: str) -> tuple[str, Outcomes | None]:
    try:
        body = store.get(key)
        table = ParquetReader(body).read(["task_id", "status"])
        return key, outcomes_of(table)
    except ObjectMissingError:
        return key, None
    except UNREADABLE as error:
        raise JobBrokenError(f"a part cannot be read: {store.uri}/{key}: {error}") from None


def _gathered(store: ObjectStore, index: CommittedIndex, *, everything: bool) -> tuple[IdSet, IdSet]:
    """The tasks of the whole index, or only of the parts that are not covered, and those that failed."""
    if everything or not index.segments:
        return index.tasks, index.failed
    return united(_read_parts(store, index.uncovered)[1])
