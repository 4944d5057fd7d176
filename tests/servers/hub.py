"""A Hugging Face Hub on loopback: repositories are folders, each with one commit."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from hashlib import sha1
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from threading import Thread
from urllib.parse import unquote, urlsplit

COMMIT = "c0ffee" * 6 + "cafe"


class Hub(ThreadingHTTPServer):
    """Serves ``root/org/name/…`` as the Hub does, and notes which files were read."""

    daemon_threads = True

    def __init__(self, root: Path) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.root = root
        self.read: list[str] = []

    @property
    def endpoint(self) -> str:
        return f"http://127.0.0.1:{self.server_port}"


@contextmanager
def serving(root: Path) -> Iterator[Hub]:
    """Serve a folder until the end of the block."""
    hub = Hub(root)
    thread = Thread(target=hub.serve_forever, kwargs={"poll_interval": 0.02})
    thread.start()
    try:
        yield hub
    finally:
        hub.shutdown()
        thread.join()
        hub.server_close()


class _Handler(BaseHTTPRequestHandler):
    server: Hub
    protocol_version = "HTTP/1.1"

    def do_HEAD(self) -> None:  # the base class's name
        self._file(body=False)

    def do_GET(self) -> None:  # the base class's name
        words = unquote(urlsplit(self.path).path).split("/")[1:]
        if words[:2] != ["api", "models"]:
            self._file(body=True)
        elif words[4] == "tree":
            self._json([_entry(path, name) for name, path in self._files("/".join(words[2:4]))])
        else:
            self._json({"id": "/".join(words[2:4]), "sha": COMMIT, "siblings": []})

    def log_message(self, format: str, *args: object) -> None:
        """Say nothing."""

    def _files(self, repository: str) -> list[tuple[str, Path]]:
        folder = self.server.root / repository
        return sorted((p.relative_to(folder).as_posix(), p) for p in folder.rglob("*") if p.is_file())

    def _file(self, *, body: bool) -> None:
        repository, _, rest = unquote(urlsplit(self.path).path)[1:].partition("/resolve/")
        name = rest.partition("/")[2]
        path = self.server.root / repository / name
        if not path.is_file():
            return self._answer(404, b"", {"X-Error-Code": "EntryNotFound", "X-Repo-Commit": COMMIT})
        content = path.read_bytes()
        if body:
            self.server.read.append(name)
        return self._answer(200, content, {"ETag": f'"{_digest(content)}"', "X-Repo-Commit": COMMIT}, body=body)

    def _json(self, value: object) -> None:
        self._answer(200, json.dumps(value).encode(), {"Content-Type": "application/json"})

    def _answer(self, status: int, content: bytes, headers: dict[str, str], *, body: bool = True) -> None:
        self.send_response(status)
        for key, value in {**headers, "Content-Length": str(len(content))}.items():
            self.send_header(key, value)
        self.end_headers()
        if body:
            self.wfile.write(content)


def _entry(path: Path, name: str) -> dict[str, object]:
    content = path.read_bytes()
    return {"type": "file", "path": name, "size": len(content), "oid": _digest(content)}


def _digest(content: bytes) -> str:
    return sha1(content, usedforsecurity=False).hexdigest()
