"""A real S3 server for tests: OpenStack Swift with s3api, as processes on loopback, one replica of everything."""

import signal
import socket
import subprocess
import sys
import time
from pathlib import Path

ROOT = Path(__file__).parent.parent.parent
ENVIRONMENT = ROOT / ".work" / "swift-venv"
REQUIREMENTS = ("swift==2.38.3", "pyeclib==1.8.0", "eventlet==0.41.3", "setuptools==80.9.0")

_PROXY = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
swift_dir = {folder}
[pipeline:main]
pipeline = catch_errors proxy-logging cache listing_formats bulk s3api tempauth slo dlo copy proxy-logging proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = testing .admin
[filter:s3api]
use = egg:swift#s3api
location = us-east-1
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:proxy-logging]
use = egg:swift#proxy_logging
[filter:cache]
use = egg:swift#memcache
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
[filter:copy]
use = egg:swift#copy
"""
_BACKEND = """
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
workers = 0
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
[pipeline:main]
pipeline = {kind}-server
[app:{kind}-server]
use = egg:swift#{kind}
"""


def install() -> None:
    """Make the server's own environment, once per checkout."""
    ready = ENVIRONMENT / "ready"
    if ready.exists() and ready.read_text() == " ".join(REQUIREMENTS):
        return
    subprocess.run([sys.executable, "-m", "venv", "--clear", ENVIRONMENT], check=True)
    pip = [str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "install", "--quiet", "--disable-pip-version-check"]
    subprocess.run([*pip, *REQUIREMENTS], check=True)
    ready.write_text(" ".join(REQUIREMENTS))


class SwiftServer:
    """``start`` it, talk S3 to ``endpoint_url``, ``stop`` it; data lies below ``folder``."""

    access_key = "test:tester"
    secret_key = "testing"
    region = "us-east-1"

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._processes: list[subprocess.Popen[bytes]] = []
        self._ports = {kind: _free_port() for kind in ("object", "container", "account", "proxy")}

    @property
    def endpoint_url(self) -> str:
        return f"http://127.0.0.1:{self._ports['proxy']}"

    def start(self) -> None:
        """Build rings where there are none, start four servers, wait until the proxy answers."""
        if not (self._folder / "swift.conf").exists():
            self._build()
        for kind in self._ports:
            with (self._folder / f"{kind}.log").open("ab") as log:
                command = [str(ENVIRONMENT / "bin" / f"swift-{kind}-server"), str(self._folder / f"{kind}.conf")]
                self._processes.append(subprocess.Popen(command, stdout=log, stderr=log))
        self._wait()

    def stop(self) -> None:
        self._signal(signal.SIGTERM)

    def kill(self) -> None:
        """As a power cut would."""
        self._signal(signal.SIGKILL)

    def _signal(self, number: signal.Signals) -> None:
        for process in self._processes:
            process.send_signal(number)
        for process in self._processes:
            try:
                process.wait(10)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._processes.clear()

    def _build(self) -> None:
        (self._folder / "devices" / "d1").mkdir(parents=True)
        (self._folder / "swift.conf").write_text(
            "[swift-hash]\nswift_hash_path_suffix = test\n[storage-policy:0]\nname = one\ndefault = yes\n"
        )
        for kind, port in self._ports.items():
            template = _PROXY if kind == "proxy" else _BACKEND
            (self._folder / f"{kind}.conf").write_text(template.format(port=port, folder=self._folder, kind=kind))
            if kind != "proxy":
                self._ring(f"{kind}.builder", "create", "6", "1", "1")
                self._ring(f"{kind}.builder", "add", f"r1z1-127.0.0.1:{port}/d1", "1")
                self._ring(f"{kind}.builder", "rebalance")

    def _ring(self, *words: str) -> None:
        subprocess.run(
            [ENVIRONMENT / "bin" / "swift-ring-builder", *words], cwd=self._folder, check=True, capture_output=True
        )

    def _wait(self) -> None:
        until = time.monotonic() + 60
        while time.monotonic() < until:
            if any(process.poll() is not None for process in self._processes):
                break
            try:
                for port in self._ports.values():
                    socket.create_connection(("127.0.0.1", port), 1).close()
                return
            except OSError:
                time.sleep(0.1)
        logs = "".join((self._folder / f"{kind}.log").read_text()[-2000:] for kind in self._ports)
        self.kill()
        raise RuntimeError(f"Swift did not start:\n{logs}")


def _free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        port: int = probe.getsockname()[1]
        return port
