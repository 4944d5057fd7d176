"""A task that cannot be rendered fails alone."""

from copy import deepcopy
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import torch

from pipeline.errors import JobBrokenError
from pipeline.recipe import RenderTask
from pipeline.rendering.decoding import Decoder
from pipeline.rendering.engine import Engine
from pipeline.rendering.loading import LoadedModel
from pipeline.rendering.results import Failed, Rendered
from tests.rendering.tasks import mixed_tasks, pixels_by_id, task
from tests.tiny_models import SIZE_PX

ROWS = 6
POISON = "zzz"
GOOD = [task(prompt=f"cat {n}", seed=n, num_inference_steps=2 + n % 3) for n in range(6)]


def failures(engine: Engine, tasks: list[RenderTask]) -> tuple[dict[str, Failed], dict[str, bytes]]:
    """What failed, and the pixels of what did not, by task id."""
    failed, pictures = {}, {}
    for outcome in engine.render(tasks):
        if isinstance(outcome, Rendered):
            pictures[outcome.task.task_id] = outcome.pixels.tobytes()
        else:
            failed[outcome.task.task_id] = outcome
    return failed, pictures


@pytest.fixture(scope="module")
def good(epsilon_model: LoadedModel) -> dict[str, bytes]:
    return pixels_by_id(Engine(epsilon_model, ROWS), GOOD)


@pytest.mark.parametrize(
    ("bad", "stage", "message"),
    [
        (task(prompt="half a pair \ud800"), "encode", "TypeError: "),
        (task(prompt=["a", "b"]), "encode", "TypeError: a prompt must be text, not list"),
        (task(prompt=None), "encode", "TypeError: a prompt must be text, not NoneType"),
        (task(negative_prompt=0), "encode", "TypeError: a prompt must be text, not int"),
        (task(scheduler="lcm", num_inference_steps=51), "denoise", "RenderError: scheduler lcm does 1 to 50"),
        (
            task(scheduler="flow_match_euler"),
            "denoise",
            "RenderError: scheduler flow_match_euler is not one of this model's family: ddim",
        ),
        (task(scheduler="magic"), "denoise", "InputError: there is no such scheduler"),
        (task(num_inference_steps=0), "denoise", "RenderError: scheduler ddim does 1 to 999 inference steps, not 0"),
    ],
)
def test_a_bad_recipe_fails_alone(
    epsilon_model: LoadedModel, good: dict[str, bytes], bad: RenderTask, stage: str, message: str
) -> None:
    failed, pictures = failures(Engine(epsilon_model, ROWS), [*GOOD[:3], bad, *GOOD[3:]])
    assert pictures == good
    assert [(f.task, f.stage, f.verdict) for f in failed.values()] == [(bad, stage, "error")]
    assert failed[bad.task_id].error.startswith(message)


def test_an_odd_size_fails(epsilon_model: LoadedModel) -> None:
    bad = task(width=SIZE_PX + 2)
    failed, _ = failures(Engine(epsilon_model, ROWS), [bad])
    assert failed[bad.task_id].error == "RenderError: width and height must be multiples of 4, not 34 x 32"


def poisoned(model: LoadedModel, word: str) -> LoadedModel:
    """The same model, but every text with the last letter of ``word`` in it encodes to NaN."""
    stock = model.adapter.stock
    text_encoder = deepcopy(stock.text_encoder)
    token = stock.tokenizer(word).input_ids[-2]
    with torch.no_grad():
        text_encoder.get_input_embeddings().weight[token] = float("nan")
    parts = {**stock.components, "text_encoder": text_encoder}
    copied = type(stock)(**parts, requires_safety_checker=False)
    return replace(model, adapter=replace(model.adapter, stock=copied))


@pytest.mark.parametrize("scheduler", ["ddim", "euler_ancestral", "dpmsolver++"])
def test_latents_that_are_nan_fail_and_never_become_a_black_picture(
    epsilon_model: LoadedModel, good: dict[str, bytes], scheduler: str
) -> None:
    bad = task(prompt=POISON, scheduler=scheduler)
    failed, pictures = failures(Engine(poisoned(epsilon_model, POISON), ROWS), [*GOOD[:3], bad, *GOOD[3:]])
    assert pictures == good
    assert [(f.task, f.stage, f.verdict) for f in failed.values()] == [(bad, "decode", "nan_latents")]


def with_loud_decoder(model: LoadedModel, dtype: torch.dtype, loudness: float) -> LoadedModel:
    """A copy in ``dtype`` whose decoder works with ``loudness`` times larger numbers inside: float16 ends at 65504."""
    stock = deepcopy(model.adapter.stock)
    torch.nn.Module.to(stock.vae, dtype)
    with torch.no_grad():
        stock.vae.decoder.conv_in.weight *= loudness
        stock.vae.decoder.conv_in.bias *= loudness
    return replace(model, adapter=replace(model.adapter, stock=stock, dtype=dtype))


def test_a_decoder_that_overflows_in_half_precision_is_asked_again_in_float32(epsilon_model: LoadedModel) -> None:
    model = with_loud_decoder(epsilon_model, torch.float16, 3e4)
    generator = torch.Generator().manual_seed(0)
    latents = torch.randn(4, 4, 8, 8, generator=generator).half()
    quiet = latents * torch.tensor([1.0, 1e-3, 1.0, 1e-3]).half()[:, None, None, None]
    with torch.no_grad():
        raw = model.adapter.stock.vae.decode(quiet / model.adapter.stock.vae.config.scaling_factor).sample
        images = [Decoder(model.adapter).start(latent).result() for latent in quiet]
    assert raw.isfinite().flatten(1).all(1).tolist() == [False, True, False, True]
    assert all(finite and pixels.std() > 5 for pixels, finite in images)
    assert model.adapter.stock.vae.dtype == torch.float16


