"""Schedulers as tables of numbers, against diffusers' own schedulers stepped on a network that is not linear."""

from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ThreadPoolExecutor
from copy import deepcopy
from inspect import signature
from statistics import mean
from threading import get_ident
from typing import Any

import diffusers
import pytest
import torch
from PIL import Image
from torch import Tensor

from pipeline.rendering.stepping import Stepper
from pipeline.rendering.timetables import ModelSchedulers, build_scheduler
from pipeline.rendering.trajectory import STATES, Trajectory, build_trajectory
from pipeline.schedulers import SCHEDULERS, allowed_steps, scheduler_of
from tests import tiny_models

LARGEST_DIFFERENCE = 1e-4
"""In standard deviations of the last latent."""
BETAS = {
    "num_train_timesteps": 1000, "beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear",
    "clip_sample": False, "set_alpha_to_one": False, "steps_offset": 1, "skip_prk_steps": True,
}  # fmt: skip
FLOW = {"num_train_timesteps": 1000, "shift": 3.0}
STEPS, STEPS_WITH_OPTIONS = (1, 2, 3, 5, 20, 50), (3, 20)
NAMES = [
    ":".join(filter(None, (name, option)))
    for name, kind in SCHEDULERS.items()
    for option in ("", *kind.sigma_schedules, *(("trailing",) if kind.spacing else ()))
]
_MIX = torch.randn(4, 4, generator=torch.Generator().manual_seed(5)) * 0.5


def network(latent: Tensor, timestep: Any) -> Tensor:
    """A network that is not linear, (1, 4, h, w) to the same, computed in float32 and rounded to the latent's dtype."""
    mixed = torch.tanh(torch.einsum("ij,bjhw->bihw", _MIX, latent.float())) + 0.01 * float(timestep) / 1000
    return mixed.to(latent.dtype)


def configurations(text: str) -> Iterator[Mapping[str, Any]]:
    if scheduler_of(text).kind.flow:
        yield FLOW
        return
    for prediction in ("epsilon", "v_prediction"):
        yield {**BETAS, "prediction_type": prediction}


def built(text: str, config: Mapping[str, Any], steps: int) -> Any:
    return build_scheduler(ModelSchedulers(config=config), scheduler_of(text), steps)


def first_latent(dtype: torch.dtype = torch.float32) -> Tensor:
    return torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(1)).to(dtype)


def by_diffusers(scheduler: Any, latent: Tensor, first: int = 0) -> Tensor:
    """The last latent, as a stock pipeline's loop makes it."""
    scheduler, generator = deepcopy(scheduler), torch.Generator().manual_seed(3)
    begin = first * scheduler.order
    if first and hasattr(scheduler, "set_begin_index"):
        scheduler.set_begin_index(begin)
    told = {"generator": generator} if "generator" in signature(scheduler.step).parameters else {}
    for timestep in scheduler.timesteps[begin:]:
        scaled = scheduler.scale_model_input(latent, timestep) if hasattr(scheduler, "scale_model_input") else latent
        latent = scheduler.step(network(scaled, timestep), timestep, latent, return_dict=False, **told)[0]
    return latent


def by_table(
    trajectory: Trajectory,
    latent: Tensor,
    dtype: torch.dtype = torch.float32,
    *,
    network: Callable[[Tensor, Any], Tensor] = network,
    generator: torch.Generator | None = None,
) -> Tensor:
    """The same by the numbers, the state in float32 and the network's input and output in ``dtype``."""
    assert trajectory.alone is None
    generator, shape = generator or torch.Generator().manual_seed(3), latent.shape
    planes = torch.zeros(STATES, latent.numel())
    planes[0] = latent.float().flatten()
    seen = planes[0] * trajectory.first_input
    for timestep, matrix, draws in zip(
        trajectory.timesteps, torch.from_numpy(trajectory.matrices), trajectory.draws, strict=True
    ):
        noise = torch.zeros(1, latent.numel())
        predicted = network(seen.view(shape).to(dtype), timestep).float()
        if draws:
            drawn_in = torch.float32 if trajectory.draws_float32 else dtype
            noise = torch.randn(shape, generator=generator, dtype=drawn_in).float().view(1, -1)
        after = matrix @ torch.cat([planes, predicted.view(1, -1), noise])
        seen, planes = after[0], after[1:]
    return planes[0].view(shape)


def apart(one: Tensor, other: Tensor) -> float:
    return float((one.float() - other.float()).abs().max() / other.float().std())


