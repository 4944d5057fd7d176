"""A worker whose device others fill: it waits, then another process tries, and the launch does not end."""

import asyncio
from collections.abc import Callable
from concurrent.futures import Future
from datetime import timedelta
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pyarrow as pa
import pytest
import torch

from pipeline.distributed import board, worker
from pipeline.distributed.board import _Board
from pipeline.distributed.spec import WorkerSpec
from pipeline.distributed.worker import RenderWorker
from pipeline.errors import DeviceHeldError, JobBrokenError, ModelError
from pipeline.output.attempts import Attempts, Process
from pipeline.rendering.device_memory import PAUSES_S
from pipeline.storage.local import LocalStore
from tests.fake_device import GB, TOTAL, FakeDevice

SPEC = cast("WorkerSpec", SimpleNamespace(device="cuda"))
FOREVER = float("inf")
ME = Process(node_id="n", process_id="p")


class Ended(BaseException):
    """In place of the end of the process."""


@pytest.fixture(autouse=True)
def ending(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(reason: str) -> NoReturn:
        raise Ended(reason)

    monkeypatch.setattr(worker, "die", end)


class Loading(RenderWorker):
    """A worker that loads onto a fake device, without Ray."""

    def __init__(self, device: FakeDevice, store: Path) -> None:
        self.device, self.complaints = device, list[str]()
        self._board, self._process = None, ME
        self._attempts = Attempts(LocalStore(store), "launch", ME)

    def _renderer(self, *_: Any) -> Any:
        self.device.allocate()
        return "loaded"

    def _patience(self, device: str) -> Any:
        return self.device.patience

    def _complain(self, reason: str) -> None:
        self.complaints.append(reason)

    def _give_up(self, reason: str) -> NoReturn:
        raise Ended(reason)


def loaded(made: Loading) -> Any:
    return made._on_device(SPEC, Path(), ())


def test_a_worker_waits_for_a_device_that_is_full_for_30_s(tmp_path: Path) -> None:
    made = Loading(FakeDevice(others=75 * GB, until_s=30, own=0), tmp_path)
    assert loaded(made) == "loaded"
    assert 30 <= made.device.now_s <= sum(PAUSES_S)
    assert len(made.complaints) == 2
    assert "out of memory" in made.complaints[0]


def test_a_device_that_stays_full_is_left_to_another_process_and_is_no_bad_input(tmp_path: Path) -> None:
    made = Loading(FakeDevice(others=75 * GB, until_s=FOREVER, own=0), tmp_path)
    with pytest.raises(Ended):
        loaded(made)
    assert made.device.now_s == pytest.approx(sum(PAUSES_S))


def test_a_model_that_fills_an_idle_device_does_not_fit(tmp_path: Path) -> None:
    made = Loading(FakeDevice(others=0, until_s=0, own=TOTAL), tmp_path)
    with pytest.raises(ModelError, match="the model does not fit on cuda: OutOfMemoryError: CUDA out of memory"):
        loaded(made)
    assert made.device.now_s == 0


@pytest.mark.parametrize(
    ("nodes", "only_node", "ends"),
    [
        ("ab", False, [False, True]),
        ("aa", True, [False, True]),
        ("aaab", False, [False, False, False, True]),
        ("ab", True, [False, True]),
    ],
)
def test_two_nodes_must_say_that_it_does_not_fit_or_the_only_one_twice(
    nodes: str, only_node: bool, ends: list[bool]
) -> None:
    async def said() -> list[bool]:
        board = _Board(most_failed_starts=10, quiet_s=600)
        return [await board.does_not_fit(node, only_node) for node in nodes]

    assert asyncio.run(said()) == ends


def test_devices_that_others_hold_for_good_end_the_launch(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each process loads the model well and has no memory to render: only a rendered shard counts as progress."""
    now = 0.0
    monkeypatch.setattr(board, "time", SimpleNamespace(monotonic=lambda: now))

    async def said() -> list[bool]:
        nonlocal now
        asked = _Board(most_failed_starts=2, quiet_s=600)
        answers = []
        for at_s in (0.0, 200.0, 500.0, 900.0, 1000.0, 1050.0, 1101.0):
            now = at_s
            await asked.works()
            if at_s == 500:
                await asked.rendered()
            answers.append(await asked.held())
        return answers

    assert asyncio.run(said()) == [False, False, False, False, False, False, True]


def test_the_last_of_too_many_workers_without_memory_breaks_the_job(tmp_path: Path) -> None:
    made = Loading(FakeDevice(others=0, until_s=0), tmp_path)
    made._board = SimpleNamespace(held=None)
    for ends, kind in ((False, Ended), (True, JobBrokenError)):
        made._told_that = lambda _, ends=ends: ends  # type: ignore[method-assign,misc]
        with pytest.raises(kind, match="other processes hold"):
            rendering(made, DeviceHeldError("other processes hold 70 GiB"))()


def rendering(made: Loading, error: Exception) -> Callable[[], Any]:
    failed: Future[pa.Table] = Future()
    failed.set_exception(error)
    made._runner = cast("Any", SimpleNamespace(submit=lambda _: failed))
    return lambda: asyncio.run(made._attempt(pa.table({}), "part"))


@pytest.mark.parametrize(
    ("error", "charged"),
    [(DeviceHeldError("other processes hold 70 GiB"), 0), (torch.OutOfMemoryError("CUDA out of memory"), 1)],
)
def test_a_shard_is_not_charged_with_the_end_of_a_process_whose_device_others_fill(
    tmp_path: Path, error: Exception, charged: int
) -> None:
    made = Loading(FakeDevice(others=0, until_s=0), tmp_path)
    with pytest.raises(Ended):
        rendering(made, error)()
    next_one = Attempts(LocalStore(tmp_path), "launch", Process(node_id="n", process_id="q"))
    dead = next_one.earlier("part")
    for process in dead:
        next_one.charge(process)
    assert (len(dead), next_one.deaths_within(timedelta(minutes=1))) == (charged, charged)
    assert len(made.complaints) == 1 - charged
