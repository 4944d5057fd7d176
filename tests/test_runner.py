"""Shards through an engine to a store, without Ray: a tiny model of the real classes, a real directory."""

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import BinaryIO

import pyarrow as pa
import pytest
import torch

from pipeline.distributed.runner import ShardRunner
from pipeline.distributed.shards import distinct
from pipeline.errors import StoreUnavailableError
from pipeline.identity import part_id
from pipeline.output.layout import Packing, part_prefix
from pipeline.output.part import PartWriter, RunFacts, read_part
from pipeline.planning.tasks import TASK_FIELDS
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


def runner_of(engine: Engine, store: LocalStore) -> ShardRunner:
    return ShardRunner(engine, lambda shard: PartWriter(store, shard, FACTS))


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
    runner = runner_of(engine, LocalStore(tmp_path))
    shards = [shard_of(1, 2, 3), shard_of(3, 4), shard_of(2, 3, 5)]
    done = [future.result(timeout=60) for future in [runner.submit(shard) for shard in shards]]
    assert [table.num_rows for table in done] == [3, 2, 3]
    seen: dict[str, str] = {}
    for table in done:
        for task, pixels in digests(table).items():
            assert seen.setdefault(task, pixels) == pixels
    runner.close()


def test_a_packed_layout_gives_the_same_pixels_in_an_object_per_shard(
    engine_of: Callable[[], Engine], tmp_path: Path
) -> None:
    stores = [LocalStore(tmp_path / layout) for layout in ("files", "webdataset")]
    packed = replace(FACTS, packing=Packing(layout="webdataset"))
    shards = [shard_of(1, 2, 3), shard_of(4, 5)]
    found = []
    for store, facts in zip(stores, (FACTS, packed), strict=True):
        runner = ShardRunner(engine_of(), partial(PartWriter, store, facts=facts))
        futures = [runner.submit(shard) for shard in shards]
        found.append([digests(future.result(timeout=30)) for future in futures])
        runner.close()
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
    runner = runner_of(engine, store)
    future = runner.submit(shard_of(*range(200)))
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
    runner.close()


def test_a_shard_that_is_none_fails_alone(engine_of: Callable[[], Engine], tmp_path: Path) -> None:
    runner = runner_of(engine_of(), LocalStore(tmp_path))
    with pytest.raises(KeyError, match="seed"):
        runner.submit(shard_of(1).drop_columns(["seed"])).result(timeout=30)
    assert runner.submit(shard_of(1)).result(timeout=30).num_rows == 1
    runner.close()


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
    runner = runner_of(engine, LocalStore(tmp_path))
    futures = [runner.submit(shard_of(*range(start, start + 8))) for start in (0, 8, 16)]
    for future in futures:
        with pytest.raises(RuntimeError, match="device lost"):
            future.result(timeout=30)
    with pytest.raises(RuntimeError, match="device lost"):
        runner.submit(shard_of(99)).result(timeout=30)
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
    runner = runner_of(engine_of(), store)
    runner.submit(shard_of(1, 2, 3)).result(timeout=30)
    with pytest.raises(StoreUnavailableError, match="disk full"):
        runner.submit(shard_of(*range(4, 12))).result(timeout=30)
    runner.close()
    assert len(list(store.list("metadata/"))) == 1


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
