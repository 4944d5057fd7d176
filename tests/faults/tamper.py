"""Objects that are flipped, cut, lengthened or deleted behind Darkroom's back: what ``verify`` finds of it."""

import random
import tempfile
import time
from collections import Counter
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import get_args

from pipeline.output.index import part_keys
from pipeline.output.layout import Layout
from pipeline.output.requests import request_keys
from pipeline.output.segments import segment_keys
from pipeline.output.verify import verify
from pipeline.storage.local import LocalStore
from tests.faults.board import Line
from tests.faults.commit import FAILS, PROMPTS
from tests.faults.without_ray import Painter, launch_here, plan_of
from tests.test_verify import TAMPERING

ROUNDS, SHORT_ROUNDS = 20, 1
"""Each with one object of every kind, drawn anew, tampered with in every way."""


def measure(seed: int, short: bool) -> Line:
    """In every layout."""
    began, figures, broken = time.monotonic(), Counter[str](), list[str]()
    for layout in get_args(Layout):
        with tempfile.TemporaryDirectory(prefix="darkroom-faults-") as folder:
            store = run_of(Path(folder), layout)
            for number in range(SHORT_ROUNDS if short else ROUNDS):
                _round(store, random.Random(f"{seed} {layout} {number}"), figures, broken)
            alarms = verify(store).faults
            broken += [f"{layout}: nothing is wrong, and yet {alarms[0].key} is {alarms[0].what}"] if alarms else []
    seen = {name: figures[name] for name in ("tamperings", "found", "others accused")}
    return Line(name="tampering", figures=seen, broken=tuple(broken), seconds=time.monotonic() - began)


def run_of(folder: Path, layout: Layout) -> LocalStore:
    """Two launches: several parts, two index segments, and all tables; one prompt is asked for twice, one fails."""
    store = LocalStore(folder / "out")
    for seeds in ("0-0", "0-1"):
        launch_here(store, plan_of(folder, PROMPTS, layout, seeds), Painter({FAILS}))
    return store


def _round(store: LocalStore, drawn: random.Random, figures: Counter[str], broken: list[str]) -> None:
    for key in map(drawn.choice, _kinds(store)):
        for how, tamper in _tampering(drawn).items():
            body = store.get(key)
            tamper(store, key)
            faults = {fault.key: fault.what for fault in verify(store).faults if fault.what != "outdated"}
            store.put(key, body)
            found = faults.pop(key, None)
            figures.update({"tamperings": 1, "found": found is not None, "others accused": len(faults)})
            if found != ("missing" if how == "delete" else "corrupt") or faults:
                broken.append(f"{how} of {key}: it is {found}, others are {faults}")


def _kinds(store: LocalStore) -> list[list[str]]:
    """Keys of images or what holds them, parts, index segments and requests; and each table by itself."""
    payloads = [info.key for prefix in ("images/", "shards/", "data/") for info in store.list(prefix)]
    tables = [info.key for info in store.list() if "/" not in info.key and info.key.endswith(".parquet")]
    return [payloads, part_keys(store), segment_keys(store), request_keys(store), *([table] for table in tables)]


def _tampering(drawn: random.Random) -> dict[str, Callable[[LocalStore, str], None]]:
    anywhere = {"flip a bit anywhere": partial(_flip, drawn), "cut anywhere": partial(_cut, drawn)}
    return {**TAMPERING, **anywhere}


def _flip(drawn: random.Random, store: LocalStore, key: str) -> None:
    body = bytearray(store.get(key))
    body[drawn.randrange(len(body))] ^= 1 << drawn.randrange(8)
    store.put(key, bytes(body))


def _cut(drawn: random.Random, store: LocalStore, key: str) -> None:
    body = store.get(key)
    store.put(key, body[: drawn.randrange(len(body))])
