"""What both stores promise, one suite for both: a directory, and a bucket of a real S3 server."""

import io
import os
import pickle
import random
import tempfile
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path

import boto3
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.errors import ObjectMissingError, ObjectReplacedError
from pipeline.storage import s3
from pipeline.storage.base import ObjectStore, check_key, is_key
from pipeline.storage.local import LocalStore
from pipeline.storage.s3 import S3Store
from pipeline.storage.s3_settings import S3Settings
from pipeline.storage.traffic import Traffic
from tests.servers.swift import LISTED_AT_ONCE

MIB = 2**20
ORDERED_KEYS = ["a!", "a-b", "a.b", "a/a", "a/b-c/x", "a/b/c", "a/b0", "a0", "aa", "b", "ä/ö", "日本", "😀/x", "🛑"]
BAD_KEYS = [
    "",
    "/a",
    "a/",
    "a//b",
    ".",
    "..",
    "../a",
    "a/../b",
    "a/./b",
    "a\0b",
    "a\nb",
    "a/.tmp-1",
    "\ud800",
    "x" * 256,
]


def local_store(request: pytest.FixtureRequest) -> ObjectStore:
    return LocalStore(Path(request.getfixturevalue("tmp_path")) / "root")


def s3_store(request: pytest.FixtureRequest) -> ObjectStore:
    server: S3Settings = request.getfixturevalue("s3_settings")
    return S3Store(request.getfixturevalue("s3_bucket"), "some/prefix", server)


@pytest.fixture(params=[local_store, s3_store], ids=["local", "s3"])
def store(request: pytest.FixtureRequest) -> ObjectStore:
    make: Callable[[pytest.FixtureRequest], ObjectStore] = request.param
    return make(request)


def keys(store: ObjectStore, prefix: str = "") -> list[str]:
    return [info.key for info in store.list(prefix)]


@pytest.mark.parametrize("size_bytes", [0, 1, 8 * MIB, 20 * MIB + 1])
def test_round_trip(store: ObjectStore, size_bytes: int) -> None:
    body = random.Random(size_bytes).randbytes(size_bytes)
    store.put("a/b", body)
    assert store.get("a/b") == body
    info = store.head("a/b")
    assert info is not None
    assert (info.key, info.size_bytes) == ("a/b", size_bytes)
    assert info.modified.tzinfo is UTC
    assert abs(info.modified - datetime.now(UTC)) < timedelta(minutes=1)
    assert [(info.key, info.size_bytes) for info in store.list()] == [("a/b", size_bytes)]


def test_overwrite(store: ObjectStore) -> None:
    for body in (b"first", b"", b"third, and longer", bytes(9 * MIB), b"last"):
        store.put("a", body)
        assert store.get("a") == body


class CountedFile(io.BytesIO):
    """Notes the most that was read at once."""

    largest = 0

    def read(self, size: int | None = -1) -> bytes:
        body = super().read(size)
        self.largest = max(self.largest, len(body))
        return body


@pytest.mark.parametrize("size_bytes", [0, 1, 8 * MIB, 20 * MIB + 1])
def test_a_file_is_put_from_its_start_and_never_read_whole(store: ObjectStore, size_bytes: int) -> None:
    body = random.Random(size_bytes).randbytes(size_bytes)
    with CountedFile(body) as file:
        file.seek(0, os.SEEK_END)
        for _ in range(2):
            store.put_file("a/b", file)
            assert store.get("a/b") == body
            assert not file.closed
        assert file.largest <= 8 * MIB
    assert keys(store) == ["a/b"]


def test_a_file_on_disk_is_put(store: ObjectStore) -> None:
    body = random.Random(0).randbytes(9 * MIB)
    with tempfile.TemporaryFile() as file:
        file.write(body)
        store.put_file("a", file)
    assert store.get("a") == body


def test_ranges(store: ObjectStore) -> None:
    store.put("a", b"0123456789")
    assert store.get_range("a", 0, 10) == b"0123456789"
    assert store.get_range("a", 3, 4) == b"3456"
    assert store.get_range("a", 8, 100) == b"89"
    assert store.get_range("a", 10, 5) == b""
    assert store.get_range("a", 11, 5) == b""
    assert store.get_range("a", 4, 0) == b""
    store.put("empty", b"")
    assert store.get_range("empty", 0, 1) == b""


