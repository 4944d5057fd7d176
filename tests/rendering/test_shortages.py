"""Memory is short at any place: nothing is lost, and every image is what it is alone with the same rows."""

import gc
import weakref
from collections.abc import Callable
from dataclasses import replace
from random import Random
from typing import Any

import pytest
import torch

from pipeline.errors import DeviceHeldError, JobBrokenError
from pipeline.rendering.batch import Batch
from pipeline.rendering.device_memory import PAUSES_S
from pipeline.rendering.engine import Engine
from pipeline.rendering.loading import LoadedModel
from pipeline.rendering.results import Rendered
from tests.fake_device import ERROR, GB, FakeDevice
from tests.rendering.tasks import mixed_tasks, pixels_by_id
from tests.rendering.test_failures import with_loud_decoder

TASKS = mixed_tasks()
PLACES: dict[str, tuple[type | None, str]] = {
    "text encoders": (None, "encode_texts"),
    "first noise": (None, "first_noise"),
    "denoiser": (None, "predict"),
    "decoder": (None, "decode"),
    "admission": (Batch, "admit"),
    "end of a task": (Batch, "take_finished"),
}
"""The class, the adapter's where there is none, and its method."""


def failing(function: Callable[..., Any], fails: Callable[[], bool]) -> Callable[..., Any]:
    """Return the function with too little memory for some calls, which may have done something before."""

    def called(*args: Any, **named: Any) -> Any:
        if fails():
            raise torch.OutOfMemoryError("CUDA out of memory. Tried to allocate 20.00 MiB")
        return function(*args, **named)

    return called


def nth(*numbers: int) -> Callable[[], bool]:
    """Return a function that is true at these calls, from 1."""
    calls = 0

    def fails() -> bool:
        nonlocal calls
        calls += 1
        return calls in numbers

    return fails


def rendered(engine: Engine) -> dict[int, dict[str, bytes]]:
    """Return the pixels by rows and task; every task must be rendered once."""
    outcomes = list(engine.render(TASKS))
    assert sorted(outcome.task.task_id for outcome in outcomes) == sorted(task.task_id for task in TASKS)
    images: dict[int, dict[str, bytes]] = {}
    for outcome in outcomes:
        assert isinstance(outcome, Rendered), outcome
        images.setdefault(outcome.rows, {})[outcome.task.task_id] = outcome.pixels.tobytes()
    return images


@pytest.fixture(scope="module")
def whole(epsilon_model: LoadedModel) -> dict[int, dict[str, bytes]]:
    return {rows: pixels_by_id(Engine(epsilon_model, rows), TASKS) for rows in (2, 4, 8)}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("seed", range(2))
