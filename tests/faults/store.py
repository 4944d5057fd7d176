"""Objects through a store that fails 30 % of the time: wrong, unresolved."""

import io
import random
import tempfile
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path
from typing import TypeVar
from unittest.mock import patch

import boto3

from pipeline.errors import StoreError
from pipeline.storage.base import ObjectStore
from pipeline.storage.s3 import S3Store
from pipeline.storage.s3_settings import S3Settings
from tests.conftest import aws_environment
from tests.faults.board import Line
from tests.servers.fault_proxy import Fault, FaultProxy
from tests.servers.swift import SwiftServer

_T = TypeVar("_T")

BUCKET = "faults"
SHARE = 0.30
"""Of requests that meet a fault, one type as often as the other."""
THREADS = 16
LARGE_BYTES = 9 * 2**20
"""Put in two parts."""


def measure(seed: int, short: bool) -> Line:
    """Put, read and list objects, each through the faults; then everything once more without them."""
    began = time.monotonic()
    drawn = random.Random(seed)
    small, large = (59, 1) if short else (996, 4)
    bodies = {f"n/{number:04d}": drawn.randbytes(drawn.randrange(4000)) for number in range(small)}
    bodies |= {f"large/{number}": drawn.randbytes(LARGE_BYTES + number) for number in range(large)}
    with tempfile.TemporaryDirectory(prefix="darkroom-faults-") as folder:
        figures, broken = _with_server(Path(folder), bodies, seed)
    if not short:  # few requests may miss a type by chance
        broken += [f"{fault.value} never landed" for fault in Fault if not figures[fault.value]]
    name = f"store, {SHARE:.0%} of requests fail"
    return Line(name=name, figures=figures, broken=tuple(broken), seconds=time.monotonic() - began)


def _with_server(folder: Path, bodies: Mapping[str, bytes], seed: int) -> tuple[dict[str, int], list[str]]:
    server = SwiftServer(folder)
    server.start()
    try:
        with patch.dict("os.environ", aws_environment(server)):
            with closing(boto3.session.Session().client("s3")) as client:
                client.create_bucket(Bucket=BUCKET)
            return _through_faults(server, bodies, seed)
    finally:
        server.stop()


def _through_faults(server: SwiftServer, bodies: Mapping[str, bytes], seed: int) -> tuple[dict[str, int], list[str]]:
    rates = dict.fromkeys(Fault, SHARE / len(Fault))
    with FaultProxy(server.endpoint_url, seed=seed, rates=rates, delay_s=0.1) as proxy:
        # Few attempts of botocore's own in a row: it is the store's rounds that have to hold.
        settings = S3Settings(endpoint_url=proxy.endpoint_url, max_attempts=2, patience_s=60)
        asked = _Asked(S3Store(BUCKET, "run", settings), bodies)
        asked.put_all()
        wrong = asked.wrong_reads() | asked.wrong_in_listing()
        requests, landed = proxy.requests, dict(proxy.landed)
    plain = _Asked(S3Store(BUCKET, "run", S3Settings()), bodies)
    left_wrong = plain.wrong_reads() | plain.wrong_in_listing()
    figures = {"objects": len(bodies), "requests": requests}
    figures |= {fault.value: landed.get(fault, 0) for fault in Fault}
    figures |= {"retried": asked.store.traffic.retries, "wrong": len(wrong | left_wrong)}
    figures |= {"unresolved": len(asked.unresolved)}
    broken = [f"wrong: {', '.join(sorted(wrong | left_wrong)[:5])}"] if wrong | left_wrong else []
    broken += [f"unresolved: {what}" for what in asked.unresolved[:5]]
    if asked.store.traffic.requests != requests:
        broken.append(f"the store counted {asked.store.traffic.requests} requests")
    return figures, broken


class _Asked:
    """Asks a store for all objects, from several threads at once, and notes what it gave up."""

    def __init__(self, store: ObjectStore, bodies: Mapping[str, bytes]) -> None:
        self.store, self._bodies = store, bodies
        self.unresolved: list[str] = []

    def put_all(self) -> None:
        self._each(lambda key: self.store.put_file(key, io.BytesIO(self._bodies[key])), "put")

    def wrong_reads(self) -> set[str]:
        """What is read otherwise than it was put."""
        read = self._each(self.store.get, "get")
        return {key for key, body in read if body != self._bodies[key]}

    def wrong_in_listing(self) -> set[str]:
        """What is listed with another size, out of order, not at all, or without having been put."""
        try:
            listed = [(info.key, info.size_bytes) for info in self.store.list()]
        except StoreError as error:
            self.unresolved.append(f"list: {error}")
            return set()
        expected = [(key, len(body)) for key, body in sorted(self._bodies.items())]
        return {key for key, _ in set(listed) ^ set(expected)} or ({"order"} if listed != expected else set())

    def _each(self, work: Callable[[str], _T], what: str) -> list[tuple[str, _T]]:
        def tried(key: str) -> list[tuple[str, _T]]:
            try:
                return [(key, work(key))]
            except StoreError as error:
                self.unresolved.append(f"{what} {key}: {error}")
                return []

        with ThreadPoolExecutor(THREADS) as pool:
            return [done for each in pool.map(tried, self._bodies) for done in each]
