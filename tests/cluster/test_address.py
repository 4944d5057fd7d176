"""Every way in which an address can be wrong has words of its own, and exit code 2."""

import socket
import threading
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from http.server import BaseHTTPRequestHandler, HTTPServer

import pytest

from pipeline.distributed import address
from pipeline.distributed.address import await_dashboard, check_dashboard, checked_address, refused_token
from pipeline.errors import JobFileError
from tests.cluster.nodes import free_port

MALFORMED = {
    "head:8265": ("has no scheme", "http://head:8265"),
    "head": ("has no scheme", "http://head:8265"),
    "auto": ("has no scheme", "http://127.0.0.1:8265"),
    "": ("has no scheme", "http://127.0.0.1:8265"),
    "ray://head:10001": ("address of a Ray client", "http://head:8265"),
    "anyscale://head": ("not anyscale", "http://head:8265"),
    "http://": ("no address of a dashboard", "http://host:8265"),
    "http://head:port": ("this is no address", "http://host:8265"),
    "http://head:8265/?x=1": ("no address of a dashboard", "http://host:8265"),
    "http://user:secret@head:8265": ("credentials have no place", "RAY_AUTH_TOKEN"),
    "http://user:secret@head:port": ("credentials have no place", "RAY_AUTH_TOKEN"),
    "user:secret@head:8265": ("credentials have no place", "RAY_AUTH_TOKEN"),
    "user:sec/secret@head": ("credentials have no place", "RAY_AUTH_TOKEN"),
}


@pytest.mark.parametrize("text", MALFORMED)
def test_what_cannot_be_an_address(text: str) -> None:
    what, allowed = MALFORMED[text]
    with pytest.raises(JobFileError, match=what) as refused:
        checked_address(text)
    assert allowed in str(refused.value)
    assert "secret" not in str(refused.value)


def test_good_addresses() -> None:
    assert checked_address("http://head:8265/") == "http://head:8265"
    assert checked_address("https://rays.example.org/one") == "https://rays.example.org/one"


def refusal(url: str) -> str:
    with pytest.raises(JobFileError) as refused:
        check_dashboard(url)
    return str(refused.value)


def test_nothing_listens() -> None:
    assert "nothing listens there" in refusal(f"http://127.0.0.1:{free_port()}")


def test_no_such_host() -> None:
    said = refusal("http://no-such-host.invalid:8265")
    assert "there is no host of this name" in said or "proxy" in said


def test_the_port_of_the_nodes_is_named() -> None:
    assert address._hint("http://head:6379").startswith("; 6379 is the port at which Ray's nodes meet")
    assert address._hint("http://head").endswith("names no port, the dashboard's is 8265")


@contextmanager
def answering(answer: bytes | None) -> Iterator[str]:
    """Somebody who answers every connection with these bytes; None: with silence."""
    with closing(socket.create_server(("127.0.0.1", 0))) as server:

        def serve() -> None:
            kept = []
            while True:
                try:
                    client, _ = server.accept()
                except OSError:
                    return
                kept.append(client)
                if answer is not None:
                    client.recv(4096)
                    client.sendall(answer)
                    client.close()

        threading.Thread(target=serve, daemon=True).start()
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_something_that_is_no_web_server() -> None:
    """As Ray's GCS answers: frames of HTTP/2."""
    with answering(b"\0\0\x12\x04\0\0\0\0\0\0\x03\x7f\xff\xff\xff") as place:
        assert "does not speak http" in refusal(f"http://{place}")
        assert "TLS failed" in refusal(f"https://{place}")


def test_silence(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "ANSWER_S", 0.2)
    with answering(None) as place:
        assert "does not answer" in refusal(f"http://{place}")


@contextmanager
def website(status: int, body: str, port: int = 0) -> Iterator[str]:
    class Page(BaseHTTPRequestHandler):
        def do_GET(self) -> None:
            self.send_response(status)
            self.end_headers()
            self.wfile.write(body.encode())

        def log_message(self, *_: object) -> None:
            pass

    with HTTPServer(("127.0.0.1", port), Page) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        try:
            yield f"http://127.0.0.1:{server.server_port}"
        finally:
            server.shutdown()


@pytest.mark.parametrize(("status", "body"), [(404, "none"), (200, "<html>"), (302, ""), (403, "log in"), (500, "")])
def test_another_website(status: int, body: str) -> None:
    with website(status, body) as url:
        assert f"not Ray's dashboard (HTTP {status})" in refusal(url)


@pytest.mark.parametrize(
    ("status", "body"),
    [(200, '{"ray_version": "2.60.0"}'), (401, "Unauthorized: Missing authentication token")],
)
def test_a_dashboard(status: int, body: str) -> None:
    with website(status, body) as url:
        check_dashboard(url)


def test_a_dashboard_that_starts_is_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "_POLL_S", 0.0)
    port, told = free_port(), list[str]()
    with ExitStack() as stack:

        def start(said: str) -> None:
            told.append(said)
            stack.enter_context(website(200, '{"ray_version": "2.60.0"}', port))

        await_dashboard(f"http://127.0.0.1:{port}", start)
    assert told == [
        f"no dashboard answers at http://127.0.0.1:{port} yet; "
        "trying again for up to 60 s, since the cluster may be starting"
    ]


def test_a_dashboard_that_does_not_start_is_given_up(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(address, "_POLL_S", 0.01)
    monkeypatch.setattr(address, "START_PATIENCE_S", 0.1)
    told = list[str]()
    with website(503, "") as url, pytest.raises(JobFileError, match="HTTP 503"):
        await_dashboard(url, told.append)
    with pytest.raises(JobFileError, match="nothing listens there"):
        await_dashboard(f"http://127.0.0.1:{free_port()}", told.append)
    assert len(told) == 2


def test_what_is_no_starting_dashboard_is_not_waited_for() -> None:
    with website(404, "none") as url, pytest.raises(JobFileError, match="HTTP 404"):
        await_dashboard(url, pytest.fail)


TOKENS: list[tuple[str, str]] = [
    ("Authentication required: Unauthorized", "asks for a token, and none was given"),
    ("Authentication failed: Forbidden", "refuses the token"),
    ("RAY_AUTH_TOKEN_PATH is set but file cannot be opened: /x. Ensure that", "cannot be opened: /x"),
]


@pytest.mark.parametrize(("theirs", "ours"), TOKENS)
def test_tokens(theirs: str, ours: str) -> None:
    assert ours in str(refused_token("http://head:8265", theirs))
