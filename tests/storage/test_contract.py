"""One contract, two stores: every test runs on a directory and on a real S3 server."""

import io
import pickle
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ObjectMissingError
from pipeline.storage.base import ObjectStore, check_key
from pipeline.storage.location import open_store


@pytest.fixture(params=["local", "s3"])
def store(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[ObjectStore]:
    if request.param == "local":
        yield open_store(str(tmp_path / "not" / "there" / "yet"))
    else:
        yield open_store(f"s3://{request.getfixturevalue('s3_bucket')}/some/prefix")


@pytest.mark.parametrize("size", [0, 1, 1000, 20 * 2**20])
def test_what_is_put_is_got(store: ObjectStore, size: int) -> None:
    body = bytes(range(251)) * (size // 251) + bytes(size % 251)
    store.put("a/b", body)
    assert store.get("a/b") == body
    found = store.head("a/b")
    assert found is not None
    assert (found.key, found.size_bytes) == ("a/b", size)
    assert found.modified.utcoffset() is not None


def test_overwriting(store: ObjectStore) -> None:
    store.put("k", b"old")
    store.put("k", b"newer")
    assert store.get("k") == b"newer"


def test_ranges(store: ObjectStore) -> None:
    store.put("k", b"0123456789")
    assert store.get_range("k", 0, 4) == b"0123"
    assert store.get_range("k", 8, 100) == b"89"
    assert store.get_range("k", 10, 5) == b""
    assert store.get_range("k", 3, 0) == b""


def test_missing(store: ObjectStore) -> None:
    assert store.head("k") is None
    assert list(store.list()) == []
    with pytest.raises(ObjectMissingError):
        store.get("k")
    with pytest.raises(ObjectMissingError):
        store.open("k")
    store.delete("k")


def test_deleting(store: ObjectStore) -> None:
    store.put("k", b"x")
    store.delete("k")
    assert store.head("k") is None


def test_listing_is_in_key_order_and_by_plain_prefix(store: ObjectStore) -> None:
    keys = ["a-b", "a.b", "a/b", "a/c/d", "a0", "ab", "b/a", "é", "z"]
    for key in reversed(keys):
        store.put(key, key.encode())
    assert [info.key for info in store.list()] == sorted(keys, key=str.encode)
    assert [info.key for info in store.list("a/")] == ["a/b", "a/c/d"]
    assert [info.key for info in store.list("a/c")] == ["a/c/d"]
    assert [info.key for info in store.list("a")] == ["a-b", "a.b", "a/b", "a/c/d", "a0", "ab"]
    assert [info.size_bytes for info in store.list("é")] == [2]


def test_more_than_a_page(store: ObjectStore) -> None:
    keys = [f"n/{number:04}" for number in range(1050)]
    with ThreadPoolExecutor(16) as pool:
        list(pool.map(lambda key: store.put(key, b""), keys))
    assert [info.key for info in store.list("n/")] == keys


def test_pickled_store_works_and_holds_no_secret(store: ObjectStore) -> None:
    store.put("k", b"x")
    packed = pickle.dumps(store)
    assert b"testing" not in packed
    assert pickle.loads(packed).get("k") == b"x"  # noqa: S301  # our own bytes
    assert "testing" not in repr(store.__dict__ if hasattr(store, "__dict__") else store)


def test_parquet_is_read_through_ranges(store: ObjectStore) -> None:
    table = pa.table({"a": range(100_000), "b": ["text"] * 100_000})
    buffer = io.BytesIO()
    pq.write_table(table, buffer, row_group_size=1000)
    store.put("t.parquet", buffer.getvalue())
    with store.open("t.parquet") as file:
        parquet = pq.ParquetFile(pa.PythonFile(file, mode="r"))
        assert parquet.read_row_group(50, ["a"])["a"].to_pylist() == list(range(50_000, 51_000))
        file.seek(-4, io.SEEK_END)
        assert file.read() == b"PAR1"


def test_check_writable_leaves_nothing(store: ObjectStore) -> None:
    store.check_writable()
    assert list(store.list()) == []


@given(st.text(max_size=8).map(lambda text: f"a/{text}/../b") | st.sampled_from(["", "/a", "a//b", "a/", ".", "a\0b"]))
def test_bad_keys_are_refused(key: str) -> None:
    with pytest.raises(ValueError, match="not a key"):
        check_key(key)
