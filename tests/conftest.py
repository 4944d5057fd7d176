"""What the tests of all rooms share: one thread each, the parity table, a Ray, an S3 server with a bucket per test."""

import json
import os
import subprocess
import sys
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path

import boto3
import pytest
from hypothesis import settings

from jobs import cli
from pipeline.storage.s3_settings import S3Settings
from tests.differences import pytest_sessionfinish, pytest_terminal_summary, pytest_testnodedown
from tests.servers.swift import SwiftServer

__all__ = ["pytest_sessionfinish", "pytest_terminal_summary", "pytest_testnodedown"]

# Tests run in one process per core, and a tiny model is drawn ten times as fast by one thread as by several.
os.environ["OMP_NUM_THREADS"] = "1"


def _without_waiting(fd: object) -> None:
    """Do nothing: tests kill processes and never cut the power, so they would learn nothing from waiting for a disk."""


os.fsync = _without_waiting

# The same examples in every run, so that a test that fails fails again; `make explore` draws others each time.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile("same")

LONGEST = ("test_end_to_end.py", "test_cookbook.py", "test_cluster.py", "test_faults.py", "test_ray_crew.py")
"""Files that begin first: one that began last would keep one process busy while the others have nothing to do."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    items.sort(key=lambda item: item.path.name not in LONGEST)


@pytest.fixture(scope="session")
def s3_server(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SwiftServer]:
    """A running server with `endpoint_url`, `access_key`, `secret_key` and `region`."""
    server = SwiftServer(tmp_path_factory.mktemp("swift"))
    server.start()
    yield server
    server.stop()


def aws_environment(server: SwiftServer) -> dict[str, str]:
    """The AWS variables a user of that server would set; configuration files of this machine are shut out."""
    return {
        "AWS_ENDPOINT_URL": server.endpoint_url,
        "AWS_ACCESS_KEY_ID": server.access_key,
        "AWS_SECRET_ACCESS_KEY": server.secret_key,
        "AWS_DEFAULT_REGION": server.region,
        "AWS_EC2_METADATA_DISABLED": "true",
        "AWS_CONFIG_FILE": "/no-such-file",
        "AWS_SHARED_CREDENTIALS_FILE": "/no-such-file",
    }


@pytest.fixture
def s3_environment(s3_server: SwiftServer, monkeypatch: pytest.MonkeyPatch) -> None:
    """Set those variables and no other of AWS but this machine's own CA bundle."""
    for name in tuple(os.environ):
        if name.startswith("AWS_") and name != "AWS_CA_BUNDLE":
            monkeypatch.delenv(name)
    for name, value in aws_environment(s3_server).items():
        monkeypatch.setenv(name, value)


@pytest.fixture
def s3_settings(s3_server: SwiftServer) -> S3Settings:
    """How to reach the server; the credentials come from the environment."""
    return S3Settings(endpoint_url=s3_server.endpoint_url, region=s3_server.region)


@pytest.fixture
def s3_bucket(s3_server: SwiftServer, s3_environment: None) -> str:
    """The name of a new, empty bucket; the AWS variables are set for it."""
    name = f"test-{uuid.uuid4().hex}"
    session = boto3.session.Session()
    client = session.client("s3", endpoint_url=s3_server.endpoint_url)
    client.create_bucket(Bucket=name)
    client.close()
    return name


@pytest.fixture(scope="session")
def shared_ray(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Mapping[str, str]]:
    """The variables with which a command joins a running Ray that has room for one worker.

    A launch that starts its own takes half as long again. Workers have the variables of this Ray, not the command's.
    """
    folder, root = tmp_path_factory.mktemp("ray"), Path(__file__).parent.parent
    (folder / "token").write_text("a" * 64)
    join = {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN_PATH": str(folder / "token")}
    # It listens on loopback alone, and is looked for there.
    join["RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER"] = "0"
    others = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")}
    quiet = {"RAY_BACKEND_LOG_LEVEL": "fatal"}
    with subprocess.Popen(
        [sys.executable, "-m", "tests.metrics.local_ray", "1"],
        cwd=root,
        env={**others, **join, **quiet, "PYTHONPATH": str(root), "XDG_CACHE_HOME": str(folder / "cache")},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        assert process.stdout
        yield {**join, "RAY_ADDRESS": json.loads(process.stdout.readline())["address"]}


Command = Callable[..., tuple[int, str, str]]
"""Runs the command in this process; gives exit code, output and errors."""


@pytest.fixture
def command(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr(sys, "argv", ["darkroom", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said = capsys.readouterr()
        return int(str(ended.value.code)), said.out, said.err

    return run
