"""The address of a cluster that a launch joins, given to the command; and what stands at an address, on loopback."""

import socket
import socketserver
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path

import grpc
import pytest

from pipeline.distributed import cluster_address
from pipeline.distributed.address import DASHBOARD_PORT
from pipeline.distributed.cluster_address import check_alive, checked_cluster
from pipeline.errors import JobFileError
from tests.cluster.nodes import free_port
from tests.test_cli import darkroom

REFUSED = [
    ("http://127.0.0.1:8265", "which `darkroom submit` takes"),
    ("https://head", "which `darkroom submit` takes"),
    ("ray://head:10001", "over ray://"),
    ("redis://head:6379", "over redis://"),
    ("head", "has no port"),
    ("head:", "no valid port"),
    ("head:http", "no valid port"),
    ("head:0", "no valid port"),
    ("head:65536", "no valid port"),
    ("::1:6379", "no valid port"),
    ("two words:6379", "no valid port"),
    ("me:secret@head:6379", "credentials have no place"),
]


@pytest.mark.parametrize(("address", "says"), REFUSED, ids=[address for address, _ in REFUSED])
def test_what_cannot_be_the_address_of_a_cluster(address: str, says: str) -> None:
    with pytest.raises(JobFileError, match=says) as raised:
        checked_cluster(address)
    assert "secret" not in str(raised.value)


def test_what_can_be() -> None:
    assert [checked_cluster(text) for text in (None, "", " ", "local")] == [None] * 4
    for address in ("auto", "head:6379", "10.0.0.1:6379", "[::1]:6379"):
        assert checked_cluster(f" {address} ") == address


@pytest.mark.parametrize("name", ["--address", "RAY_ADDRESS"])
def test_where_nobody_listens_is_bad_input_within_seconds(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("RAY_ADDRESS", raising=False)
    address = f"127.0.0.1:{free_port()}"
    words = ["render", "--prompt", "a", "--model", "shapes", "-o", "out"]
    if name == "RAY_ADDRESS":
        monkeypatch.setenv(name, address)
    else:
        words += [name, address]
    assert darkroom(monkeypatch, *words) == 2
    assert "nothing listens there" in capsys.readouterr().err
    assert not list(tmp_path.rglob("run.json"))


class _Web(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        self.request.recv(1000)
        self.request.sendall(b"HTTP/1.1 400 Bad Request\r\n\r\n")


class _Silent(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        time.sleep(1)


@contextmanager
def served(kind: type[socketserver.BaseRequestHandler]) -> Iterator[str]:
    with ThreadPoolExecutor(1) as pool, socketserver.ThreadingTCPServer(("127.0.0.1", 0), kind) as server:
        pool.submit(server.serve_forever, 0.05)
        yield f"127.0.0.1:{server.server_address[1]}"
        server.shutdown()


def refused(address: str) -> str:
    with pytest.raises(JobFileError) as raised:
        check_alive(address, given=address)
    return str(raised.value)


def test_another_service_is_not_a_head(monkeypatch: pytest.MonkeyPatch) -> None:
    """Ray's client would ask it for two minutes."""
    with served(_Web) as address:
        assert "is not the head of a Ray cluster" in refused(address)
    monkeypatch.setattr(cluster_address, "ANSWER_S", 0.3)
    with served(_Silent) as address:
        assert "it does not answer" in refused(address)
    with ThreadPoolExecutor(1) as pool:  # like the Ray client's port
        server = grpc.server(pool)
        address = f"127.0.0.1:{server.add_insecure_port('127.0.0.1:0')}"
        server.start()
        assert "is not the head of a Ray cluster" in refused(address)
        server.stop(None)


def test_the_dashboards_port_is_named() -> None:
    with socket.socket() as taken:
        try:
            taken.bind(("127.0.0.1", DASHBOARD_PORT))
        except OSError:
            pytest.skip("a dashboard may run there")
        assert "8265 is the dashboard's port, nodes meet at 6379" in refused("127.0.0.1:8265")


@pytest.mark.parametrize("said", ["getsockopt(SO_ERROR): No route to host", "error: Network is unreachable"])
def test_an_address_without_a_route_is_not_taken_for_another_server(said: str) -> None:
    details = f"failed to connect to all addresses; last error: {said}"  # in gRPC
    assert cluster_address._reason("UNAVAILABLE", details) == "this machine has no route to it"
