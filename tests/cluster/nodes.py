"""A real Ray cluster on one machine: ``ray start --block`` once a node, on loopback, with token authentication."""

import json
import os
import secrets
import socket
import subprocess
import sys
import urllib.request
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import psutil

from tests.faults.launched import ROOT, stop_all, wait_until

COUNTING = ROOT / "tests" / "faults" / "counting"
HEAD_CPUS = 2
"""What planning takes; a worker of the tests asks for more, so that none is placed there."""
NODE_CPUS = 3
_STORE_BYTES = 100 * 2**20
_START_S = 90.0


def free_port() -> int:
    """One that nothing listens at now."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


@dataclass(frozen=True, slots=True)
class Node:
    """One ``ray start``."""

    name: str
    process: "subprocess.Popen[bytes]"

    def raylet(self) -> psutil.Process:
        """The node's own daemon; its workers are children of it."""
        for child in psutil.Process(self.process.pid).children(recursive=True):
            with suppress(psutil.Error):
                if child.name() == "raylet":
                    return child
        raise RuntimeError(f"the node {self.name} has no raylet")

    def render_workers(self) -> list[psutil.Process]:
        """Processes of render workers on this node that have loaded their code."""
        found = []
        with suppress(psutil.Error, RuntimeError):
            for child in self.raylet().children(recursive=True):
                with suppress(psutil.Error):
                    if "RenderWorker" in " ".join(child.cmdline()):
                        found.append(child)
        return found


class LocalCluster:
    """A head without room for workers, and as many nodes as are added. ``stop`` it, whatever happens."""

    def __init__(self, folder: Path, extra: Mapping[str, str] | None = None) -> None:
        """``folder`` needs a short path: sockets lie in it. ``extra`` is added to the environment of all nodes."""
        self.folder, self.token = folder, secrets.token_hex(32)
        self.gcs_port, self.dashboard_port = free_port(), free_port()
        self.address = f"http://127.0.0.1:{self.dashboard_port}"
        self.nodes: list[Node] = []
        (folder / "token").write_text(self.token)
        (folder / "bin").mkdir()
        command = folder / "bin" / "darkroom"
        command.write_text(f'#!/bin/sh\nexec "{sys.executable}" -P -m jobs "$@"\n')
        command.chmod(0o755)
        self._environment = {
            **_without_ray(os.environ),
            **(extra or {}),
            "PATH": f"{folder / 'bin'}{os.pathsep}{os.environ['PATH']}",
            "PYTHONPATH": f"{COUNTING}{os.pathsep}{ROOT}",
            "XDG_CACHE_HOME": str(folder / "cache"),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN_PATH": str(folder / "token"),
            "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
            "RAY_USAGE_STATS_ENABLED": "0",
            # A node that does not answer is given up after seconds, not after half a minute.
            "RAY_health_check_period_ms": "1000",
            "RAY_health_check_timeout_ms": "2000",
            "RAY_health_check_failure_threshold": "3",
        }

    def start(self, nodes: int) -> None:
        """The head and so many nodes; returns when the cluster takes jobs."""
        self._start(
            "head", "--head", f"--port={self.gcs_port}", f"--num-cpus={HEAD_CPUS}", f"--temp-dir={self.folder / 'ray'}",
            "--dashboard-host=127.0.0.1", f"--dashboard-port={self.dashboard_port}",
            f"--ray-client-server-port={free_port()}",
        )  # fmt: skip
        head = self.nodes[0].process
        wait_until(lambda: self._listens() or head.poll() is not None, _START_S)
        if not self._listens():
            raise RuntimeError(f"no head: {self._said('head')}")
        for number in range(nodes):  # one after the other: at once, two may take the same name for a socket
            name = self.add().name
            if not wait_until(partial(self._has, number + 2), _START_S, every_s=0.2):
                raise RuntimeError(f"{name} did not join: {self._said(name)}")

    def add(self) -> Node:
        """One more node; it joins by itself."""
        name = f"node-{len(self.nodes)}"
        return self._start(name, f"--address=127.0.0.1:{self.gcs_port}", f"--num-cpus={NODE_CPUS}")

    def kill(self, node: Node) -> None:
        """SIGKILL its raylet, as when a machine vanishes: workers notice and end, without a word to anybody."""
        node.raylet().kill()

    def alive(self) -> list[str]:
        """Ids of the nodes that the cluster counts on."""
        with suppress(OSError, ValueError, KeyError):
            found = self._ask("/api/v0/nodes")["data"]["result"]["result"]
            return [node["node_id"] for node in found if node["state"] == "ALIVE"]
        return []

    def user(self, **given: str) -> dict[str, str]:
        """The environment of somebody who may submit; ``given`` goes over it."""
        return {
            **_without_ray(os.environ),
            "PYTHONPATH": str(ROOT),
            "XDG_CACHE_HOME": str(self.folder / "user-cache"),
            "RAY_AUTH_MODE": "token",
            "RAY_AUTH_TOKEN": self.token,
            **given,
        }

    def logs(self) -> list[Path]:
        """Everything that Ray has written about this cluster."""
        return [path for path in (self.folder / "ray").glob("session_2*/logs/**/*") if path.is_file()]

    def listeners(self) -> set[str]:
        """Addresses at which processes of the cluster listen."""
        found = set()
        for node in self.nodes:
            with suppress(psutil.Error):
                for process in psutil.Process(node.process.pid).children(recursive=True):
                    with suppress(psutil.Error):
                        found |= {
                            connection.laddr.ip
                            for connection in process.net_connections(kind="inet")
                            if connection.status == psutil.CONN_LISTEN
                        }
        return found

    def stop(self) -> None:
        """End everything, by pid."""
        stop_all(self.folder)
        for node in self.nodes:
            node.process.wait()

    def _start(self, name: str, *words: str) -> Node:
        command = [
            sys.executable, "-m", "tests.cluster.loopback", "start", "--block", "--disable-usage-stats",
            "--node-ip-address=127.0.0.1", "--num-gpus=0", f"--object-store-memory={_STORE_BYTES}",
            "--min-worker-port=0", "--max-worker-port=0", "--dashboard-agent-listen-port=0",
            "--include-log-monitor=False", *words,
        ]  # fmt: skip
        with (self.folder / f"{name}.log").open("wb") as log:
            process = subprocess.Popen(
                command, cwd=ROOT, env=self._environment, stdout=log, stderr=log, start_new_session=True
            )
        node = Node(name, process)
        self.nodes.append(node)
        return node

    def _has(self, nodes: int) -> bool:
        return len(self.alive()) == nodes

    def _listens(self) -> bool:
        return self._ask_or_none("/api/version") is not None

    def _ask_or_none(self, path: str) -> Any:
        try:
            return self._ask(path)
        except (OSError, ValueError):
            return None

    def _ask(self, path: str) -> Any:
        request = urllib.request.Request(f"{self.address}{path}", headers={"Authorization": f"Bearer {self.token}"})
        with urllib.request.urlopen(request, timeout=10) as answer:
            return json.loads(answer.read())

    def _said(self, name: str) -> str:
        return (self.folder / f"{name}.log").read_text()[-2000:]


def _without_ray(environment: Mapping[str, str]) -> dict[str, str]:
    return {name: value for name, value in environment.items() if not name.startswith("RAY_")}
