"""Shards through an engine to a store, without Ray: a tiny model of the real classes, a real directory."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from types import SimpleNamespace
from typing import BinaryIO, cast

import pyarrow as pa
import pytest
import torch

from pipeline.distributed import runner
from pipeline.distributed.journal import Journal, read_journal
from pipeline.distributed.planned import distinct
from pipeline.distributed.runner import LeaseRunner
from pipeline.errors import StoreUnavailableError
from pipeline.identity import part_id
from pipeline.output.layout import Packing, part_prefix
from pipeline.output.part import PartWriter, RunFacts, read_part
from pipeline.planning.tasks import TASK_FIELDS
from pipeline.recipe import RenderTask
from pipeline.rendering.engine import Engine
from pipeline.rendering.loading import load_model
from pipeline.storage.local import LocalStore
from tests import tiny_models

FACTS = RunFacts(model_id="m", model_fingerprint="f" * 32, dtype="float32", darkroom_version="0")


@pytest.fixture(scope="module")
def engine_of(tmp_path_factory: pytest.TempPathFactory) -> Callable[[], Engine]:
    folder = tiny_models.save(tiny_models.stable_diffusion(), tmp_path_factory.mktemp("model"))
    return lambda: Engine(load_model(folder, dtype="float32", device="cpu"), 4)


def shard_of(*seeds: int) -> pa.Table:
    fields = [
        ("prompt", pa.string()),
        ("negative_prompt", pa.string()),
        ("manifest_file", pa.string()),
        ("manifest_row", pa.int64()),
    ]
    rows = [
        {
            "prompt": f"p{seed}", "negative_prompt": None, "manifest_file": "m.parquet", "manifest_row": seed,
            "task_id": bytes([seed]) * 16,
            "seed": seed, "guidance_scale": 1.0 + seed % 2, "num_inference_steps": 2 + seed % 3, "scheduler": "ddim",
            "width": tiny_models.SIZE_PX, "height": tiny_models.SIZE_PX, "evaluations": 10,
        }
        for seed in seeds
    ]  # fmt: skip
    return pa.Table.from_pylist(rows, schema=pa.schema([*(pa.field(*field) for field in fields), *TASK_FIELDS]))


def runner_of(engine: Engine, store: LocalStore) -> LeaseRunner:
    return LeaseRunner(engine, lambda shard: PartWriter(store, shard, FACTS))


def digests(table: pa.Table) -> dict[str, str]:
    return dict(zip(table["task_id"].to_pylist(), table["pixel_sha256"].to_pylist(), strict=True))


def test_shards_at_once_and_one_by_one_are_the_same_pixels(engine_of: Callable[[], Engine], tmp_path: Path) -> None:
    shards = [shard_of(*range(start, start + 5)) for start in range(0, 20, 5)]
    together, alone = (
        runner_of(engine_of(), LocalStore(tmp_path / "a")),
        runner_of(engine_of(), LocalStore(tmp_path / "b")),
    )
    futures = [together.submit(shard) for shard in shards]
    for shard, future in zip(shards, futures, strict=True):
        done = future.result(timeout=30)
        assert done["status"].to_pylist() == ["ok"] * 5
        assert digests(done) == digests(alone.submit(shard).result(timeout=30))
        stored = LocalStore(tmp_path / "a")
        (part,) = stored.list(part_prefix(part_id(shard["task_id"].to_pylist())))
        assert read_part(stored, part.key).equals(done)
    together.close()
    alone.close()


def test_a_committed_shard_is_not_rendered_again(engine_of: Callable[[], Engine], tmp_path: Path) -> None:
    first = runner_of(engine_of(), LocalStore(tmp_path))
    done = first.submit(shard_of(1, 2)).result(timeout=30)
    first.close()
    engine = engine_of()
    second = runner_of(engine, LocalStore(tmp_path))
    assert second.submit(shard_of(1, 2)).result(timeout=30).equals(done)
    second.close()
    assert engine.counters.evaluations == 0


def test_a_task_in_several_shards_is_rendered_once_at_a_time(engine_of: Callable[[], Engine], tmp_path: Path) -> None:
    engine = engine_of()
    rendering = runner_of(engine, LocalStore(tmp_path))
    shards = [shard_of(1, 2, 3), shard_of(3, 4), shard_of(2, 3, 5)]
    done = [future.result(timeout=60) for future in [rendering.submit(shard) for shard in shards]]
    assert [table.num_rows for table in done] == [3, 2, 3]
    seen: dict[str, str] = {}
    for table in done:
        for task, pixels in digests(table).items():
            assert seen.setdefault(task, pixels) == pixels
    rendering.close()


def test_a_packed_layout_gives_the_same_pixels_in_an_object_per_shard(
    engine_of: Callable[[], Engine], tmp_path: Path
) -> None:
    stores = [LocalStore(tmp_path / layout) for layout in ("files", "webdataset")]
    packed = replace(FACTS, packing=Packing(layout="webdataset"))
    shards = [shard_of(1, 2, 3), shard_of(4, 5)]
    found = []
    for store, facts in zip(stores, (FACTS, packed), strict=True):
        rendering = LeaseRunner(engine_of(), partial(PartWriter, store, facts=facts))
        futures = [rendering.submit(shard) for shard in shards]
        found.append([digests(future.result(timeout=30)) for future in futures])
        rendering.close()
    assert found[0] == found[1]
    assert [len(list(store.list("images/"))) for store in stores] == [5, 0]
    assert len(list(stores[1].list("shards/"))) == 2


def test_repeated_tasks_of_a_shard_are_packed_once() -> None:
    assert distinct(shard_of(1, 2, 1, 3, 2))["seed"].to_pylist() == [1, 2, 3]
    whole = shard_of(1, 2)
    assert distinct(whole) is whole


def test_the_engine_waits_for_a_slow_store(engine_of: Callable[[], Engine], tmp_path: Path) -> None:
    store, opened = SlowStore(tmp_path), threading.Event()
    store.opened = opened
    engine = engine_of()
    rendering = runner_of(engine, store)
    future = rendering.submit(shard_of(*range(200)))
    try:
        deadline = time.monotonic() + 60
        before = None
        while before != engine.counters or not engine.counters.denoiser_calls:
            assert time.monotonic() < deadline, "the engine never waited"
            before = engine.counters
            time.sleep(1.0)
        assert engine.busy
    finally:
        opened.set()
    assert future.result(timeout=120).num_rows == 200
    rendering.close()


def test_a_shard_that_is_none_fails_alone(engine_of: Callable[[], Engine], tmp_path: Path) -> None:
    rendering = runner_of(engine_of(), LocalStore(tmp_path))
    with pytest.raises(KeyError, match="seed"):
        rendering.submit(shard_of(1).drop_columns(["seed"])).result(timeout=30)
    assert rendering.submit(shard_of(1)).result(timeout=30).num_rows == 1
    rendering.close()


class BrokenEngine(Engine):
    """Breaks in its third step, as a device that is lost."""

    steps = 0

    def step(self) -> list:  # type: ignore[type-arg]
        self.steps += 1
        if self.steps == 3:
            raise RuntimeError("device lost")
        return super().step()


def test_a_broken_engine_fails_everyone_who_waits(engine_of: Callable[[], Engine], tmp_path: Path) -> None:
    engine = engine_of()
    engine.__class__ = BrokenEngine
    rendering = runner_of(engine, LocalStore(tmp_path))
    futures = [rendering.submit(shard_of(*range(start, start + 8))) for start in (0, 8, 16)]
    for future in futures:
        with pytest.raises(RuntimeError, match="device lost"):
            future.result(timeout=30)
    with pytest.raises(RuntimeError, match="device lost"):
        rendering.submit(shard_of(99)).result(timeout=30)
    assert not list(LocalStore(tmp_path).list("metadata/"))


class SlowStore(LocalStore):
    """Stores no picture before it is opened."""

    opened: threading.Event

    def put_file(self, key: str, file: BinaryIO) -> None:
        self.opened.wait()
        super().put_file(key, file)


class FullStore(LocalStore):
    """Out of room after some objects."""

    def __init__(self, root: Path, left: int) -> None:
        super().__init__(root)
        self._left, self._counting = left, threading.Lock()

    def put_file(self, key: str, file: BinaryIO) -> None:
        with self._counting:
            self._left -= 1
            if self._left < 0:
                raise StoreUnavailableError("disk full")
        super().put_file(key, file)


def test_a_store_that_fails_fails_its_shard_and_commits_nothing_half(
    engine_of: Callable[[], Engine], tmp_path: Path
) -> None:
    store = FullStore(tmp_path, left=7)
    rendering = runner_of(engine_of(), store)
    rendering.submit(shard_of(1, 2, 3)).result(timeout=30)
    with pytest.raises(StoreUnavailableError, match="disk full"):
        rendering.submit(shard_of(*range(4, 12))).result(timeout=30)
    rendering.close()
    assert len(list(store.list("metadata/"))) == 1


def test_what_is_stored_is_committed_now_and_then_and_told(
    engine_of: Callable[[], Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "COMMIT_S", 0.0)
    engine, store, parts = engine_of(), LocalStore(tmp_path), list[pa.Table]()
    rendering, journal = runner_of(engine, store), Journal(tmp_path / "journal")
    rendering._journal = journal
    done = rendering.submit(shard_of(*range(30)), parts.append).result(timeout=60)
    rendering.close()
    assert 2 < len(parts) <= 30
    assert done.num_rows == 30
    assert pa.concat_tables(parts).equals(done)
    assert len(list(store.list("metadata/"))) == len(parts)
    names = {part["part_id"][0].as_py() for part in parts}
    assert {*read_journal(tmp_path / "journal").parts} == names


@pytest.mark.parametrize(
    ("images", "size", "age_s", "due"),
    [(63, 0, 599, False), (64, 0, 61, True), (64, 0, 59, False), (1, 2**26, 61, True), (1, 0, 601, True)],
)
def test_packed_images_wait_until_there_are_some(images: int, size: int, age_s: float, due: bool) -> None:
    writer = SimpleNamespace(packed=True, bytes=size)
    assert runner._OpenPart(cast("PartWriter", writer), time.monotonic() - age_s, stored=images).due is due


def test_a_lease_that_the_engine_has_not_is_given_back(
    engine_of: Callable[[], Engine], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(runner, "MOST_WAITING", 1)
    rendering = runner_of(engine_of(), LocalStore(tmp_path))
    first = rendering.submit(shard_of(*range(100)))
    deadline = time.monotonic() + 60
    while not rendering._open and time.monotonic() < deadline:
        time.sleep(0.01)
    second = rendering.submit(shard_of(100, 101))
    while not rendering._held and time.monotonic() < deadline:
        time.sleep(0.01)
    assert rendering.take_back(second)
    assert not rendering.take_back(first), "it is begun"
    assert not rendering.take_back(second)
    assert second.result(timeout=1).num_rows == 0
    assert first.result(timeout=60).num_rows == 100
    rendering.close()


def test_what_the_engine_has_begun_and_not_stored_is_in_the_journal(
    engine_of: Callable[[], Engine], tmp_path: Path
) -> None:
    journal, store, opened = Journal(tmp_path / "journal"), SlowStore(tmp_path / "out"), threading.Event()
    store.opened = opened
    begun: set[str] = set()
    engine = engine_of()

    def begin(task: RenderTask) -> None:
        begun.add(task.task_id)
        journal.begin(bytes.fromhex(task.task_id))

    engine._preparation._on_begin = begin
    rendering = LeaseRunner(engine, lambda shard: PartWriter(store, shard, FACTS), journal=journal)
    future = rendering.submit(shard_of(*range(20)))
    deadline = time.monotonic() + 60
    while len(begun) < 20 and time.monotonic() < deadline:
        time.sleep(0.01)
    assert {task_id.hex() for task_id in read_journal(tmp_path / "journal").in_flight} == begun
    opened.set()
    assert future.result(timeout=60).num_rows == 20
    rendering.close()
    assert read_journal(tmp_path / "journal").in_flight == frozenset()


@pytest.fixture(scope="module", autouse=True)
def _one_thread() -> Iterator[None]:
    """Tiny models are drawn ten times as fast by one thread, and on a busy machine a hundred times."""
    before = torch.get_num_threads()
    torch.set_num_threads(1)
    yield
    torch.set_num_threads(before)


@pytest.fixture(autouse=True)
def no_thread_left() -> Iterator[None]:
    """A runner that was closed leaves no engine thread; a broken one keeps it to refuse what comes."""
    yield
    engines = [thread for thread in threading.enumerate() if thread.name == "engine"]
    assert len(engines) <= 1
