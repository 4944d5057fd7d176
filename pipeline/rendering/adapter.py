"""A loaded model in the engine's terms. What all families share is here; ``families`` holds what tells them apart.

Every tensor function keeps to fixed shapes: what is missing to a full batch is filled with dummies, so that a
model compiles once and a picture does not depend on its neighbours. The arithmetic, its order and its dtypes are
those of the family's stock diffusers pipeline called with one prompt.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import RenderError
from pipeline.model.family import Family
from pipeline.recipe import Recipe
from pipeline.rendering.compiled import Compiled
from pipeline.rendering.timetables import ModelSchedulers, build_scheduler
from pipeline.schedulers import scheduler_of

Text = str | None
"""What one row is told. None is zeros in place of an embedding, which some families take for no negative prompt."""

Rows = Mapping[str, Tensor]
"""Inputs of the denoiser by name, each (rows, ...)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """Texts as the denoiser takes them."""

    rows: Rows
    """Each (texts, ...)"""
    truncated: tuple[bool, ...]
    """By text: it has more tokens than a text encoder's window."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapter(ABC):
    """The functions of one loaded model; holds no state of any task."""

    modules: ClassVar[tuple[str, ...]]
    """Parts of the stock pipeline with weights that must be there."""
    denoiser_name: ClassVar[str] = "unet"

    stock: Any
    """A diffusers pipeline in eval mode, on ``device`` in ``dtype``."""
    family: Family
    device: torch.device
    dtype: torch.dtype
    schedulers: ModelSchedulers
    compiled: bool = False
    """The denoiser is compiled, once for each shape."""
    encode_rows: int = 8
    """Texts in one call of the text encoders."""
    decode_rows: int = 4
    """Latents in one call of the autoencoder, while they fit."""

    @property
    def latent_factor(self) -> int:
        """px of the picture per side of one latent pixel"""
        return int(self.stock.vae_scale_factor)

    @cached_property
    def network(self) -> Any:
        """The denoiser as diffusers has it."""
        return getattr(self.stock, self.denoiser_name)

    @cached_property
    def denoiser(self) -> Any:
        """What is called at every step: the network, compiled or not."""
        return Compiled(self.network) if self.compiled else self.network

    def rows(self, recipe: Recipe) -> int:
        """Rows of the denoiser's batch: 2 (unconditional, conditional) when guided so, else 1."""
        return self.family.rows(recipe.guidance_scale)

    def texts(self, recipe: Recipe) -> tuple[Text, ...]:
        """The text of each row, in row order."""
        negative = recipe.negative_prompt if (recipe.negative_prompt or "").strip() else self.no_negative_prompt
        return (negative, recipe.prompt)[-self.rows(recipe) :]

    @property
    def no_negative_prompt(self) -> Text:
        return ""

    def encode(self, texts: Sequence[Text]) -> Encoded:
        """Up to ``encode_rows`` texts; shorter and longer texts are padded and cut to the encoders' windows."""
        assert 0 < len(texts) <= self.encode_rows
        # Whatever is no text must be found here: tokenizers take lists of many things.
        padded = [_text(text) for text in [*texts, *[""] * (self.encode_rows - len(texts))]]
        rows = self.encode_texts(padded)
        truncated = [any(length > window for length, window in zip(lengths, self._windows(), strict=True))
                     for lengths in zip(*self._lengths(padded), strict=True)]  # fmt: skip
        told = self.sent(torch.tensor([text is not None for text in texts]))
        return Encoded(
            rows={name: _where(told, tensor[: len(texts)]) for name, tensor in rows.items()},
            truncated=tuple(truncated[: len(texts)]),
        )

    @abstractmethod
    def encode_texts(self, texts: list[str]) -> Rows:
        """Exactly ``encode_rows`` texts to the inputs of the denoiser that depend on the text."""

    def windows(self) -> Mapping[str, int]:
        """Tokens that fit, the special ones included, by the name of the tokenizer."""
        return {"tokenizer": self.stock.tokenizer.model_max_length}

    def extras(self, recipe: Recipe) -> Rows:
        """Inputs of the denoiser that depend on the recipe but not on its texts, each (1, ...)."""
        return {}

    def timetable(self, scheduler: str, num_inference_steps: int, width: int, height: int) -> Any:
        """A set diffusers scheduler that was never stepped; slots take deep copies."""
        found, allowed = scheduler_of(scheduler), self.family.schedulers()
        if found.name not in allowed:
            raise RenderError(f"scheduler {scheduler} is not one of this model's family: {', '.join(allowed)}")
        size = width // self.latent_factor, height // self.latent_factor
        timing = partial(self.timing, num_inference_steps=num_inference_steps, width=size[0], height=size[1])
        return build_scheduler(self.schedulers, found, num_inference_steps, timing)

    def timing(
        self, config: Mapping[str, Any], *, num_inference_steps: int, width: int, height: int
    ) -> Mapping[str, Any]:
        """Return what ``set_timesteps`` of a scheduler with this configuration is told beside the step count.

        Sizes are in latent pixels.
        """
        return {}

    def start(self, recipe: Recipe, generator: torch.Generator, scheduler: Any) -> Tensor:
        """The first latent, (1, channels, h, w): unit normal times the scheduler's first sigma."""
        factor = self.latent_factor * self.family.patch
        if recipe.height % factor or recipe.width % factor:
            raise RenderError(f"width and height must be multiples of {factor}, not {recipe.width} x {recipe.height}")
        most = self.family.max_side_px(self.network.config, self.latent_factor)
        if most is not None and max(recipe.width, recipe.height) > most:
            raise RenderError(f"width and height can be {most} px at most, not {recipe.width} x {recipe.height}")
        shape = (1, self.latent_channels, recipe.height // self.latent_factor, recipe.width // self.latent_factor)
        noise = randn_tensor(shape, generator=generator, device=torch.device("cpu"), dtype=self.dtype)
        return self.scaled_noise(self.sent(noise), scheduler)

    def sent(self, tensor: Tensor) -> Tensor:
        """A tensor of the CPU on the device, without waiting for what the device still has to do."""
        if self.device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)

    @property
    def latent_channels(self) -> int:
        return int(self.network.config.in_channels)

    def scaled_noise(self, noise: Tensor, scheduler: Any) -> Tensor:
        scaled: Tensor = noise * scheduler.init_noise_sigma
        return scaled

    def inputs(self, latent: Tensor, scheduler: Any, timestep: Tensor) -> tuple[Tensor, float]:
        """What the denoiser sees of a latent (1, channels, h, w): scaled to unit variance, and the timestep."""
        return scheduler.scale_model_input(latent, timestep), float(timestep)

    @abstractmethod
    def predict(self, latents: Tensor, timesteps: Tensor, conditioning: Rows) -> Tensor:
        """The denoiser once: (rows, channels, h, w), (rows,), ``encode``'s and ``extras``' rows -> latents' shape."""

    def combine(self, predicted: Tensor, guidance_scale: float | None) -> Tensor:
        """One task's rows, (1 or 2, c, h, w), to its prediction, (1, c, h, w): Ho and Salimans, arXiv:2207.12598."""
        if len(predicted) == 1:
            return predicted
        unconditional, conditional = predicted.chunk(2)
        assert guidance_scale is not None
        return unconditional + guidance_scale * (conditional - unconditional)

    def stepped(self, step_output: tuple[Tensor, ...], num_inference_steps: int) -> Tensor:
        """The next latent, of what a scheduler's ``step`` returns."""
        return step_output[0]

    def decode(self, latents: Tensor) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Latents (n, c, h, w) to RGB (n, height, width, 3) 0..255, and which rows are finite.

        A row that is not finite in half precision is decoded once more in float32. Rows that stay so are black.
        """
        images = self._autoencode(latents)
        pixels, finite = _pixels(images), _finite(images)
        if self.stock.vae.dtype != torch.float32 and not finite.all():
            again = self._autoencode_in_float32(latents)
            pixels = np.where(finite[:, None, None, None], pixels, _pixels(again))
            finite |= _finite(again)
        return pixels, finite

    def unscaled(self, latents: Tensor) -> Tensor:
        """Latents in the denoiser's scale to the autoencoder's."""
        unscaled: Tensor = latents / self.stock.vae.config.scaling_factor
        return unscaled

    def _autoencode(self, latents: Tensor) -> Tensor:
        """(n, c, h, w) in the denoiser's scale to (n, 3, height, width), about -1..1."""
        vae = self.stock.vae
        images: Tensor = vae.decode(self.unscaled(latents.to(vae.dtype)), return_dict=False)[0]
        return images

    def _autoencode_in_float32(self, latents: Tensor) -> Tensor:
        """The same with float32 weights; widening half precision and narrowing it again changes no weight."""
        vae = self.stock.vae
        before = vae.dtype
        try:
            # Module.to, because diffusers' own warns of each cast.
            torch.nn.Module.to(vae, torch.float32)
            return self._autoencode(latents.float())
        finally:
            torch.nn.Module.to(vae, before)

    def _windows(self) -> list[int]:
        return list(self.windows().values())

    def _lengths(self, texts: list[str]) -> list[list[int]]:
        """Tokens of each text by tokenizer; ``verbose``: the tokenizer would warn of what ``truncated`` tells."""
        return [
            [len(ids) for ids in getattr(self.stock, name)(self.converted(texts, name), verbose=False).input_ids]
            for name in self.windows()
        ]

    def converted(self, texts: list[str], tokenizer_name: str) -> list[str]:
        """With the names of textual inversions spelled out, where the stock pipeline does so."""
        convert: Callable[[list[str], Any], list[str]] | None = getattr(self.stock, "maybe_convert_prompt", None)
        return texts if convert is None else convert(texts, getattr(self.stock, tokenizer_name))


def _where(told: Tensor, rows: Tensor) -> Tensor:
    """Rows (n, ...) with zeros where ``told`` (n,) is False."""
    return rows.where(told.view(-1, *[1] * (rows.ndim - 1)), torch.zeros_like(rows))


def _text(text: Text) -> str:
    if text is None:
        return ""
    if not isinstance(text, str):
        raise TypeError(f"a prompt must be text, not {type(text).__name__}")
    return text


def _finite(images: Tensor) -> NDArray[np.bool_]:
    """(n, 3, height, width) to (n,)"""
    finite: NDArray[np.bool_] = images.isfinite().flatten(1).all(1).cpu().numpy()
    return finite


def _pixels(images: Tensor) -> NDArray[np.uint8]:
    """(n, 3, height, width), about -1..1, to (n, height, width, 3) 0..255, rounded as diffusers' image processor does.

    The scaling to 0..1 is done in the images' own dtype and only then widened, as there.
    """
    unit = (images * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().contiguous()
    pixels: NDArray[np.uint8] = (unit * 255).round().nan_to_num(0).to(torch.uint8).cpu().numpy()
    return pixels