def test_what_the_network_raises_is_no_tasks_fault(epsilon_model: LoadedModel) -> None:
    stock = deepcopy(epsilon_model.adapter.stock)
    stock.unet.conv_in = torch.nn.Conv2d(5, 16, 3)
    engine = Engine(replace(epsilon_model, adapter=replace(epsilon_model.adapter, stock=stock)), ROWS)
    with pytest.raises(RuntimeError, match="channels"):
        list(engine.render(GOOD))


class SmallDevice(torch.nn.Module):
    """A denoiser on a device that has no room for more than some rows."""

    def __init__(self, denoiser: Any, most_rows: int, error: type[RuntimeError]) -> None:
        super().__init__()
        self.inner, self.most_rows, self.config = denoiser, most_rows, denoiser.config
        self.error = error

    def forward(self, latents: torch.Tensor, *inputs: Any, **named: Any) -> Any:
        if len(latents) > self.most_rows:
            raise self.error(f"DefaultCPUAllocator: can't allocate memory: you tried to allocate {len(latents)} rows")
        return self.inner(latents, *inputs, **named)


def on_small_device(
    model: LoadedModel, most_rows: int, error: type[RuntimeError] = torch.OutOfMemoryError
) -> LoadedModel:
    stock = model.adapter.stock
    parts = {**stock.components, "unet": stock.unet}
    copied = type(stock)(**parts, requires_safety_checker=False)
    copied.unet = SmallDevice(stock.unet, most_rows, error)
    return replace(model, adapter=replace(model.adapter, stock=copied))


@pytest.mark.parametrize("error", [torch.OutOfMemoryError, RuntimeError])
def test_a_batch_too_large_for_the_device_is_made_smaller_and_nothing_is_lost(
    epsilon_model: LoadedModel, caplog: pytest.LogCaptureFixture, error: type[RuntimeError]
) -> None:
    """On CPUs torch says so in a plain ``RuntimeError``."""
    wide = [task(width=2 * SIZE_PX, seed=n) for n in range(3)]
    tasks = [*mixed_tasks(), *wide]
    engine = Engine(on_small_device(epsilon_model, 5, error), 16)
    outcomes = [outcome for outcome in engine.render(tasks) if isinstance(outcome, Rendered)]
    assert sorted(o.task.task_id for o in outcomes) == sorted(own.task_id for own in tasks)
    assert {o.rows for o in outcomes} == {4}
    assert "out of memory with 16 rows at 32 x 32 px; going on with 8" in caplog.text
    assert "out of memory with 8 rows at 64 x 32 px; going on with 4" in caplog.text
    four = pixels_by_id(Engine(epsilon_model, 4), tasks)
    assert {o.task.task_id: o.pixels.tobytes() for o in outcomes} == four


def test_tasks_under_way_start_anew_when_the_batch_becomes_smaller(
    epsilon_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    """So that the rows its metadata tells are those that a picture's last bits depend on."""
    calls, forward = 0, SmallDevice.forward

    def fuller_and_fuller(device: SmallDevice, latents: torch.Tensor, *inputs: Any, **named: Any) -> Any:
        nonlocal calls
        calls += 1
        device.most_rows = 16 if calls < 12 else 5
        return forward(device, latents, *inputs, **named)

    monkeypatch.setattr(SmallDevice, "forward", fuller_and_fuller)
    tasks = [task(seed=n, num_inference_steps=9) for n in range(12)]
    engine = Engine(on_small_device(epsilon_model, 16), 8)
    outcomes = [outcome for outcome in engine.render(tasks) if isinstance(outcome, Rendered)]
    assert {o.rows for o in outcomes} == {8, 4}
    for rows in (8, 4):
        alike = {o.task.task_id: o.pixels.tobytes() for o in outcomes if o.rows == rows}
        whole = pixels_by_id(Engine(epsilon_model, rows), tasks)
        assert alike == {name: whole[name] for name in alike}


def test_a_task_that_never_fits_ends_the_job(epsilon_model: LoadedModel) -> None:
    engine = Engine(on_small_device(epsilon_model, 1), 16)
    with pytest.raises(JobBrokenError, match=r"not even one image.*tried to allocate 2 rows"):
        list(engine.render(mixed_tasks()))


def test_a_decoder_too_large_for_the_device_gets_fewer_at_a_time(
    epsilon_model: LoadedModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    reference = pixels_by_id(Engine(epsilon_model, ROWS), GOOD)
    vae, decode = epsilon_model.adapter.stock.vae, epsilon_model.adapter.stock.vae.decode

    def small(latents: torch.Tensor, **options: Any) -> Any:
        if len(latents) > 2:
            raise torch.OutOfMemoryError("no room")
        return decode(latents, **options)

    monkeypatch.setattr(vae, "decode", small)
    found = pixels_by_id(Engine(epsilon_model, ROWS), GOOD)
    for key, pixels in reference.items():
        difference = np.frombuffer(found[key], np.uint8).astype(int) - np.frombuffer(pixels, np.uint8)
        assert np.abs(difference).max() <= 1
