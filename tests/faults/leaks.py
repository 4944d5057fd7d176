"""A job on S3 with credentials that can be told apart from all else: where they turn up, and who can reach its Ray."""

import io
import ipaddress
import os
import pickle
import secrets
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping
from contextlib import closing, suppress
from http.client import HTTPConnection, HTTPException
from pathlib import Path
from unittest.mock import patch

import boto3
import psutil
import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.distributed.spec import WorkerSpec
from pipeline.model.family import FAMILIES
from pipeline.model.resolve import ModelSource
from pipeline.model.rows import BatchRows
from pipeline.output.part import RunFacts
from pipeline.storage.location import open_store
from pipeline.storage.s3_settings import S3Settings
from tests.conftest import aws_environment
from tests.faults.launched import Launch
from tests.servers.swift import SECRET_KEY, SwiftServer

BUCKET = "leaks"
_STRANGER = """
import sys
from ray._raylet import GcsClient
print(GcsClient(address=sys.argv[1]).internal_kv_keys(b"", None, 10))
"""
"""Asks a Ray for the names it keeps; it answers at once, or says that the token is not its own."""


class MarkedSwift(SwiftServer):
    """A server whose user and secret are found nowhere else."""

    def __init__(self, folder: Path) -> None:
        self.access_key = f"darkroom:{secrets.token_hex(12)}"
        self.secret_key = secrets.token_hex(24)
        super().__init__(folder)

    def _configuration(self, name: str) -> str:
        user = f"user_{self.access_key.replace(':', '_')} = {self.secret_key} "
        return super()._configuration(name).replace(f"user_test_tester = {SECRET_KEY} ", user)


def watched_job() -> dict[str, str | None]:
    """Runs the job; by promise, how it was not kept."""
    with tempfile.TemporaryDirectory(prefix="darkroom-") as name:
        folder = Path(name)
        (folder / "swift").mkdir()
        server = MarkedSwift(folder / "swift")
        server.start()
        try:
            return _watched(server, folder / "user")
        finally:
            server.stop()


def _watched(server: MarkedSwift, user: Path) -> dict[str, str | None]:
    environment = {
        **aws_environment(server),
        "HF_TOKEN": f"hf_{secrets.token_hex(12)}",
        "RAY_TMPDIR": str(user / "ray"),
    }
    token = secrets.token_hex(32)
    marks = {name: environment[name] for name in ("AWS_SECRET_ACCESS_KEY", "AWS_ACCESS_KEY_ID", "HF_TOKEN")}
    marks |= {"RAY_AUTH_TOKEN": token}
    with patch.dict(os.environ, environment):
        with closing(boto3.session.Session().client("s3")) as client:
            client.create_bucket(Bucket=BUCKET)
        (user / "ray").mkdir(parents=True)
        pq.write_table(pa.table({"prompt": [f"a red circle {number}" for number in range(24)]}), user / "m.parquet")
        told = {"RAY_AUTH_TOKEN": token, "RAY_AUTH_TOKEN_PATH": ""}  # in no file, where it would be found
        job = Launch(
            user,
            [
                "render",
                "--manifest",
                "m.parquet",
                "--steps",
                "2",
                "-o",
                f"s3://{BUCKET}/out",
                "--set",
                "workers.count=1",
            ],
            told,
            harmful=False,
        )
        seen = _Seen(job)
        found = seen.watch()
        found |= {"the job itself": None if job.wait() == 0 else job.err.read_text()[-300:]}
        wrong = Launch(
            user / "wrong", ["--debug", "status", f"s3://{BUCKET}/out"], {"AWS_SECRET_ACCESS_KEY": marks["HF_TOKEN"]}
        )
        found |= {"a wrong secret": None if wrong.wait() == 2 else wrong.err.read_text()[-300:]}
        places = {
            "what was printed and written here": _files(user, besides=user / "ray"),
            "Ray's logs": _files(user / "ray"),
            "the bucket": _objects(),
            "command lines": ((line, line.encode()) for line in sorted(seen.command_lines)),
            "what workers are told": (("what workers are told", body) for body in _spec()),
        }
        return found | {f"credentials in {place}": _found(marks, bodies) for place, bodies in places.items()}


