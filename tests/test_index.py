"""The index: quick because segments gather ids, right because they are only a cache."""

import io
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import JobBrokenError, StoreUnavailableError
from pipeline.identity import ID_BYTES, IdSet, ids_from_bytes, ids_to_bytes
from pipeline.output import index as index_module
from pipeline.output.index import CommittedIndex, load_index, write_segment
from pipeline.output.layout import part_key
from pipeline.output.outcomes import ids_of_hex
from pipeline.output.parallel import in_parallel
from pipeline.output.segments import segment_keys
from pipeline.storage.local import LocalStore
from tests.test_output import commit, failed, rendered

FEW_IDS = st.lists(st.sampled_from([bytes([first] * 8 + [last] * 8) for first in (0, 9) for last in range(5)]))


class StopError(Exception):
    """What ends a `Dying` store; no code of ours catches it."""


class Dying(LocalStore):
    """Carries out so many puts and deletes, and none after that."""

    def __init__(self, root: Path, left: int) -> None:
        super().__init__(root)
        self._left = left

    def put(self, key: str, body: bytes) -> None:
        self._count()
        super().put(key, body)

    def delete(self, key: str) -> None:
        self._count()
        super().delete(key)

    def _count(self) -> None:
        if not self._left:
            raise StopError
        self._left -= 1


def named(found: CommittedIndex) -> tuple[bytes, bytes]:
    return ids_to_bytes(found.ok.ids()), ids_to_bytes(found.failed.ids())


def gather(store: LocalStore) -> None:
    write_segment(store, load_index(store))


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    """Two segments and a part that none covers; task 2 failed first and was rendered later."""
    store = LocalStore(tmp_path)
    commit(store, rendered(1), failed(2), failed(3))
    gather(store)
    commit(store, rendered(2), rendered(4))
    gather(store)
    commit(store, rendered(5), failed(6))
    return store


def test_segments_say_what_the_parts_say(store: LocalStore) -> None:
    found = load_index(store)
    assert (len(found.ok), len(found.failed), len(found.uncovered), len(found.segments)) == (4, 2, 1, 2)
    for key in found.segments:
        store.delete(key)
    assert named(load_index(store)) == named(found)
    gather(store)
    again = load_index(store)
    assert named(again) == named(found)
    assert (again.uncovered, len(again.segments)) == ((), 1)


def test_a_segment_does_not_count_when_a_part_it_covers_is_gone(store: LocalStore) -> None:
    one, parts = next(iter(load_index(store).segments.items()))
    (part,) = parts
    store.delete(part_key(*part.split("-")))
    found = load_index(store)
    assert found.stale == (one,)
    assert len(found.all()) < 6
    gather(store)
    assert one not in segment_keys(store)
    assert named(load_index(store)) == named(found)


