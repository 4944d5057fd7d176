"""What the tests of all rooms share: one thread each, the parity table, and a real S3 server with a bucket per test."""

import os
import uuid
from collections.abc import Iterator

import boto3
import pytest
from hypothesis import settings

from pipeline.storage.s3_settings import S3Settings
from tests.differences import pytest_sessionfinish, pytest_terminal_summary, pytest_testnodedown
from tests.servers.swift import SwiftServer

__all__ = ["pytest_sessionfinish", "pytest_terminal_summary", "pytest_testnodedown"]

# Tests run in one process per core, and a tiny model is drawn ten times as fast by one thread as by several.
os.environ["OMP_NUM_THREADS"] = "1"

# The same examples in every run, so that a test that fails fails again; `make explore` draws others each time.
settings.register_profile("same", deadline=None, derandomize=True)
settings.register_profile("explore", deadline=None)
settings.load_profile("same")


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
