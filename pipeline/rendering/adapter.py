"""The interface between the engine and a loaded model, with the functions that all families share.

Each family has a file in ``families``. Every tensor function keeps to fixed shapes, and dummy rows fill an incomplete
batch. So a model compiles once, and an image does not depend on its neighbours. The network, the text encoders and
the autoencoder get the same inputs as in the family's diffusers pipeline called with one prompt. Latents are float32
between the steps.
"""

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from copy import deepcopy
from dataclasses import dataclass
from functools import cached_property, partial
from typing import Any, ClassVar

import torch
from torch import Tensor

from pipeline.errors import RenderError
from pipeline.model.family import Family, Guidance
from pipeline.recipe import Recipe
from pipeline.rendering.compiled import Compiled
from pipeline.rendering.timetables import ModelSchedulers, build_scheduler
from pipeline.rendering.trajectory import Trajectory, build_trajectory
from pipeline.schedulers import scheduler_of, usable_schedulers

Text = str | None
"""The prompt of one row. None means an embedding of zeros, which some families use for an absent negative prompt."""

Rows = Mapping[str, Tensor]
"""Inputs of the denoiser by name, each (rows, ...)."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """Encoded texts, as the denoiser takes them."""

    rows: Rows
    """Inputs of the denoiser by name, each (texts, ...)."""
    truncated: tuple[bool, ...]
    """Whether each text has more tokens than a text encoder's window."""


