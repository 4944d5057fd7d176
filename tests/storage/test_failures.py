"""What a store does when things fail: it insists while that can help, then says what is wrong, and leaks nothing."""

import errno
import io
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from random import Random

import boto3
import pytest

from pipeline.errors import InputError, StoreDeniedError, StoreError, StoreUnavailableError
from pipeline.storage.base import ObjectStore
from pipeline.storage.local import LocalStore
from pipeline.storage.location import open_parent, open_store
from pipeline.storage.s3_settings import S3Settings
from pipeline.storage.traffic import Traffic
from tests.servers.fault_proxy import Fault, FaultProxy
from tests.servers.swift import SwiftServer

IMPATIENT = S3Settings(max_attempts=2, patience_s=0, connect_timeout_s=3, read_timeout_s=3)
FAULTS = [fault for fault in Fault if fault is not Fault.DELAY]


def behind(proxy: FaultProxy, *, max_attempts: int = 2, patience_s: float = 20) -> S3Settings:
    """Few attempts of botocore's own, so that its pauses are short and the store's rounds are what is tested."""
    return S3Settings(endpoint_url=proxy.endpoint_url, max_attempts=max_attempts, patience_s=patience_s)


def test_a_passing_failure_is_not_noticed(s3_server: SwiftServer, s3_bucket: str) -> None:
    """All faults at once, since most of the time is pauses."""
    with ThreadPoolExecutor(len(FAULTS)) as pool:
        list(pool.map(lambda fault: pass_twice(s3_server, f"s3://{s3_bucket}/{fault.name}", fault), FAULTS))


def pass_twice(server: SwiftServer, uri: str, fault: Fault) -> None:
    """Let each operation meet the fault twice in a row, which is all the attempts of the first round."""
    body = Random(0).randbytes(10_000)
    uses: list[Callable[[ObjectStore], object]] = [
        lambda store: store.put("a", body),
        lambda store: store.get("a"),
        lambda store: store.get_range("a", 5, 100),
        lambda store: store.head("a"),
        lambda store: list(store.list()),
        lambda store: store.put_file("large", io.BytesIO(body * 900)),
        lambda store: store.delete("a"),
    ]
    plain = open_store(f"{uri}/plain")
    with FaultProxy(server.endpoint_url) as proxy:
        store = open_store(f"{uri}/faulty", behind(proxy))
        for use in uses:
            proxy.script([fault, fault])
            answer, expected = use(store), use(plain)
            if isinstance(expected, bytes):
                assert answer == expected, fault
        assert sum(proxy.landed.values()) >= 2 * len(uses) - 4, "bodies that are empty cannot be cut"
    assert store.uri.endswith("/faulty")
    assert [(info.key, info.size_bytes) for info in plain.list()] == [("large", len(body) * 900)], fault
    assert open_store(f"{uri}/faulty").get("large") == body * 900, fault


def test_a_storm_of_failures_loses_nothing(s3_server: SwiftServer, s3_bucket: str) -> None:
    rates = {Fault.UNAVAILABLE: 0.1, Fault.RESET_AFTER: 0.1, Fault.TRUNCATED: 0.1, Fault.RESET_BEFORE: 0.05}
    with FaultProxy(s3_server.endpoint_url, seed=1, rates=rates) as proxy:
        store = open_store(f"s3://{s3_bucket}", behind(proxy, max_attempts=5, patience_s=60))
        with ThreadPoolExecutor(8) as pool:
            list(pool.map(lambda n: store.put(f"n/{n:02d}", b"%d" % n), range(40)))
            assert list(pool.map(lambda n: store.get(f"n/{n:02d}"), range(40))) == [b"%d" % n for n in range(40)]
        assert [info.key for info in store.list()] == [f"n/{n:02d}" for n in range(40)]
        assert len(proxy.landed) == len(rates)


def test_every_attempt_is_counted(s3_server: SwiftServer, s3_bucket: str) -> None:
    """By the proxy as well, which sees what really arrives: attempts of botocore, and rounds of the store."""
    rates: dict[Fault, float] = dict.fromkeys(FAULTS, 0.1)
    body = Random(0).randbytes(1000)
    with FaultProxy(s3_server.endpoint_url, seed=2, rates=rates) as proxy:
        store = open_store(f"s3://{s3_bucket}", behind(proxy, patience_s=60))
        for number in range(10):
            store.put(f"n/{number:02d}", body)
            assert store.get(f"n/{number:02d}") == body
        assert len(list(store.list())) == 10
        failed = store.traffic.requests - 21
        assert failed >= 5
        assert store.traffic == Traffic(requests=proxy.requests, retries=failed, bytes_put=10_000, bytes_got=10_000)
        store.put_file("large", io.BytesIO(body * 20_000))
        assert store.traffic.requests == proxy.requests
        assert store.traffic.bytes_put == 20_010_000