class _Seen:
    """What processes of a job are, and where they listen."""

    def __init__(self, job: Launch) -> None:
        self._job = job
        self._listening: dict[tuple[str, int], str] = {}
        self.command_lines: set[str] = set()
        self._strangers: list[str] | None = None
        self._pages: dict[int, str] = {}
        """What a dashboard shows a stranger, by port; nothing that shows anything is meant to be there."""

    def watch(self) -> dict[str, str | None]:
        """Until the job has ended."""
        while self._job.running:
            with suppress(psutil.Error):
                for process in psutil.Process(self._job.process.pid).children(recursive=True):
                    self._look_at(process)
                self._look_at(psutil.Process(self._job.process.pid))
            time.sleep(0.2)
        open_ = [f"{ip} port {port} of {name}" for (ip, port), name in self._listening.items() if not _loopback(ip)]
        return {
            "Ray listens on loopback only": f"{open_[:3]}" if open_ else None if self._listening else "nothing listens",
            "Ray's dashboard is off": f"{self._pages}" if self._pages else None,
            "Ray knows who asks": "nobody asked" if self._strangers is None else "".join(self._strangers) or None,
        }

    def _look_at(self, process: psutil.Process) -> None:
        with suppress(psutil.Error):
            words = process.cmdline()
            self.command_lines.add(" ".join(words))
            for connection in process.net_connections(kind="inet"):
                if connection.status == psutil.CONN_LISTEN:
                    self._listening[(connection.laddr.ip, connection.laddr.port)] = " ".join(words)[-100:]
                    if "dashboard" in " ".join(words):
                        self._pages |= _shown(connection.laddr.port)
                    if self._strangers is None and words[0].endswith("gcs_server"):
                        self._strangers = _answers(connection.laddr.port)


def _answers(port: int) -> list[str]:
    """What a Ray tells somebody without its token, and somebody with another one."""
    told = []
    for given in ({"RAY_AUTH_MODE": "disabled"}, {"RAY_AUTH_MODE": "token", "RAY_AUTH_TOKEN": "0" * 64}):
        environment = {name: value for name, value in os.environ.items() if not name.startswith("RAY_")} | given
        command = [sys.executable, "-c", _STRANGER, f"127.0.0.1:{port}"]
        done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=120)
        if done.returncode == 0 or "InvalidAuthToken" not in done.stderr:
            told.append(f"told somebody with {given}: {done.stdout}{done.stderr[-200:]}")
    return told


def _shown(port: int) -> dict[int, str]:
    """By port, the page with the dashboard or with its jobs that somebody without a token is given.

    Its process has an endpoint for Prometheus too, on loopback, which answers every path with a text of metrics.
    """
    found = {}
    for path in ("/", "/api/jobs/"):
        with suppress(OSError, HTTPException), closing(HTTPConnection("127.0.0.1", port, timeout=2)) as connection:
            connection.request("GET", path)
            response = connection.getresponse()
            if response.status == 200 and response.headers.get_content_type() in ("text/html", "application/json"):
                found[port] = path
    return found


def _loopback(ip: str) -> bool:
    address = ipaddress.ip_address(ip)
    return (getattr(address, "ipv4_mapped", None) or address).is_loopback


def _found(marks: Mapping[str, str], bodies: Iterable[tuple[str, bytes]]) -> str | None:
    read = 0
    for where, body in bodies:
        read += 1
        for name, mark in marks.items():
            if mark.encode() in body:
                return f"{name} in {where[-200:]}"
    return None if read else "there is nothing"


def _files(folder: Path, besides: Path | None = None) -> Iterator[tuple[str, bytes]]:
    for path in folder.rglob("*"):
        if path.is_file() and not path.is_symlink() and not (besides and path.is_relative_to(besides)):
            yield str(path), path.read_bytes()


def _objects() -> Iterator[tuple[str, bytes]]:
    """Also what compression hides."""
    store = open_store(f"s3://{BUCKET}")
    for info in store.list():
        body = store.get(info.key)
        yield info.key, body
        if info.key.endswith(".parquet"):
            table = pq.read_table(io.BytesIO(body))
            yield info.key, f"{table.to_pylist()} {table.schema.metadata}".encode()


def _spec() -> Iterator[bytes]:
    """What the driver sends and a log may show, of the specification and of a store that has been used."""
    facts = RunFacts(model_id="shapes", model_fingerprint="0" * 32, dtype="float32", darkroom_version="0")
    spec = WorkerSpec(
        model=ModelSource(model_id="shapes"), facts=facts, output_uri=f"s3://{BUCKET}/out", s3=S3Settings(),
        device="cpu", compiled=False, call={},
        rows=BatchRows(fixed=4, family=FAMILIES["StableDiffusionPipeline"], dtype="float32", device_bytes=None),
        threads=1, cache_folder=Path(), launch_id="x", watchdog_s=900.0,
    )  # fmt: skip
    store = open_store(f"s3://{BUCKET}")
    list(store.list())
    for thing in (spec, store):
        yield repr(thing).encode()
        yield pickle.dumps(thing)