def test_missing(store: ObjectStore) -> None:
    assert store.head("a") is None
    assert keys(store) == []
    for read in (store.get, store.open, lambda key: store.get_range(key, 0, 1), lambda key: store.get_range(key, 0, 0)):
        with pytest.raises(ObjectMissingError, match="a/b"):
            read("a/b")
    store.put("a/b/c", b"")
    assert store.head("a/b") is None, "what other keys lie below is no object itself"
    with pytest.raises(ObjectMissingError):
        store.get("a/b")


def test_delete_is_idempotent(store: ObjectStore) -> None:
    store.put("a/b", b"x")
    for _ in range(3):
        store.delete("a/b")
        assert store.head("a/b") is None
    store.delete("never/was")
    assert keys(store) == []
    store.put("a/b", b"again")
    assert store.get("a/b") == b"again"


def test_listing_is_in_the_order_of_utf8_bytes_and_a_prefix_is_plain_text(store: ObjectStore) -> None:
    for key in random.Random(0).sample(ORDERED_KEYS, len(ORDERED_KEYS)):
        store.put(key, b"")
    assert sorted(ORDERED_KEYS, key=str.encode) == ORDERED_KEYS
    assert keys(store) == ORDERED_KEYS
    for prefix in ("a", "a/", "a/b", "a/b/", "a/b/c", "a/b/c/", "a0", "ä", "/", "..", "../", "./", "z"):
        assert keys(store, prefix) == [key for key in ORDERED_KEYS if key.startswith(prefix)], prefix


def test_listing_goes_on_after_a_page(store: ObjectStore) -> None:
    names = [f"n/{number:04d}" for number in range(2 * LISTED_AT_ONCE + 5)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.put(key, b""), names))
    assert keys(store) == names
    listing = store.list("n/")
    assert next(listing).key == "n/0000", "a listing need not be read to its end"


def test_concurrent_puts_and_gets(store: ObjectStore) -> None:
    def work(thread: int) -> bool:
        body = bytes([thread]) * (thread * 1000 + 1)
        for number in range(3):
            store.put(f"of/{thread % 4}/{thread}-{number}", body)
        store.put("shared", body)
        return store.get(f"of/{thread % 4}/{thread}-0") == body

    with ThreadPoolExecutor(16) as pool:
        assert all(pool.map(work, range(16)))
    assert len(keys(store, "of/")) == 16 * 3
    shared = store.get("shared")
    assert shared == bytes([shared[0]]) * (shared[0] * 1000 + 1), "one of the sixteen, whole"


def test_pickles_before_and_after_use(store: ObjectStore) -> None:
    for _ in range(2):
        copy: ObjectStore = pickle.loads(pickle.dumps(store))  # noqa: S301  # our own bytes
        copy.put("a", b"x")
        assert store.get("a") == b"x"
        assert copy.uri == store.uri


def abandon(store: ObjectStore, key: str, old: bool) -> Callable[[], bool]:
    """Begin to put an object as a process does that is killed then; returns whether what it left is still there."""
    if isinstance(store, LocalStore):
        path = Path(store.uri) / key
        left = path.parent / f".tmp-77-{sha256(key.encode()).hexdigest()[:16]}"
        left.parent.mkdir(parents=True, exist_ok=True)
        left.write_bytes(b"half of it")
        os.utime(left, (1, 1) if old else None)
        return left.exists
    bucket, _, prefix = store.uri.removeprefix("s3://").partition("/")
    client = boto3.session.Session().client("s3")
    upload = client.create_multipart_upload(Bucket=bucket, Key=f"{prefix}/{key}")["UploadId"]
    client.upload_part(Bucket=bucket, Key=f"{prefix}/{key}", UploadId=upload, PartNumber=1, Body=b"half of it")

    def there() -> bool:
        return upload in {
            found["UploadId"] for found in client.list_multipart_uploads(Bucket=bucket).get("Uploads", ())
        }

    return there