def test_what_fails_for_good_counts_as_sent_and_not_as_stored(s3_server: SwiftServer, s3_bucket: str) -> None:
    with FaultProxy(s3_server.endpoint_url, rates={Fault.UNAVAILABLE: 1.0}) as proxy:
        store = open_store(f"s3://{s3_bucket}", behind(proxy, patience_s=0))
        with pytest.raises(StoreUnavailableError):
            store.put("a", b"12345")
        assert store.traffic == Traffic(requests=2, retries=1)
        assert proxy.requests == 2


def test_patience_ends(s3_server: SwiftServer, s3_bucket: str) -> None:
    with FaultProxy(s3_server.endpoint_url, rates={Fault.UNAVAILABLE: 1.0}) as proxy:
        store = open_store(f"s3://{s3_bucket}", behind(proxy, patience_s=2))
        with pytest.raises(StoreUnavailableError, match=r"kept failing at bucket .*HTTP 503"):
            store.put("a", b"")
        assert proxy.requests > IMPATIENT.max_attempts, "more than one round"


def test_a_failed_upload_leaves_no_parts_behind(s3_server: SwiftServer, s3_bucket: str) -> None:
    client = boto3.session.Session().client("s3", endpoint_url=s3_server.endpoint_url)
    begun = client.create_multipart_upload(Bucket=s3_bucket, Key="begun")
    assert [upload["Key"] for upload in client.list_multipart_uploads(Bucket=s3_bucket)["Uploads"]] == ["begun"]
    client.abort_multipart_upload(Bucket=s3_bucket, Key="begun", UploadId=begun["UploadId"])
    with FaultProxy(s3_server.endpoint_url, rates={Fault.UNAVAILABLE: 1.0}, methods=("PUT",)) as proxy:
        store = open_store(f"s3://{s3_bucket}", behind(proxy, patience_s=0))
        with pytest.raises(StoreUnavailableError, match="writing 'large' kept failing"):
            store.put_file("large", io.BytesIO(bytes(20_000_000)))
        assert proxy.landed[Fault.UNAVAILABLE] >= 2
    assert "Uploads" not in client.list_multipart_uploads(Bucket=s3_bucket)
    assert list(open_store(f"s3://{s3_bucket}").list()) == []
    client.close()


def test_missing_bucket(s3_bucket: str) -> None:
    with pytest.raises(StoreDeniedError, match=r"'no-such-bucket'.*NoSuchBucket"):
        open_store("s3://no-such-bucket/x", IMPATIENT).check_writable()


def test_wrong_secret(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "notthesecret")
    with pytest.raises(StoreDeniedError, match="SignatureDoesNotMatch") as caught:
        open_store(f"s3://{s3_bucket}", IMPATIENT).check_writable()
    assert "notthesecret" not in str(caught.value)


def test_no_credentials(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreDeniedError, match=r"no usable credentials.*Set AWS_ACCESS_KEY_ID"):
        open_store(f"s3://{s3_bucket}", IMPATIENT).check_writable()


def test_unreachable_server(s3_bucket: str) -> None:
    settings = S3Settings(endpoint_url="http://127.0.0.1:9", max_attempts=2, patience_s=0)
    with pytest.raises(StoreUnavailableError, match=r"http://127\.0\.0\.1:9 cannot be reached"):
        open_store(f"s3://{s3_bucket}", settings).check_writable()


def test_acknowledged_objects_survive_a_killed_server(s3_server: SwiftServer, s3_bucket: str) -> None:
    store = open_store(f"s3://{s3_bucket}", IMPATIENT)
    store.put("k", b"kept")
    s3_server.kill()
    with pytest.raises(StoreError):
        store.get("k")
    s3_server.start()
    assert open_store(f"s3://{s3_bucket}").get("k") == b"kept"