def test_nothing_is_lost(
    epsilon_model: LoadedModel,
    whole: dict[int, dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    place: str,
    seed: int,
) -> None:
    kind, name = PLACES[place]
    owner, drawn = kind or type(epsilon_model.adapter), Random(seed)
    first = drawn.randint(1, 2)
    # No shortage at two tries in a row: what needs the whole device would end the job.
    monkeypatch.setattr(owner, name, failing(getattr(owner, name), nth(first, first + drawn.randint(2, 9))))
    for rows, images in rendered(Engine(epsilon_model, 8)).items():
        assert images == {task: whole[rows][task] for task in images}
    assert "out of memory" in caplog.text


@pytest.mark.parametrize("place", ["text encoders", "first noise", "decoder"])
def test_a_shortage_beside_the_denoiser_costs_no_rows(
    epsilon_model: LoadedModel,
    whole: dict[int, dict[str, bytes]],
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    place: str,
) -> None:
    """Each try fails while the batch holds a task, however many tasks are prepared ahead."""
    engine, owner = Engine(epsilon_model, 8), type(epsilon_model.adapter)
    name = PLACES[place][1]
    monkeypatch.setattr(owner, name, failing(getattr(owner, name), lambda: bool(engine._used_rows)))
    assert rendered(engine) == {8: whole[8]}
    assert "no other one starts until there is room" in caplog.text


@pytest.mark.parametrize("place", ["text encoders", "decoder"])
def test_what_fits_once_the_batchs_memory_is_free_ends_nothing(
    epsilon_model: LoadedModel, whole: dict[int, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch, place: str
) -> None:
    engine, owner = Engine(epsilon_model, 8), type(epsilon_model.adapter)
    name = PLACES[place][1]
    monkeypatch.setattr(owner, name, failing(getattr(owner, name), lambda: engine._batch is not None))
    assert rendered(engine) == {8: whole[8]}


def test_a_shortage_of_the_second_decoding_is_waited_out(
    epsilon_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = with_loud_decoder(epsilon_model, torch.float16, 3e4)
    model = replace(model, adapter=replace(model.adapter, dtype=torch.float32))
    alone = pixels_by_id(Engine(model, 8), TASKS)
    engine, owner = Engine(model, 8), type(model.adapter)
    tried: list[bool] = []

    def beside_others() -> bool:
        tried.append(bool(engine._used_rows))
        return tried[-1]

    monkeypatch.setattr(owner, "decode_in_float32", failing(owner.decode_in_float32, beside_others))
    assert rendered(engine) == {8: alone}
    assert set(tried) == {True, False}


@pytest.mark.parametrize(
    ("place", "said"),
    [("text encoders", "fits on cpu to prepare it"), ("denoiser", "of this size fits on cpu"),
     ("decoder", "fits on cpu to decode it"), ("admission", "of this size fits on cpu")],
)  # fmt: skip
def test_what_never_fits_ends_the_job(
    epsilon_model: LoadedModel, monkeypatch: pytest.MonkeyPatch, place: str, said: str
) -> None:
    kind, name = PLACES[place]
    owner = kind or type(epsilon_model.adapter)
    monkeypatch.setattr(owner, name, failing(getattr(owner, name), lambda: True))
    with pytest.raises(JobBrokenError, match=rf"not even one image {said}: .*Tried to allocate"):
        list(Engine(epsilon_model, 8).render(TASKS))


@pytest.mark.parametrize("own", [4, 60])
def test_a_shortage_in_the_middle_of_every_batch_ends_though_its_first_steps_have_memory(
    epsilon_model: LoadedModel, monkeypatch: pytest.MonkeyPatch, own: int
) -> None:
    device = FakeDevice(others=76 * GB if own == 4 else 20 * GB, until_s=float("inf"), own=own * GB)
    engine = Engine(epsilon_model, 8, patience=device.patience)
    predict = Batch.predict

    def fails(batch: Batch) -> torch.Tensor:
        if batch._step.any():
            raise ERROR
        return predict(batch)

    monkeypatch.setattr(Batch, "predict", fails)
    with pytest.raises(DeviceHeldError):
        list(engine.render(TASKS))
    assert device.now_s == pytest.approx(sum(PAUSES_S))


def test_rows_fall_only_where_the_denoiser_is_short_of_memory_with_nothing_beside_it(
    epsilon_model: LoadedModel, whole: dict[int, dict[str, bytes]], monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = type(epsilon_model.adapter)
    monkeypatch.setattr(owner, "predict", failing(owner.predict, nth(3)))
    assert rendered(Engine(epsilon_model, 8)) == {8: whole[8]}


def test_a_failed_preparation_keeps_no_memory(epsilon_model: LoadedModel, monkeypatch: pytest.MonkeyPatch) -> None:
    owner, alive = type(epsilon_model.adapter), list[weakref.ref[torch.Tensor]]()
    encode, fails = owner.encode_texts, nth(1)

    def encode_texts(adapter: Any, texts: list[str]) -> Any:
        assert not [one for one in alive if one() is not None], "of a try before"
        activations = torch.zeros(1)
        alive.append(weakref.ref(activations))
        if fails():
            raise torch.OutOfMemoryError("CUDA out of memory")
        return encode(adapter, texts)

    monkeypatch.setattr(owner, "encode_texts", encode_texts)
    gc.disable()
    try:
        list(Engine(epsilon_model, 8).render(TASKS[:4]))
    finally:
        gc.enable()
    assert len(alive) >= 2


def test_an_engine_whose_tasks_are_dropped_forgets_the_shortage(
    epsilon_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    owner = type(epsilon_model.adapter)
    monkeypatch.setattr(owner, "encode_texts", failing(owner.encode_texts, nth(1, 2)))
    engine = Engine(epsilon_model, 8)
    for _ in range(2):
        engine.add(TASKS)
        engine.step()
        assert len(engine.drop_waiting()) == len(TASKS)
    assert len(list(engine.render(TASKS))) == len(TASKS)
