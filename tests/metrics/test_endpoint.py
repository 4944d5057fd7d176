"""The endpoint that Prometheus reads, during a launch by the real command and after it, against what it reported."""

import json
import os
import re
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import psutil
import pyarrow.parquet as pq
import pytest

from pipeline.distributed.metrics import METRICS, WORKER_TAGS
from tests.metrics.exposed import exposed
from tests.test_end_to_end import Darkroom, write_manifest

ROOT = Path(__file__).parent.parent.parent
PROMPTS, SEEDS, STEPS = 4, 8, 12
IMAGES = PROMPTS * SEEDS
RARE = {"darkroom_store_retries"}
"""A counter that never grew is not exported: nothing goes wrong here, ..."""
UNREAD = "got"
"""... and a worker reads from the store only what dead ones left."""


@dataclass(frozen=True, slots=True)
class Sample:
    """One line of what Prometheus reads."""

    name: str
    labels: dict[str, str]
    value: float


class Endpoint:
    """Of the node of a running Ray."""

    def __init__(self, address: str, node: str, port: int) -> None:
        self.address, self.node, self.port = address, node, port

    def samples(self) -> list[Sample]:
        """Darkroom's."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.port}/metrics", timeout=10) as answer:
            lines = answer.read().decode().splitlines()
        found = (re.fullmatch(r"(ray_darkroom_\w+)\{(.*)\} (\S+)", line) for line in lines)
        return [
            Sample(match[1], dict(re.findall(r'(\w+)="([^"]*)"', match[2])), float(match[3]))
            for match in found
            if match
        ]

    def total(self, name: str, **labels: str) -> float:
        """Of all series with these labels."""
        found = (sample for sample in self.samples() if sample.name == name)
        return sum(sample.value for sample in found if labels.items() <= sample.labels.items())


@pytest.fixture(scope="module")
def darkroom(tmp_path_factory: pytest.TempPathFactory) -> Darkroom:
    folder = tmp_path_factory.mktemp("metrics")
    rows = [{"prompt": f"a red circle {n}", "steps": STEPS, "scheduler": None} for n in range(PROMPTS)]
    # More than the model was trained with, says diffusers: the engine fails these.
    write_manifest(folder / "m.parquet", [*rows, {"prompt": "fails", "steps": 2, "scheduler": "ddpm:timesteps=2000/5"}])
    user = Darkroom(folder)
    user.environment |= {
        "RAY_AUTH_MODE": "token",
        "RAY_metrics_report_interval_ms": "1000",
        "RAY_ENABLE_WINDOWS_OR_OSX_CLUSTER": "0",
        "RAY_BACKEND_LOG_LEVEL": "fatal",
    }
    return user


@pytest.fixture(scope="module")
def endpoint(darkroom: Darkroom) -> Iterator[Endpoint]:
    command = [sys.executable, "-m", "tests.metrics.local_ray"]
    environment = {**darkroom.environment, "PYTHONPATH": str(ROOT)}
    with subprocess.Popen(
        command, env=environment, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    ) as process:
        assert process.stdout
        found = json.loads(process.stdout.readline())
        if found["port"] <= 0:
            pytest.skip("Ray exports no metrics: it needs what ray[default] brings")
        yield Endpoint(**found)


@pytest.fixture(scope="module")
def launched(darkroom: Darkroom, endpoint: Endpoint) -> tuple[str, list[list[Sample]]]:
    """What the command said, and what the endpoint did while it ran."""
    process = darkroom.start(
        "render", "--manifest", "m.parquet", "--seeds", f"0-{SEEDS - 1}", "--guidance-scales", "4",
        "-o", "out", "--address", endpoint.address,
        "--set", "workers.count=1", "--set", "render.shard_images=8", "--set", "render.rows=12", "--verbose",
    )  # fmt: skip
    scrapes = []
    while process.poll() is None:
        scrapes.append(endpoint.samples())
        time.sleep(0.5)
    out, err = process.communicate()
    assert process.returncode == 3, err
    return out, scrapes


def test_metrics_come_while_images_are_rendered(launched: tuple[str, list[list[Sample]]]) -> None:
    committed = [
        [sample.value for sample in scrape if sample.name == "ray_darkroom_images_total"] for scrape in launched[1]
    ]
    totals = [sum(values) for values in committed]
    assert totals == sorted(totals)
    assert len({*totals} - {0.0, float(IMAGES)}) >= 1, totals
    in_flight = [s.value for scrape in launched[1] for s in scrape if s.name == "ray_darkroom_shards_in_flight"]
    assert 0 < max(in_flight) <= 2


def test_sums_agree_with_the_report(
    darkroom: Darkroom, endpoint: Endpoint, launched: tuple[str, list[list[Sample]]]
) -> None:
    said = launched[0]
    ok, failed = (int(re.search(rf"{word} +(\d+) images", said)[1]) for word in ("rendered", "failed"))  # type: ignore[index]
    assert (ok, failed) == (IMAGES, SEEDS)
    until = time.monotonic() + 10
    while endpoint.total("ray_darkroom_images_total") < ok + failed and time.monotonic() < until:
        time.sleep(0.2)
    assert endpoint.total("ray_darkroom_images_total", status="ok") == ok
    assert endpoint.total("ray_darkroom_images_total", status="failed") == failed
    assert endpoint.total("ray_darkroom_evaluations_total") == ok * STEPS * 2
    assert endpoint.total("ray_darkroom_shard_seconds_count") == len([*(darkroom.folder / "out").glob("metadata/*/*")])
    seconds = endpoint.total("ray_darkroom_engine_seconds_total")
    assert 0 < endpoint.total("ray_darkroom_engine_seconds_total", stage="decode") < seconds
    check_traffic(endpoint, said, pq.read_table(darkroom.folder / "out" / "metadata.parquet", columns=["file_bytes"]))


def check_traffic(endpoint: Endpoint, said: str, images: "pq.Table") -> None:
    """The report's is the driver's too."""
    told = re.search(r"store +([\d,]+) requests; ([\d.,]+) MB", said)
    assert told, said
    requests, megabytes = (float(number.replace(",", "")) for number in told.groups())
    assert len(images) < endpoint.total("ray_darkroom_store_requests_total") < requests
    in_images = sum(images["file_bytes"].to_pylist())
    assert in_images < endpoint.total("ray_darkroom_store_bytes_total", direction="put") < (megabytes + 0.05) * 1e6


def test_every_metric_is_exported_as_documented(endpoint: Endpoint, launched: tuple[str, list[list[Sample]]]) -> None:
    seen = [sample for scrape in [*launched[1], endpoint.samples()] for sample in scrape]
    rare = {f"ray_{name}_total" for name in RARE}
    assert {sample.name for sample in seen} - {"ray_darkroom_shard_seconds_created"} == {*exposed()} - rare
    for name, labels in exposed().items():
        for sample in seen:
            assert sample.name != name or labels <= {*sample.labels}, sample
    kinds = {metric.tag: {*metric.values} for metric in METRICS.values() if metric.tag}
    for tag, values in kinds.items():
        assert {sample.labels[str(tag)] for sample in seen if tag in sample.labels} == values - {UNREAD}
    (worker,) = {tuple(sample.labels[tag] for tag in WORKER_TAGS) for sample in seen}
    assert worker[1] == endpoint.node
    assert re.fullmatch(rf"{os.uname().nodename}:\d+", worker[2])


def test_nobody_outside_this_machine_can_read_them(endpoint: Endpoint) -> None:
    listening = [found.laddr for found in psutil.net_connections("tcp") if found.status == psutil.CONN_LISTEN]
    assert {place.ip for place in listening if place and place.port == endpoint.port} == {"127.0.0.1"}