@pytest.mark.parametrize(
    ("uri", "says"),
    [
        ("", "an empty location"),
        ("  ", "an empty location"),
        ("a\0b", "NUL"),
        ("gs://bucket/x", r"gs:// is not supported"),
        ("http://x/y", r"http:// is not supported"),
        ("s3://", "no bucket"),
        ("s3:///x", "no bucket"),
        ("s3://b/x", "not the name of a bucket"),
        ("s3://bucket/../x", "segment"),
        ("s3://bucket//x", "segment"),
        ("file://elsewhere/x", "another machine"),
        ("s3://key:secret@bucket/x", "credentials have no place"),
        ("s3://key:secret/with/slashes@bucket/x", "credentials have no place"),
        ("s3://key:/secret@bucket/x", "credentials have no place"),
    ],
)
def test_bad_locations(uri: str, says: str) -> None:
    with pytest.raises(InputError, match=says) as caught:
        open_store(uri)
    assert "secret" not in str(caught.value)


@pytest.mark.parametrize("uri", ["gs://x/y", "~nosuchuser/x", "s3://b/x", ""])
def test_a_bad_location_says_where_it_was_given(uri: str) -> None:
    with pytest.raises(InputError) as caught:
        open_store(uri, where="output.uri")
    assert caught.value.where == "output.uri"
    with pytest.raises(InputError) as caught:
        open_parent(uri, where="manifest")
    assert (caught.value.where, bool(caught.value.allowed)) == ("manifest", True)


def test_links_that_go_in_a_circle(tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    assert list(LocalStore(tmp_path).list()) == []
    with pytest.raises(InputError, match="circle"):
        open_parent(str(tmp_path / "loop"))
    with pytest.raises(StoreError):
        open_store(str(tmp_path / "loop")).check_writable()


def test_the_first_contact_is_impatient() -> None:
    settings = S3Settings(endpoint_url="http://127.0.0.1:9", region="here", read_timeout_s=7)
    first = settings.impatient()
    assert (first.endpoint_url, first.region, first.read_timeout_s) == ("http://127.0.0.1:9", "here", 7)
    assert (first.max_attempts, first.patience_s) == (3, 0)


@pytest.mark.parametrize("uri", ["dir/", "s3://bucket", "s3://bucket/"])
def test_a_location_that_names_no_file(uri: str) -> None:
    with pytest.raises(InputError):
        open_parent(uri)


@pytest.mark.parametrize(
    "bad",
    [
        {"endpoint_url": "localhost:9000"},
        {"endpoint_url": "http://user:secret@host"},
        {"endpoint_url": "http://host/?token=secret"},
        {"endpoint_url": "http://host#secret"},
        {"endpoint_url": "http://host:port"},
        {"addressing_style": "dns"},
        {"max_attempts": 0},
        {"patience_s": -1.0},
        {"read_timeout_s": 0.0},
    ],
)
def test_bad_settings(bad: dict[str, object]) -> None:
    with pytest.raises(InputError, match=next(iter(bad))) as caught:
        S3Settings(**bad)  # type: ignore[arg-type]  # wrong on purpose
    assert "secret" not in str(caught.value)


def test_a_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreDeniedError, match="in the way"):
        LocalStore(tmp_path / "file" / "inside").check_writable()


def test_a_link_that_leads_out(tmp_path: Path) -> None:
    (tmp_path / "root").mkdir()
    (tmp_path / "secret").write_text("x")
    (tmp_path / "root" / "link").symlink_to(tmp_path / "secret")
    with pytest.raises(StoreDeniedError, match="symbolic link"):
        LocalStore(tmp_path / "root").get("link")


def test_full_disk_leaves_nothing_half(tmp_path: Path) -> None:
    """A file size limit makes the kernel refuse the write, as a full disk does."""
    code = f"""
import resource, signal
from pathlib import Path
from pipeline.errors import StoreUnavailableError
from pipeline.storage.local import LocalStore
signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
store = LocalStore(Path({str(tmp_path)!r}))
store.put("small", b"x" * 1000)
try:
    store.put("large", b"x" * 1001)
except StoreUnavailableError as error:
    print(error)
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.startswith("disk full: cannot write")
    assert os.strerror(errno.EFBIG) in said.stdout
    assert os.listdir(tmp_path) == ["small"]


def test_killed_while_putting_leaves_nothing_half(tmp_path: Path) -> None:
    code = f"""
from pathlib import Path
from pipeline.storage.local import LocalStore
store = LocalStore(Path({str(tmp_path)!r}))
while True:
    store.put("k", b"x" * 5_000_000)
"""
    for delay_s in (0.5, 0.53, 0.57, 0.61):
        child = subprocess.Popen([sys.executable, "-c", code])
        time.sleep(delay_s)
        child.send_signal(signal.SIGKILL)
        child.wait()
        sizes = [info.size_bytes for info in LocalStore(tmp_path).list()]
        assert sizes in ([], [5_000_000])