@dataclass(frozen=True, kw_only=True, eq=False)
class Adapter(ABC):
    """The functions of one loaded model; holds no state of any task."""

    modules: ClassVar[tuple[str, ...]]
    """Names of the parts that the diffusers pipeline must have."""
    denoiser_name: ClassVar[str] = "unet"
    scaled_input: ClassVar[bool] = True
    """Whether the pipeline scales the first noise and the network's input as its scheduler says."""

    stock: Any
    """A diffusers pipeline in eval mode, on ``device`` in ``dtype``."""
    family: Family
    device: torch.device
    dtype: torch.dtype
    schedulers: ModelSchedulers
    compiled: bool = False
    """Whether the denoiser and the decoder are compiled, once for each shape."""
    encode_rows: int = 8
    """Number of texts in one call of the text encoders."""

    @property
    def latent_factor(self) -> int:
        """Pixels of the image per latent pixel, along one side."""
        return int(self.stock.vae_scale_factor)

    @cached_property
    def network(self) -> Any:
        """The denoiser, a module of diffusers."""
        return getattr(self.stock, self.denoiser_name)

    @cached_property
    def denoiser(self) -> Any:
        """The callable of every step: the network, compiled or not."""
        return Compiled(self.network) if self.compiled else self.network

    def rows(self, recipe: Recipe) -> int:
        """Return the rows of the denoiser's batch that an image takes: 2 (unconditional, conditional), or 1."""
        return self.family.rows(recipe.guidance_scale)

    def texts(self, recipe: Recipe) -> tuple[Text, ...]:
        """Return the text of each row, in row order. Raise ``TypeError`` for a prompt that is not text."""
        prompt, negative = _text(recipe.prompt), _text("" if recipe.negative_prompt is None else recipe.negative_prompt)
        return (negative if negative.strip() else self.no_negative_prompt, prompt)[-self.rows(recipe) :]

    @property
    def no_negative_prompt(self) -> Text:
        """The text of the unconditional row of an image without a negative prompt."""
        return ""

    def encode(self, texts: Sequence[Text]) -> Encoded:
        """Encode up to ``encode_rows`` texts. Texts are padded and cut to the encoders' windows."""
        assert 0 < len(texts) <= self.encode_rows
        padded = [text or "" for text in [*texts, *[""] * (self.encode_rows - len(texts))]]
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
        """Return the inputs of the denoiser that depend on the text, for exactly ``encode_rows`` texts."""

    def windows(self) -> Mapping[str, int]:
        """Return each text encoder's window in tokens, special ones included, by the name of its tokenizer."""
        return {"tokenizer": self.stock.tokenizer.model_max_length}

    def extras(self, recipe: Recipe) -> Rows:
        """Return the inputs of the denoiser that depend on the recipe but not on its texts, each (1, ...)."""
        return {}

    def trajectory(self, scheduler: str, num_inference_steps: int, width: int, height: int) -> Trajectory:
        """Return the steps of a scheduler for images of this size (px).

        Raise ``RenderError`` for a scheduler that does not suit the family, and as ``require_steps`` does.
        """
        found, allowed = scheduler_of(scheduler), self.family.schedulers()
        if found.name not in allowed:
            offered = ", ".join(usable_schedulers(allowed, self.schedulers.config))
            raise RenderError(f"scheduler {scheduler} is not one of this model's family: {offered}")
        size = width // self.latent_factor, height // self.latent_factor
        timing = partial(self.timing, num_inference_steps=num_inference_steps, width=size[0], height=size[1])
        built = build_scheduler(self.schedulers, found, num_inference_steps, timing)
        return build_trajectory(
            built,
            scaled_input=self.scaled_input,
            output=self.step_output(num_inference_steps),
        )

    def step_output(self, num_inference_steps: int) -> int:
        """Return the index of the output of a scheduler's ``step`` that the pipeline uses as the next latent."""
        return 0

    def timing(
        self, config: Mapping[str, Any], *, num_inference_steps: int, width: int, height: int
    ) -> Mapping[str, Any]:
        """Return further arguments of ``set_timesteps`` for a scheduler with this configuration.

        Sizes are in latent pixels.
        """
        return {}

    def first_noise(self, recipe: Recipe, generator: torch.Generator) -> Tensor:
        """Return the first noise of an image, (channels, h, w) in latent pixels, unit variance, on the CPU.

        Raise ``RenderError`` for a size that the model cannot draw.
        """
        factor = self.latent_factor * self.family.patch
        if recipe.height % factor or recipe.width % factor:
            raise RenderError(f"width and height must be multiples of {factor}, not {recipe.width} x {recipe.height}")
        most = self.family.max_side_px(self.network.config, self.latent_factor)
        if most is not None and max(recipe.width, recipe.height) > most:
            raise RenderError(f"width and height can be {most} px at most, not {recipe.width} x {recipe.height}")
        shape = self.latent_channels, recipe.height // self.latent_factor, recipe.width // self.latent_factor
        return torch.randn(shape, generator=generator, dtype=self.dtype)

    def sent(self, tensor: Tensor) -> Tensor:
        """Copy a tensor from the CPU to the device without waiting for the device."""
        if self.device.type == "cpu":
            return tensor
        return tensor.pin_memory().to(self.device, non_blocking=True)

    @property
    def latent_channels(self) -> int:
        """The number of channels of a latent."""
        return int(self.network.config.in_channels)

    @abstractmethod
    def predict(self, latents: Tensor, timesteps: Tensor, conditioning: Rows) -> Tensor:
        """Call the denoiser once; return predictions, (rows, channels, h, w).

        ``latents`` are (rows, channels, h, w), ``timesteps`` (rows,), ``conditioning`` the rows of ``encode`` and
        ``extras``.
        """

    def guidance(self, recipe: Recipe) -> float:
        """Return the weight of the conditional prediction in ``combine``, 1 for an unguided image."""
        if self.rows(recipe) == 1 or recipe.guidance_scale is None:
            return 1.0
        from_conditional = self.family.guidance is Guidance.FROM_CONDITIONAL
        return recipe.guidance_scale + (1.0 if from_conditional else 0.0)

    def combine(self, unconditional: Tensor, conditional: Tensor, guidance: Tensor, *, out: Tensor) -> None:
        """Write the guided predictions to ``out``: u + g (c - u), Ho and Salimans, arXiv:2207.12598.

        Predictions are (slots, channels * h * w), float32, guidance is (slots, 1). An unguided slot has the same
        prediction twice and a guidance of 1, which gives that prediction exactly.
        """
        torch.lerp(unconditional, conditional, guidance, out=out)

    def decode(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Decode latents (n, c, h, w) to RGB (n, height, width, 3) 0..255, uint8, and flags of finite images, (n,)."""
        decoded: tuple[Tensor, Tensor] = self.decoder(latents)
        return decoded

    def decode_in_float32(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        """Decode as ``decode`` does, with a copy of the autoencoder in float32."""
        # Module.to, because diffusers' own warns of each cast. The autoencoder itself stays as it is whatever fails.
        vae = torch.nn.Module.to(deepcopy(self.stock.vae), torch.float32)
        return self._decoded_by(vae, latents)

    @property
    def half_decoder(self) -> bool:
        """Whether the autoencoder decodes in half precision, in which it may overflow."""
        return bool(self.stock.vae.dtype != torch.float32)

    @cached_property
    def decoder(self) -> Any:
        """The callable that decodes latents, compiled or not."""
        return Compiled(self._decoded) if self.compiled else self._decoded

    def _decoded(self, latents: Tensor) -> tuple[Tensor, Tensor]:
        return self._decoded_by(self.stock.vae, latents)

    def _decoded_by(self, vae: Any, latents: Tensor) -> tuple[Tensor, Tensor]:
        images: Tensor = vae.decode(self.unscaled(latents.to(vae.dtype)), return_dict=False)[0]
        return _pixels(images), images.isfinite().flatten(1).all(1)

    def unscaled(self, latents: Tensor) -> Tensor:
        """Convert latents from the denoiser's scale to the autoencoder's."""
        unscaled: Tensor = latents / self.stock.vae.config.scaling_factor
        return unscaled

    def _windows(self) -> list[int]:
        return list(self.windows().values())

    def _lengths(self, texts: list[str]) -> list[list[int]]:
        """Return the number of tokens of each text, by tokenizer.

        ``verbose=False``: ``truncated`` says the same as the tokenizer's warning.
        """
        return [
            [len(ids) for ids in getattr(self.stock, name)(self.converted(texts, name), verbose=False).input_ids]
            for name in self.windows()
        ]

    def converted(self, texts: list[str], tokenizer_name: str) -> list[str]:
        """Spell out the names of textual inversions, as the diffusers pipeline does."""
        convert: Callable[[list[str], Any], list[str]] | None = getattr(self.stock, "maybe_convert_prompt", None)
        return texts if convert is None else convert(texts, getattr(self.stock, tokenizer_name))


def _where(told: Tensor, rows: Tensor) -> Tensor:
    """Return the rows (n, ...) with zeros where ``told`` (n,) is False."""
    return rows.where(told.view(-1, *[1] * (rows.ndim - 1)), torch.zeros_like(rows))


def _text(text: object) -> str:
    """Return a text, or raise ``TypeError``. Tokenizers would accept lists of other types."""
    if not isinstance(text, str):
        raise TypeError(f"a prompt must be text, not {type(text).__name__}")
    return text


def _pixels(images: Tensor) -> Tensor:
    """Convert (n, 3, height, width), about -1..1, to (n, height, width, 3) 0..255.

    As in diffusers' image processor, the scaling to 0..1 is done in the images' own dtype, and the rounding in float32.
    """
    unit = (images * 0.5 + 0.5).clamp(0, 1).permute(0, 2, 3, 1).float().contiguous()
    return (unit * 255).round().nan_to_num(0).to(torch.uint8)