def test_what_killed_writers_left_is_swept_when_it_is_old(store: ObjectStore, monkeypatch: pytest.MonkeyPatch) -> None:
    listed = s3._list_uploads
    monkeypatch.setattr(s3, "_list_uploads", lambda place, client: listed(place | {"MaxUploads": 1}, client))
    store.put("a/whole", b"x")
    assert store.sweep("a/", datetime.now(UTC)) == store.sweep("never/was/", datetime.now(UTC)) == 0
    left = {key: abandon(store, key, old=True) for key in ("a/b", "a/c/d", "b/e", "metadata.parquet")}
    assert all(there() for there in left.values())
    assert keys(store) == ["a/whole"]
    long_ago = datetime.fromtimestamp(0, UTC)
    assert [store.sweep(prefix, long_ago) for prefix in ("a/", "b/", "metadata")] == [0, 0, 0]
    soon = datetime.now(UTC) + timedelta(minutes=1)
    assert store.sweep("a/", soon) == 2
    assert {key for key, there in left.items() if there()} == {"b/e", "metadata.parquet"}
    assert store.sweep("metadata", soon) == 1
    assert {key for key, there in left.items() if there()} == {"b/e"}
    assert store.sweep("", soon) == 1
    assert store.get("a/whole") == b"x"


def test_a_file_that_only_looks_temporary_is_not_swept(tmp_path: Path) -> None:
    root = tmp_path / "root"
    store = LocalStore(root)
    store.put("a/b", b"x")
    (tmp_path / "elsewhere").mkdir()
    (root / "a" / "link").symlink_to(tmp_path / "elsewhere")
    for path in (root / "a" / ".tmp-mine", root / "a" / ".tmp-1-2", tmp_path / "elsewhere" / f".tmp-1-{'0' * 16}"):
        path.write_bytes(b"")
    assert store.sweep("a/", datetime.now(UTC) + timedelta(minutes=1)) == 0
    assert abandon(store, "a/young", old=False)()
    assert store.sweep("a/", datetime.now(UTC) - timedelta(minutes=1)) == 0


def test_open_seeks_and_reads(store: ObjectStore) -> None:
    body = random.Random(0).randbytes(100_000)
    store.put("a", body)
    with store.open("a") as file:
        assert (file.readable(), file.seekable(), file.tell()) == (True, True, 0)
        assert (file.read(10), file.tell()) == (body[:10], 10)
        assert (file.seek(-10, 2), file.read()) == (99_990, body[-10:])
        assert file.read(5) == b""
        assert (file.seek(50), file.seek(50, 1), file.read(1)) == (50, 100, body[100:101])
        assert (file.seek(200_000), file.read(5)) == (200_000, b"")
        file.seek(0)
        assert file.read() == body
        with pytest.raises((ValueError, OSError)):
            file.seek(-1)
    with pytest.raises(ValueError, match="closed"):
        file.read(1)


@pytest.mark.parametrize("size_bytes", [100_000, 20 * MIB])
def test_an_opened_object_that_is_replaced_is_not_mixed(store: ObjectStore, size_bytes: int) -> None:
    """Of the same size, so that nothing else tells of it."""
    bodies = [random.Random(number).randbytes(size_bytes) for number in range(2)]
    store.put("a", bodies[0])
    with store.open("a") as file:
        assert file.read(1000) == bodies[0][:1000]
        store.put("a", bodies[0])
        assert file.read(1000) == bodies[0][1000:2000], "the same bytes are the same object"
        store.put("a", bodies[1])
        if isinstance(store, S3Store):
            with pytest.raises(ObjectReplacedError, match=r"reading 'a' in bucket .* written anew"):
                file.read(1000)
        else:
            assert file.read() == bodies[0][2000:]
    with store.open("a") as file:
        assert file.read() == bodies[1]