@pytest.mark.parametrize("text", NAMES)
def test_a_table_does_what_the_scheduler_does(text: str) -> None:
    for config in configurations(text):
        for steps in STEPS_WITH_OPTIONS if ":" in text else STEPS:
            if steps not in allowed_steps(text, config):
                continue
            scheduler = built(text, config, steps)
            scaled = hasattr(scheduler, "scale_model_input")
            latent = first_latent() * (scheduler.init_noise_sigma if scaled else 1.0)
            expected = by_diffusers(scheduler, latent)
            trajectory = build_trajectory(scheduler, scaled_input=scaled)
            assert trajectory.initial == pytest.approx(float(scheduler.init_noise_sigma) if scaled else 1.0)
            assert apart(by_table(trajectory, latent), expected) <= LARGEST_DIFFERENCE, (config, steps)


@pytest.mark.parametrize("text", SCHEDULERS)
def test_a_table_may_begin_in_the_middle(text: str) -> None:
    for config in configurations(text):
        scheduler = built(text, config, 20)
        scaled = hasattr(scheduler, "scale_model_input")
        for first in (1, 7, 13, 19):
            trajectory = build_trajectory(scheduler, first=first, scaled_input=scaled)
            expected = by_diffusers(scheduler, first_latent(), first)
            assert apart(by_table(trajectory, first_latent()), expected) <= LARGEST_DIFFERENCE, (config, first)


@pytest.mark.parametrize("text", SCHEDULERS)
def test_the_first_latent_of_an_image_to_image_run(text: str) -> None:
    config = next(configurations(text))
    scheduler = built(text, config, 20)
    clean, noise = (torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(seed)) for seed in (7, 8))
    for first in (0, 7):
        trajectory = build_trajectory(scheduler, first=first, scaled_input=hasattr(scheduler, "scale_model_input"))
        begun = deepcopy(scheduler)
        begin = first * begun.order
        if hasattr(begun, "set_begin_index"):
            begun.set_begin_index(begin)
        timestep = begun.timesteps[begin : begin + 1]
        noised = (
            begun.scale_noise(clean, timestep, noise)
            if hasattr(begun, "scale_noise")
            else begun.add_noise(clean, noise, timestep)
        )
        assert apart(trajectory.clean * clean + trajectory.noise * noise, noised) <= 1e-5


CLIPPING: Mapping[str, Mapping[str, Any]] = {
    "ddim": {"clip_sample": True},
    "ddpm": {"clip_sample": True},
    "heun": {"clip_sample": True},
    "lcm": {"clip_sample": True},
    "dpmsolver++": {"thresholding": True},
    "unipc": {"thresholding": True},
    "sasolver": {"thresholding": True},
}


@pytest.mark.parametrize("text", ["ddim", "ddpm", "heun", "lcm"])
def test_clipping_of_what_the_network_predicts_is_found(text: str) -> None:
    """Clean latents, or velocities without any signal, are clipped beyond the range of latents."""
    zero_snr = {"rescale_betas_zero_snr": True, "timestep_spacing": "trailing", "prediction_type": "v_prediction"}
    for predicted, steps in (({"prediction_type": "sample"}, 8), (zero_snr, 1)):
        config = {**BETAS, **predicted, "clip_sample": True, "clip_sample_range": 5.0}
        assert build_trajectory(built(text, config, steps)).alone is not None, predicted


@pytest.mark.parametrize("text", CLIPPING)
def test_what_is_not_linear_is_found(text: str) -> None:
    scheduler = built(text, {**BETAS, **CLIPPING[text]}, 8)
    trajectory = build_trajectory(scheduler)
    assert trajectory.alone is not None
    assert not trajectory.matrices.any()
    stepper: Stepper = trajectory.alone(generator=torch.Generator().manual_seed(3))
    latent = first_latent() * trajectory.initial
    expected = by_diffusers(scheduler, latent)
    for timestep in stepper.timesteps:
        latent = stepper.step(network(stepper.input_scale() * latent, timestep), latent)
    assert apart(latent, expected) <= LARGEST_DIFFERENCE


def test_other_threads_draw_their_own_noise_meanwhile() -> None:
    """The pipelines of a library's user, while the engine builds a table beside them."""
    scheduler, latent = built("euler_ancestral", BETAS, 3), first_latent()
    elsewhere: list[Tensor] = []
    here = get_ident()

    def noise(dtype: torch.dtype) -> Tensor:
        assert get_ident() == here, "the noise of a table"
        with ThreadPoolExecutor(1) as thread:
            elsewhere.append(thread.submit(by_diffusers, scheduler, latent).result())
        return torch.zeros(latent.shape, dtype=dtype)

    stepper = Stepper(scheduler, first=0, scaled_input=True, output=0)
    stepper.input_scale()
    stepper.step(latent, latent, noise=noise)
    assert torch.equal(elsewhere[0], by_diffusers(scheduler, latent))


