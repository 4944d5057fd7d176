"""A real OpenStack Swift with its S3 interface, as four processes on the loopback: the object store of the tests.

It checks signatures and body digests, and keeps acknowledged objects through SIGKILL, which no mock does. Needs no
root, but a folder on a file system with extended attributes (ext4, xfs, btrfs; tmpfs from Linux 6.6).
"""

import atexit
import getpass
import random
import socket
import subprocess
import time
from pathlib import Path

from tests.servers.swift_install import swift_python

ACCESS_KEY = "test:tester"
SECRET_KEY = "testing"
REGION = "us-east-1"
LISTED_AT_ONCE = 100
"""Objects in one answer, in place of a thousand, so that few objects show whether a listing goes on."""
_SERVERS = ("account", "container", "object", "proxy")
_BACKENDS = ("account", "container", "object")
# Below the range Linux takes outgoing ports from, so that no client connection can sit on a port between restarts.
_PORTS = range(20_000, 32_000)
_START_LIMIT_S = 60.0
_STOP_LIMIT_S = 5.0

# The kernel ends the server when the thread that started it ends, even if that was by SIGKILL. No test cuts the power:
# the server need not wait for the disk.
_LAUNCHER = """\
import ctypes, importlib, os, signal, sys
os.fsync = os.fdatasync = lambda _: None
ctypes.CDLL(None).prctl(1, signal.SIGKILL)
importlib.import_module(sys.argv.pop(1)).main()
"""

_RING_BUILDER = """\
import sys
from swift.common.ring import RingBuilder
folder, ports = sys.argv[1], sys.argv[2:]
for name, port in zip(("account", "container", "object"), ports):
    builder = RingBuilder(6, 1, 1)
    builder.add_dev({"region": 1, "zone": 1, "ip": "127.0.0.1", "port": int(port), "device": "disk", "weight": 1})
    builder.rebalance()
    builder.get_ring().save(f"{folder}/{name}.ring.gz")
"""

_DEFAULTS = """\
[DEFAULT]
bind_ip = 127.0.0.1
bind_port = {port}
swift_dir = {folder}
devices = {folder}/devices
mount_check = false
workers = 0
user = {user}
log_level = WARNING
log_address = {folder}/no-syslog
log_udp_host =
"""

_BACKEND = """
[pipeline:main]
pipeline = {name}-server
[app:{name}-server]
use = egg:swift#{name}
recon_cache_path = {folder}
"""

_PROXY = """
[pipeline:main]
pipeline = catch_errors proxy-logging listing_formats bulk s3api tempauth slo dlo copy proxy-logging proxy-server
[app:proxy-server]
use = egg:swift#proxy
account_autocreate = true
[filter:catch_errors]
use = egg:swift#catch_errors
[filter:proxy-logging]
use = egg:swift#proxy_logging
access_log_level = WARNING
[filter:listing_formats]
use = egg:swift#listing_formats
[filter:bulk]
use = egg:swift#bulk
[filter:s3api]
use = egg:swift#s3api
location = {region}
max_bucket_listing = {listed_at_once}
[filter:tempauth]
use = egg:swift#tempauth
user_test_tester = {secret} .admin
[filter:slo]
use = egg:swift#slo
[filter:dlo]
use = egg:swift#dlo
[filter:copy]
use = egg:swift#copy
"""


class SwiftServer:
    """One Swift whose state lives in `folder`; its ports and objects survive `kill()` followed by `start()`."""

    access_key = ACCESS_KEY
    secret_key = SECRET_KEY
    region = REGION

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._ports = dict(zip(_SERVERS, _free_ports(len(_SERVERS)), strict=True))
        self._python = swift_python()
        self._processes: list[subprocess.Popen[bytes]] = []
        self.endpoint_url = f"http://127.0.0.1:{self._ports['proxy']}"
        self._configure()

    def start(self) -> None:
        """Start the four servers and wait until all accept connections, about 2 s.

        Raises:
            RuntimeError: a server ended or was not up after 60 s; the text ends with its log.
        """
        assert not self._processes, "started twice"
        atexit.register(self.kill)
        for name in _SERVERS:
            self._processes.append(self._spawn(name))
        for name, process in zip(_SERVERS, self._processes, strict=True):
            self._await_port(name, process)

    def stop(self) -> None:
        """End the servers with SIGTERM, and with SIGKILL after 5 s. Safe to repeat."""
        for process in self._processes:
            process.terminate()
        for process in self._processes:
            try:
                process.wait(_STOP_LIMIT_S)
            except subprocess.TimeoutExpired:
                process.kill()
        self.kill()

    def kill(self) -> None:
        """End the servers with SIGKILL. Safe to repeat."""
        for process in self._processes:
            process.kill()
        for process in self._processes:
            process.wait()
        self._processes = []
        atexit.unregister(self.kill)

    def log(self, name: str) -> str:
        """Return what the server `name` (account, container, object or proxy) has logged."""
        return (self._folder / f"{name}.log").read_text(errors="replace")

    def _configure(self) -> None:
        (self._folder / "devices" / "disk").mkdir(parents=True)
        (self._folder / "swift.conf").write_text("[swift-hash]\nswift_hash_path_suffix = darkroom\n")
        for name in _SERVERS:
            (self._folder / f"{name}-server.conf").write_text(self._configuration(name))
        ports = [str(self._ports[name]) for name in _BACKENDS]
        subprocess.run([self._python, "-c", _RING_BUILDER, self._folder, *ports], check=True)

    def _configuration(self, name: str) -> str:
        template = _DEFAULTS + (_PROXY if name == "proxy" else _BACKEND)
        return template.format(
            name=name,
            port=self._ports[name],
            folder=self._folder,
            user=getpass.getuser(),
            region=REGION,
            listed_at_once=LISTED_AT_ONCE,
            secret=SECRET_KEY,
        )

    def _spawn(self, name: str) -> subprocess.Popen[bytes]:
        module = "swift.obj.server" if name == "object" else f"swift.{name}.server"
        configuration = str(self._folder / f"{name}-server.conf")
        command = [str(self._python), "-c", _LAUNCHER, module, configuration, "--verbose"]
        with (self._folder / f"{name}.log").open("ab") as log:
            return subprocess.Popen(command, stdin=subprocess.DEVNULL, stdout=log, stderr=log, cwd=self._folder)

    def _await_port(self, name: str, process: subprocess.Popen[bytes]) -> None:
        deadline = time.monotonic() + _START_LIMIT_S
        while time.monotonic() < deadline and process.poll() is None:
            try:
                socket.create_connection(("127.0.0.1", self._ports[name]), timeout=1).close()
            except OSError:
                time.sleep(0.05)
            else:
                return
        text = self.log(name)
        self.kill()
        raise RuntimeError(f"the Swift {name} server did not start:\n{text[-4000:]}")


def _free_ports(count: int) -> list[int]:
    found: list[int] = []
    while len(found) < count:
        port = random.SystemRandom().choice(_PORTS)
        if port not in found and _is_free(port):
            found.append(port)
    return found


def _is_free(port: int) -> bool:
    with socket.socket() as probe:
        try:
            probe.bind(("127.0.0.1", port))
        except OSError:
            return False
    return True