def test_a_parquet_file_that_is_replaced_while_it_is_read(store: ObjectStore) -> None:
    """The error comes through pyarrow as it is."""
    sinks = []
    for first in (0, 1):
        sinks.append(io.BytesIO())
        numbers = random.Random(first).choices(range(10**9), k=50_000)
        pq.write_table(pa.table({"n": numbers}), sinks[-1], row_group_size=10_000)
    store.put("m", sinks[0].getvalue())
    with store.open("m") as file, pq.ParquetFile(file) as parquet:
        parquet.read_row_group(0)
        store.put("m", sinks[1].getvalue())
        if isinstance(store, S3Store):
            with pytest.raises(ObjectReplacedError):
                parquet.read_row_group(3)
        else:
            parquet.read_row_group(3)


def test_reads_parquet_through_open(store: ObjectStore) -> None:
    table = pa.table({"n": list(range(50_000)), "text": [f"prompt {n}" for n in range(50_000)]})
    sink = pa.BufferOutputStream()
    pq.write_table(table, sink, row_group_size=10_000)
    store.put("m/prompts.parquet", sink.getvalue().to_pybytes())
    with store.open("m/prompts.parquet") as raw, pa.PythonFile(raw, mode="r") as file, pq.ParquetFile(file) as parquet:
        assert parquet.num_row_groups == 5
        assert parquet.read_row_group(3, columns=["n"])["n"].to_pylist() == list(range(30_000, 40_000))
        assert parquet.read().equals(table)


def test_traffic_is_counted_alike(store: ObjectStore) -> None:
    assert store.traffic == Traffic()
    store.put("a", b"12345")
    store.put_file("b", io.BytesIO(b"678"))
    assert (store.get("a"), store.get_range("b", 1, 9)) == (b"12345", b"78")
    assert store.head("c") is None
    with pytest.raises(ObjectMissingError):
        store.get("c")
    assert keys(store) == ["a", "b"]
    store.delete("a")
    assert store.traffic == Traffic(requests=8, bytes_put=8, bytes_got=7)
    assert 0 < store.traffic.put_s < 60
    copy: ObjectStore = pickle.loads(pickle.dumps(store))  # noqa: S301  # our own bytes
    assert copy.traffic == Traffic(), "another process counts for itself"
    assert copy.get("b") == b"678"
    assert copy.traffic + store.traffic == Traffic(requests=9, bytes_put=8, bytes_got=10)


def test_traffic_of_many_threads(store: ObjectStore) -> None:
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: store.put(f"n/{number}", bytes(number)), range(64)))
    assert store.traffic == Traffic(requests=64, bytes_put=sum(range(64)))


def test_check_writable_leaves_nothing(store: ObjectStore) -> None:
    store.check_writable()
    assert keys(store) == []


@pytest.mark.parametrize("key", BAD_KEYS, ids=lambda key: ascii(key[:10]))
def test_bad_keys_are_refused_by_every_method(tmp_path: Path, key: str) -> None:
    for store in (LocalStore(tmp_path), S3Store("bucket", "", S3Settings())):
        for use in (store.get, store.head, store.delete, store.open):
            with pytest.raises(ValueError, match="not a key"):
                use(key)
        with pytest.raises(ValueError, match="not a key"):
            store.put(key, b"")
        with pytest.raises(ValueError, match="not a key"):
            store.put_file(key, io.BytesIO())
        with pytest.raises(ValueError, match="not a key"):
            store.get_range(key, 0, 1)


PIECES = st.sampled_from(["/", ".", "..", "a", "-", "é", "\0", "\n", "\x7f", ".tmp-", "\ud800", "\\", "~", "C:", "😀"])


@settings(max_examples=300)
@given(st.one_of(st.text(max_size=40), st.lists(PIECES, max_size=8).map("".join)))
def test_any_text_is_refused_or_is_a_file_below_the_root(key: str) -> None:
    with tempfile.TemporaryDirectory() as folder:
        root = Path(folder) / "above" / "root"
        store = LocalStore(root)
        if not is_key(key):
            with pytest.raises(ValueError, match="not a key"):
                check_key(key)
            return
        store.put(key, b"x")
        assert store.get(key) == b"x"
        assert keys(store) == [key]
        files = [path for path in Path(folder).rglob("*") if path.is_file()]
        assert len(files) == 1
        assert files[0].is_relative_to(root)
