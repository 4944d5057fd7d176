"""A store that misbehaves on purpose: an HTTP proxy before a real server, with a seed.

It forwards the Host header unchanged, so signatures made for the proxy's own address stay valid behind it.
"""

import random
import socket
import struct
import threading
import time
from collections import Counter, deque
from collections.abc import Container, Iterable, Mapping
from contextlib import suppress
from enum import Enum
from http.client import HTTPConnection, HTTPException, HTTPResponse
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from types import TracebackType
from typing import Self
from urllib.parse import urlsplit

_UPSTREAM_TIMEOUT_S = 60.0
_HOP_BY_HOP = ("connection", "keep-alive", "transfer-encoding", "content-length")
_BODILESS_STATUS = (204, 304)


class Fault(Enum):
    """What can happen to one request. After RESET_AFTER the server has done what was asked, and nobody knows."""

    UNAVAILABLE = "503"
    INTERNAL_ERROR = "500"
    RESET_BEFORE = "reset before"
    RESET_AFTER = "reset after apply"
    TRUNCATED = "truncated body"
    DELAY = "delay"


class FaultProxy:
    """Forwards to `upstream_url`; each request meets a fault with the probabilities of `rates`, drawn from `seed`.

    Only requests by one of `methods`, if given. `landed` counts the faults that really happened (an answer without a
    body cannot be truncated).
    """

    def __init__(
        self,
        upstream_url: str,
        *,
        seed: int = 0,
        rates: Mapping[Fault, float] | None = None,
        methods: Container[str] | None = None,
        delay_s: float = 0.2,
    ) -> None:
        self.landed: Counter[Fault] = Counter()
        self.requests = 0
        self.delay_s = delay_s
        parts = urlsplit(upstream_url)
        self._upstream = (parts.hostname or "", parts.port or 80)
        self._random = random.Random(seed)
        self._rates = dict(rates or {})
        self._methods = methods
        self._script: deque[Fault | None] = deque()
        self._lock = threading.Lock()
        self._server = _Server(self)
        self.endpoint_url = f"http://127.0.0.1:{self._server.server_address[1]}"
        self._thread = threading.Thread(target=self._server.serve_forever, args=(0.05,), daemon=True)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._server.shutdown()
        self._thread.join()
        self._server.hang_up()
        self._server.server_close()

    def script(self, faults: Iterable[Fault | None]) -> None:
        """Let the next requests meet exactly these, one each, before chance decides again."""
        with self._lock:
            self._script.extend(faults)

    def draw(self, method: str) -> Fault | None:
        """Return what the next request meets."""
        with self._lock:
            self.requests += 1
            if self._methods is not None and method not in self._methods:
                return None
            if self._script:
                return self._script.popleft()
            weights = [*self._rates.values(), max(0.0, 1 - sum(self._rates.values()))]
            return self._random.choices([*self._rates, None], weights)[0]

    def count(self, fault: Fault) -> None:
        """Note that a fault has happened."""
        with self._lock:
            self.landed[fault] += 1

    def connect(self) -> HTTPConnection:
        """Return a fresh connection to the real server."""
        return HTTPConnection(*self._upstream, timeout=_UPSTREAM_TIMEOUT_S)


class _Server(ThreadingHTTPServer):
    daemon_threads = True
    request_queue_size = 128

    def __init__(self, proxy: FaultProxy) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.proxy = proxy
        self._connections: set[socket.socket] = set()

    def process_request(self, request: socket.socket | tuple[bytes, socket.socket], client_address: object) -> None:
        assert isinstance(request, socket.socket)
        self._connections.add(request)
        super().process_request(request, client_address)

    def shutdown_request(self, request: socket.socket | tuple[bytes, socket.socket]) -> None:
        """Close without a farewell, so that a connection set to be reset really is."""
        assert isinstance(request, socket.socket)
        self._connections.discard(request)
        request.close()

    def hang_up(self) -> None:
        """End the connections that clients keep open; their threads close them."""
        for connection in tuple(self._connections):
            with suppress(OSError):
                connection.shutdown(socket.SHUT_RDWR)


class _Handler(BaseHTTPRequestHandler):
    protocol_version = "HTTP/1.1"
    server: _Server

    def log_message(self, format: str, *args: object) -> None:
        """Stay silent."""

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        fault = self.server.proxy.draw(self.command)
        if fault is Fault.DELAY:
            time.sleep(self.server.proxy.delay_s)
        if fault in (Fault.UNAVAILABLE, Fault.INTERNAL_ERROR):
            self._refuse(fault)
        elif fault is Fault.RESET_BEFORE:
            self._reset()
        else:
            self._forward(body, fault)
        if fault is not None and fault is not Fault.TRUNCATED:
            self.server.proxy.count(fault)

    do_GET = do_HEAD = do_PUT = do_POST = do_DELETE = _serve  # noqa: N815  # names http.server prescribes

    def _forward(self, body: bytes, fault: Fault | None) -> None:
        upstream = self.server.proxy.connect()
        try:
            response, answer = self._ask(upstream, body)
        except (OSError, HTTPException):
            self._reset()
            return
        finally:
            upstream.close()
        if fault is Fault.RESET_AFTER:
            self._reset()
        else:
            self._answer(response, answer, truncated=fault is Fault.TRUNCATED and len(answer) > 0)

    def _ask(self, upstream: HTTPConnection, body: bytes) -> tuple[HTTPResponse, bytes]:
        upstream.putrequest(self.command, self.path, skip_host=True, skip_accept_encoding=True)
        for name, value in self.headers.items():
            if name.lower() not in ("connection", "expect"):
                upstream.putheader(name, value)
        upstream.endheaders(body)
        response = upstream.getresponse()
        return response, response.read()

    def _answer(self, response: HTTPResponse, body: bytes, *, truncated: bool) -> None:
        self.send_response_only(response.status, response.reason)
        for name, value in response.getheaders():
            if name.lower() not in _HOP_BY_HOP:
                self.send_header(name, value)
        if self.command == "HEAD":
            self.send_header("Content-Length", response.getheader("Content-Length", "0"))
        elif response.status not in _BODILESS_STATUS:
            self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body[: len(body) // 2] if truncated else body)
        if truncated:
            self.server.proxy.count(Fault.TRUNCATED)
            self.close_connection = True

    def _refuse(self, fault: Fault) -> None:
        code = "ServiceUnavailable" if fault is Fault.UNAVAILABLE else "InternalError"
        body = b"" if self.command == "HEAD" else f"<Error><Code>{code}</Code><Message>x</Message></Error>".encode()
        self.send_response_only(int(fault.value))
        self.send_header("Content-Type", "application/xml")
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def _reset(self) -> None:
        self.connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        self.close_connection = True