STRENGTHS = (0.3, 0.6, 0.75)
"""At 7 steps pipelines for flow matching and others round the first two differently."""


@pytest.mark.parametrize("name", ["euler_ancestral", "dpmsolver++", "heun", "pndm", "flow_match_euler"])
def test_stock_image_to_image_pipelines_begin_in_the_middle_like_this(
    name: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    found = scheduler_of(name)
    kit: Any = diffusers
    if found.kind.flow:
        stock: Any = kit.StableDiffusion3Img2ImgPipeline.from_pipe(tiny_models.stable_diffusion_3())
    else:
        stock = kit.StableDiffusionImg2ImgPipeline.from_pipe(tiny_models.stable_diffusion())
    stock.set_progress_bar_config(disable=True)
    config = dict(stock.scheduler.config)
    stock.scheduler = getattr(diffusers, found.kind.class_name).from_config(config, **found.settings)
    part = stock.transformer if found.kind.flow else stock.unet
    photograph = Image.effect_noise((32, 32), 60).convert("RGB")
    for strength in STRENGTHS:
        seen = Watched(stock, part, monkeypatch)
        expected = stock(
            "a cat", image=photograph, strength=strength, num_inference_steps=7, guidance_scale=1.0,
            generator=torch.Generator().manual_seed(3), output_type="latent",
        ).images  # fmt: skip
        monkeypatch.undo()
        scheduler = build_scheduler(ModelSchedulers(config=config), found, 7)
        trajectory = build_trajectory(scheduler, first=7 - seen.steps, scaled_input=not found.kind.flow)
        with torch.no_grad():
            drawn = by_table(trajectory, seen.first_latent, network=seen.call, generator=seen.generator)
        assert apart(drawn, expected) <= LARGEST_DIFFERENCE, strength


class Watched:
    """What an image-to-image pipeline does in one call: its first latent, the generator then, and its network."""

    def __init__(self, stock: Any, part: Any, monkeypatch: pytest.MonkeyPatch) -> None:
        self._part, self._kwargs = part, dict[str, Any]()
        timesteps, prepare, forward = stock.get_timesteps, stock.prepare_latents, part.forward

        def get_timesteps(*args: Any, **kwargs: Any) -> Any:
            found = timesteps(*args, **kwargs)
            self.steps: int = found[1]
            return found

        def prepare_latents(*args: Any, **kwargs: Any) -> Any:
            self.first_latent: Tensor = prepare(*args, **kwargs)
            (generator,) = (one for one in [*args, *kwargs.values()] if isinstance(one, torch.Generator))
            self.generator = torch.Generator()
            self.generator.set_state(generator.get_state())
            return self.first_latent

        def watched(*args: Any, **kwargs: Any) -> Any:
            self._kwargs = {name: value for name, value in kwargs.items() if name not in ("hidden_states", "timestep")}
            return forward(*args, **kwargs)

        monkeypatch.setattr(stock, "get_timesteps", get_timesteps)
        monkeypatch.setattr(stock, "prepare_latents", prepare_latents)
        monkeypatch.setattr(part, "forward", watched)

    def call(self, latent: Tensor, timestep: Any) -> Tensor:
        """The network once more, told what it was told."""
        told = torch.tensor([float(timestep)])
        if "pooled_projections" in self._kwargs:
            predicted: Tensor = self._part(hidden_states=latent, timestep=told, **self._kwargs)[0]
        else:
            predicted = self._part(latent, told, **self._kwargs)[0]
        return predicted


def test_rounding_of_the_state_no_longer_adds_up() -> None:
    """The network in float32; rounded to half precision are its input and output, and in stock pipelines the latent."""
    for dtype in (torch.bfloat16, torch.float16):
        ours, stock = [], []
        for text in SCHEDULERS:
            scheduler = built(text, next(configurations(text)), 20)
            scaled = hasattr(scheduler, "scale_model_input")
            trajectory = build_trajectory(scheduler, scaled_input=scaled)
            if trajectory.draws.any():
                continue  # noise drawn in half precision is other noise, so there is no float32 trajectory to compare
            latent = first_latent(dtype).float() * trajectory.initial
            exact = by_table(trajectory, latent)
            ours.append(mean_apart(by_table(trajectory, latent, dtype), exact))
            stock.append(mean_apart(by_diffusers(scheduler, latent.to(dtype)), exact))
            print(f"{text:20} {dtype} ours {ours[-1]:.1e} stock {stock[-1]:.1e}")
        print(f"mean {dtype} ours {mean(ours):.1e} stock {mean(stock):.1e}")
        assert sum(ours) <= sum(stock) / 5, dtype


def mean_apart(one: Tensor, exact: Tensor) -> float:
    return float((one.float() - exact).abs().mean() / exact.std())
