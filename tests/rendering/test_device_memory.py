"""Memory that other processes hold is waited for; fewer rows are for what fills the device itself."""

from collections.abc import Callable
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from pipeline.errors import DeviceHeldError, JobBrokenError
from pipeline.rendering.device_memory import NOTICED_BYTES, PAUSES_S, Patience, read_memory
from pipeline.rendering.engine import Engine
from pipeline.rendering.loading import LoadedModel
from pipeline.rendering.results import Outcome, Rendered
from pipeline.rendering.single import SingleEngine
from tests.fake_device import GB, TOTAL, FakeDevice
from tests.rendering.tasks import mixed_tasks, pixels_by_id


class NeedingMemory(torch.nn.Module):
    """A denoiser on a fake device."""

    def __init__(self, denoiser: Any, device: FakeDevice) -> None:
        super().__init__()
        self.config = denoiser.config
        self.call = device.on(denoiser)

    def forward(self, *inputs: Any, **named: Any) -> Any:
        return self.call(*inputs, **named)


def denoising_on(model: LoadedModel, device: FakeDevice) -> LoadedModel:
    stock = model.adapter.stock
    copied = type(stock)(**stock.components, requires_safety_checker=False)
    copied.unet = NeedingMemory(stock.unet, device)
    return replace(model, adapter=replace(model.adapter, stock=copied))


def pixels(outcomes: list[Outcome]) -> dict[str, bytes]:
    return {o.task.task_id: o.pixels.tobytes() for o in outcomes if isinstance(o, Rendered)}


@pytest.fixture(scope="module")
def whole(epsilon_model: LoadedModel) -> dict[str, bytes]:
    return pixels_by_id(Engine(epsilon_model, 8), mixed_tasks())


@pytest.mark.parametrize("needs", ["denoiser", "encode_texts", "decode"])
def test_a_device_that_is_full_for_30_s_is_waited_for(
    epsilon_model: LoadedModel, whole: dict[str, bytes], needs: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    device, model = FakeDevice(others=75 * GB, until_s=30), epsilon_model
    if needs == "denoiser":
        model = denoising_on(model, device)
    else:
        kind = type(model.adapter)
        monkeypatch.setattr(kind, needs, device.on(getattr(kind, needs)))
    outcomes = list(Engine(model, 8, patience=device.patience).render(mixed_tasks()))
    assert pixels(outcomes) == whole, "with as many rows as ever"
    assert 30 <= device.now_s <= 70
    assert device.longest_s <= 1, "no step may look like one that hangs"


def test_a_device_that_fills_up_in_the_middle_costs_only_time(
    epsilon_model: LoadedModel, whole: dict[str, bytes]
) -> None:
    device = FakeDevice(others=0, until_s=float("inf"))
    engine = Engine(denoising_on(epsilon_model, device), 8, patience=device.patience)
    engine.add(mixed_tasks(), grouped=True)
    outcomes, steps = list[Outcome](), 0
    while engine.busy:
        steps += 1
        if steps in (3, 100):  # twice, so that the pauses must be there again
            device.others, device.until_s = 75 * GB, device.now_s + 60
        outcomes += engine.step()
    assert pixels(outcomes) == whole
    assert len(outcomes) == len(whole), "no task is rendered twice"
    assert device.now_s >= 2 * 60


def test_a_device_that_stays_full_is_left_to_another_process(epsilon_model: LoadedModel) -> None:
    device = FakeDevice(others=75 * GB, until_s=float("inf"))
    engine = Engine(denoising_on(epsilon_model, device), 8, patience=device.patience)
    with pytest.raises(DeviceHeldError, match=r"other processes hold 69\.8 GiB.*Tried to allocate"):
        list(engine.render(mixed_tasks()))
    assert device.now_s == pytest.approx(sum(PAUSES_S))


@pytest.mark.parametrize("others", [0, NOTICED_BYTES])
def test_rows_fall_at_once_where_only_the_own_allocations_fill_the_device(
    epsilon_model: LoadedModel, caplog: pytest.LogCaptureFixture, others: int
) -> None:
    device = FakeDevice(others=others, until_s=float("inf"), own=TOTAL - others)
    engine = Engine(denoising_on(epsilon_model, device), 8, patience=device.patience)
    with pytest.raises(JobBrokenError, match="not even one image of this size fits") as caught:
        list(engine.render(mixed_tasks()))
    assert type(caught.value) is JobBrokenError
    assert "going on with 4" in caplog.text
    assert device.now_s == 0


def test_rows_fall_beside_others_that_hold_the_smaller_part_for_good(
    epsilon_model: LoadedModel, caplog: pytest.LogCaptureFixture
) -> None:
    """A fresh process would meet the same others: without fewer rows no image would ever be rendered."""
    device = FakeDevice(others=20 * GB, until_s=float("inf"), own=60 * GB)
    engine = Engine(denoising_on(epsilon_model, device), 8, patience=device.patience)
    with pytest.raises(DeviceHeldError, match=r"other processes hold 18\.6 GiB"):
        list(engine.render(mixed_tasks()))
    assert "going on with 2" in caplog.text
    assert device.now_s == pytest.approx(sum(PAUSES_S)), "and the pauses are not made again for each lower number"


def test_one_call_per_image_waits_as_well(whole_images: dict[str, bytes], single_on: Any) -> None:
    device = FakeDevice(others=75 * GB, until_s=30)
    assert pixels(list(single_on(device).render(mixed_tasks()[:2]))) == whole_images
    assert 30 <= device.now_s <= 70
    with pytest.raises(DeviceHeldError):
        list(single_on(FakeDevice(others=75 * GB, until_s=float("inf"))).render(mixed_tasks()[:1]))
    with pytest.raises(JobBrokenError, match="not even one image") as caught:
        list(single_on(FakeDevice(others=0, until_s=0, own=TOTAL)).render(mixed_tasks()[:1]))
    assert type(caught.value) is JobBrokenError


@pytest.fixture
def single_on(epsilon_model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> Callable[[FakeDevice | None], Any]:
    def made(device: FakeDevice | None) -> SingleEngine:
        stock, schedulers = epsilon_model.adapter.stock, epsilon_model.adapter.schedulers
        patience = None if device is None else device.patience
        engine = SingleEngine(stock, schedulers=schedulers, device="cpu", call={}, patience=patience)
        if device:
            monkeypatch.setattr(engine, "_draw", device.on(engine._draw))
        return engine

    return made


@pytest.fixture
def whole_images(single_on: Any) -> dict[str, bytes]:
    return pixels(list(single_on(None).render(mixed_tasks()[:2])))


def test_what_is_read_of_a_gpu(monkeypatch: pytest.MonkeyPatch) -> None:
    assert read_memory("cpu") is None
    assert Patience(lambda: None).begin_pause() is False
    properties = SimpleNamespace(total_memory=80)

    def too_full(_: str) -> tuple[int, int]:
        raise RuntimeError("CUDA error: out of memory")

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "memory_reserved", lambda _: 50)
    monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _: (10, 80))
    monkeypatch.setattr(torch.cuda, "get_device_properties", lambda _: properties)
    memory = read_memory("cuda")
    assert memory is not None
    assert (memory.total, memory.free, memory.own, memory.others) == (80, 10, 50, 20)
    monkeypatch.setattr(torch.cuda, "mem_get_info", too_full)
    memory = read_memory("cuda")
    assert memory is not None
    assert (memory.total, memory.free, memory.others) == (80, 0, 30)
