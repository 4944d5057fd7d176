"""A worker whose device others fill: it waits, then another process tries, and the launch does not end."""

from concurrent.futures import Future
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn, cast

import pyarrow as pa
import pytest
import torch

from pipeline.distributed import worker
from pipeline.distributed.events import Event, GaveUp, Waiting
from pipeline.distributed.spec import WorkerSpec
from pipeline.distributed.worker import RenderWorker, _GivesUpError
from pipeline.errors import DeviceHeldError, JobBrokenError, ModelError
from pipeline.rendering.device_memory import PAUSES_S
from tests.fake_device import GB, TOTAL, FakeDevice

SPEC = cast("WorkerSpec", SimpleNamespace(device="cuda"))
FOREVER = float("inf")


class Ended(BaseException):
    """In place of the end of the process."""


@pytest.fixture(autouse=True)
def ending(monkeypatch: pytest.MonkeyPatch) -> None:
    def end(reason: str) -> NoReturn:
        raise Ended(reason)

    monkeypatch.setattr(worker, "die", end)
    monkeypatch.setattr(worker, "nodes_with", lambda resource: 1)


class Loading(RenderWorker):
    """A worker that loads onto a fake device, without Ray."""

    def __init__(self, device: FakeDevice) -> None:
        self.device, self.told = device, list[Event]()
        self._log = cast("Any", SimpleNamespace(broken=lambda reason: None))

    def _renderer(self, *_: Any) -> Any:
        self.device.allocate()
        return "loaded"

    def _patience(self, device: str) -> Any:
        return self.device.patience

    def _tell(self, event: Event) -> None:
        self.told.append(event)


def loaded(made: Loading) -> Any:
    return made._on_device(SPEC, Path(), ())


def test_a_worker_waits_for_a_device_that_is_full_for_30_s() -> None:
    made = Loading(FakeDevice(others=75 * GB, until_s=30, own=0))
    assert loaded(made) == "loaded"
    assert 30 <= made.device.now_s <= sum(PAUSES_S)
    assert len(made.told) == 2
    assert isinstance(made.told[0], Waiting)
    assert "out of memory" in made.told[0].reason


@pytest.mark.parametrize(
    ("device", "why", "kind", "waited_s"),
    [
        (FakeDevice(others=75 * GB, until_s=FOREVER, own=0), "start", JobBrokenError, sum(PAUSES_S)),
        (FakeDevice(others=0, until_s=0, own=TOTAL), "room", ModelError, 0),
    ],
)
def test_a_full_device_is_left_to_another_process_and_is_bad_input_only_where_the_model_fills_it(
    device: FakeDevice, why: str, kind: type[Exception], waited_s: float
) -> None:
    made = Loading(device)
    with pytest.raises(_GivesUpError) as caught:
        loaded(made)
    assert caught.value.event.why == why
    assert type(caught.value.event.error) is kind
    assert "CUDA out of memory" in str(caught.value.event.error)
    assert caught.value.event.only_node is (why == "room")
    assert made.device.now_s == pytest.approx(waited_s)


def rendering(made: Loading, error: Exception) -> None:
    failed: Future[pa.Table] = Future()
    made._leases = {1: failed}
    failed.set_exception(error)
    made._ended(1, failed)


def test_a_process_whose_device_others_fill_ends_and_blames_no_task() -> None:
    made = Loading(FakeDevice(others=0, until_s=0))
    rendering(made, DeviceHeldError("other processes hold 70 GiB"))
    (said, gave_up) = made.told
    assert said == Waiting("other processes hold 70 GiB")
    assert isinstance(gave_up, GaveUp)
    assert gave_up.why == "held"


def test_a_process_without_memory_on_a_device_of_its_own_dies_of_its_work() -> None:
    made = Loading(FakeDevice(others=0, until_s=0))
    with pytest.raises(Ended, match="CUDA out of memory"):
        rendering(made, torch.OutOfMemoryError("CUDA out of memory"))
    assert made.told == []
