"""What a store says when it cannot: a clear error of the right kind, soon, without a credential in it."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from pipeline.errors import InputError, StoreDeniedError, StoreError, StoreUnavailableError
from pipeline.storage.local import LocalStore
from pipeline.storage.location import open_store
from pipeline.storage.s3 import S3Settings
from tests.servers.swift import SwiftServer

IMPATIENT = S3Settings(attempts=2, timeout_s=3)


def test_missing_bucket(s3_bucket: str) -> None:
    with pytest.raises(StoreDeniedError, match=r"NoSuchBucket.*'no-such-bucket'"):
        open_store("s3://no-such-bucket/x", IMPATIENT).check_writable()


def test_wrong_secret(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "notthesecret")
    with pytest.raises(StoreDeniedError, match="SignatureDoesNotMatch") as caught:
        open_store(f"s3://{s3_bucket}", IMPATIENT).check_writable()
    assert "notthesecret" not in str(caught.value)


def test_no_credentials(s3_bucket: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("AWS_ACCESS_KEY_ID")
    monkeypatch.delenv("AWS_SECRET_ACCESS_KEY")
    with pytest.raises(StoreDeniedError, match="no AWS credentials"):
        open_store(f"s3://{s3_bucket}", IMPATIENT).check_writable()


def test_unreachable_server(s3_bucket: str) -> None:
    settings = S3Settings(endpoint_url="http://127.0.0.1:9", attempts=2, timeout_s=3)
    began = time.monotonic()
    with pytest.raises(StoreUnavailableError, match=r"cannot be reached at http://127\.0\.0\.1:9"):
        open_store(f"s3://{s3_bucket}", settings).check_writable()
    assert time.monotonic() - began < 20


def test_acknowledged_objects_survive_a_killed_server(s3_server: SwiftServer, s3_bucket: str) -> None:
    store = open_store(f"s3://{s3_bucket}", IMPATIENT)
    store.put("k", b"kept")
    s3_server.kill()
    with pytest.raises(StoreError):
        store.get("k")
    s3_server.start()
    assert open_store(f"s3://{s3_bucket}").get("k") == b"kept"


@pytest.mark.parametrize("uri", ["", "  ", "gs://bucket/x", "s3://", "s3:///x", "s3://b/../x", "http://x/y"])
def test_bad_locations(uri: str) -> None:
    with pytest.raises(InputError, match="not a location"):
        open_store(uri)


def test_a_directory_that_is_a_file(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(StoreDeniedError):
        LocalStore(tmp_path / "file" / "inside").check_writable()


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
    assert said.stdout.startswith("the disk is full")
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