def test_a_damaged_segment_is_never_believed(store: LocalStore) -> None:
    truth = named(load_index(store))
    key = segment_keys(store)[0]
    body = store.get(key)
    stale = 0
    for position in [*range(0, len(body), 5), *range(len(body) - 12, len(body))]:
        store.put(key, body[:position] + bytes([body[position] ^ 0x55]) + body[position + 1 :])
        found = load_index(store)
        assert named(found) == truth, position
        stale += len(found.stale)
    assert stale > len(body) // 20
    for length in (0, 3, len(body) // 2, len(body) - 1):
        store.put(key, body[:length])
        assert named(load_index(store)) == truth
    gather(store)
    assert load_index(store).stale == ()


def test_many_segments_become_one(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "MAX_SEGMENTS", 4)
    store = LocalStore(tmp_path)
    sizes = []
    for number in range(12):
        commit(store, rendered(number) if number % 3 else failed(number))
        gather(store)
        sizes.append(len(segment_keys(store)))
        assert (len(load_index(store).ok), load_index(store).uncovered) == (number - number // 3, ())
    assert sizes == [1, 2, 3, 4, 1, 2, 3, 4, 1, 2, 3, 4]


def test_merging_may_stop_anywhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(index_module, "MAX_SEGMENTS", 3)
    for left in range(6):
        store = LocalStore(tmp_path / str(left))
        for number in range(4):
            commit(store, rendered(number))
            if number < 3:
                gather(store)
        truth, dying = named(load_index(store)), Dying(tmp_path / str(left), left)
        if left < 4:
            with pytest.raises(StopError):
                write_segment(dying, load_index(store))
        else:
            write_segment(dying, load_index(store))
        assert named(load_index(store)) == truth
        gather(store)
        assert named(load_index(store)) == truth
        assert load_index(store).uncovered == ()
        assert len(segment_keys(store)) <= 3


def test_segments_that_are_merged_while_they_are_read(store: LocalStore) -> None:
    class Late(LocalStore):
        """Segments vanish after they are listed."""

        def open(self, key: str) -> BinaryIO:
            self.delete(key)
            return super().open(key)

    assert named(load_index(Late(Path(store.uri)))) == named(load_index(store))


def test_a_part_that_is_dropped_while_it_is_read(store: LocalStore) -> None:
    class Late(LocalStore):
        """The part that no segment covers vanishes after it is listed."""

        def get(self, key: str) -> bytes:
            self.delete(key)
            return super().get(key)

    assert (len(load_index(store).all()), len(load_index(Late(Path(store.uri))).all())) == (6, 4)
    assert load_index(store).uncovered == ()


def test_a_store_that_fails_is_not_a_damaged_segment(store: LocalStore) -> None:
    class Failing(io.BytesIO):
        def read(self, size: int | None = -1) -> bytes:
            raise StoreUnavailableError("gone")

    class Broken(LocalStore):
        def open(self, key: str) -> BinaryIO:
            return Failing(b"x" * 1000)

    with pytest.raises(StoreUnavailableError):
        load_index(Broken(Path(store.uri)))


def test_what_is_no_part_is_left_out(store: LocalStore) -> None:
    truth = named(load_index(store))
    for key in ("metadata/notes.txt", "metadata/ab/x.parquet", f"metadata/ab/{'a' * 32}-{'b' * 8}.parquet.bak"):
        store.put(key, b"mine")
    assert named(load_index(store)) == truth


@given(st.lists(st.binary(min_size=ID_BYTES, max_size=ID_BYTES), max_size=40), st.integers(0, 10))
def test_ids_from_hex_digits(ids: list[bytes], start: int) -> None:
    column = pa.chunked_array([[item.hex() for item in ids[:7]], [item.hex() for item in ids[7:]]], pa.string())
    assert ids_to_bytes(ids_of_hex(column[start:])) == b"".join(ids[start:])


@pytest.mark.parametrize("texts", [["ab"], ["a" * 31 + "g"], ["a" * 30, "a" * 34], ["ä" * 16]])
def test_what_is_no_id(texts: list[str]) -> None:
    with pytest.raises(ValueError, match=r"hex|32"):
        ids_of_hex(pa.chunked_array([texts], pa.string()))


@given(FEW_IDS, FEW_IDS, st.integers(1, 4))
def test_sets_of_ids_that_share_their_halves(one: list[bytes], other: list[bytes], size: int) -> None:
    first, second = (IdSet(ids_from_bytes(b"".join(ids))) for ids in (one, other))
    assert ids_to_bytes(first.ids()) == b"".join(sorted(set(one)))
    assert ids_to_bytes(first.without(second).ids()) == b"".join(sorted(set(one) - set(other)))
    assert ids_to_bytes(first.union([second.ids()]).ids()) == b"".join(sorted({*one, *other}))
    assert b"".join(map(ids_to_bytes, first.blocks(size))) == ids_to_bytes(first.ids())
    columns = [ids_from_bytes(b"".join(ids)) for ids in (one, other)]
    assert ids_to_bytes(IdSet.gathered(iter(columns), len(one) + len(other)).ids()) == b"".join(sorted({*one, *other}))


def test_a_set_knows_what_many_lists_know() -> None:
    random = np.random.default_rng(0)
    packed = random.bytes(ID_BYTES * 5_000)
    ids = [packed[start : start + ID_BYTES] for start in range(0, len(packed), ID_BYTES)]
    assert ids_to_bytes(IdSet(ids_from_bytes(packed * 2)).ids()) == b"".join(sorted(ids))


def test_reading_ahead_is_bounded_ordered_and_stops_at_an_error() -> None:
    taken = []

    def numbers() -> Iterator[int]:
        for number in range(1000):
            taken.append(number)
            yield number

    def double(number: int) -> int:
        if number == 5:
            raise JobBrokenError("five")
        return 2 * number

    results = in_parallel(double, numbers())
    assert [next(results) for _ in range(5)] == [0, 2, 4, 6, 8]
    with pytest.raises(JobBrokenError, match="five"):
        next(results)
    assert len(taken) < 100
