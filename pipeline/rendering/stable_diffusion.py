"""Stable Diffusion 1.x and 2.x in the engine's terms: classifier-free guidance, epsilon or velocity prediction.

Every tensor function keeps to fixed shapes: what is missing to a full batch is filled with dummies, so that a
model compiles once and a picture does not depend on its neighbours. The arithmetic, its order and its dtypes are
those of diffusers' ``StableDiffusionPipeline`` called with one prompt.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from diffusers.utils.torch_utils import randn_tensor
from numpy.typing import NDArray
from torch import Tensor

from pipeline.errors import ModelError, RenderError
from pipeline.recipe import Recipe
from pipeline.rendering.timetables import build_scheduler
from pipeline.schedulers import SCHEDULERS


@dataclass(frozen=True, slots=True, kw_only=True)
class Encoded:
    """Texts as the denoiser takes them."""

    rows: Tensor
    """(texts, tokens, width): the text encoder's last hidden state"""
    truncated: tuple[bool, ...]
    """By text: it has more tokens than the window."""


@dataclass(frozen=True, kw_only=True)
class StableDiffusion:
    """The functions of one loaded model; holds no state of any task."""

    stock: Any
    """A diffusers ``StableDiffusionPipeline`` in eval mode, on ``device`` in ``dtype``."""
    device: torch.device
    dtype: torch.dtype
    scheduler_config: Mapping[str, Any]
    encode_rows: int = 8
    """Texts in one call of the text encoder."""
    decode_rows: int = 4
    """Latents in one call of the autoencoder."""

    def __post_init__(self) -> None:
        if self.stock.unet.config.time_cond_proj_dim is not None:
            raise ModelError(
                "U-Nets that embed the guidance scale (latent consistency models) are not supported",
                where="unet/config.json: time_cond_proj_dim",
                value=self.stock.unet.config.time_cond_proj_dim,
                allowed="null",
            )

    @property
    def latent_factor(self) -> int:
        """px of the picture per side of one latent pixel"""
        return int(self.stock.vae_scale_factor)

    def rows(self, recipe: Recipe) -> int:
        """Rows of the denoiser's batch: 2 (unconditional, conditional) when guided, else 1."""
        return 2 if recipe.guidance_scale is not None and recipe.guidance_scale > 1 else 1

    def texts(self, recipe: Recipe) -> tuple[str, ...]:
        """The text of each row, in row order."""
        negative = recipe.negative_prompt or ""
        return ("" if negative.isspace() else negative, recipe.prompt)[-self.rows(recipe) :]

    def encode(self, texts: Sequence[str]) -> Encoded:
        """Up to ``encode_rows`` texts to (texts, tokens, width); shorter and longer texts are padded and cut."""
        assert 0 < len(texts) <= self.encode_rows
        tokenizer, text_encoder = self.stock.tokenizer, self.stock.text_encoder
        window = tokenizer.model_max_length
        padded = [*texts, *[""] * (self.encode_rows - len(texts))]
        converted = self.stock.maybe_convert_prompt(padded, tokenizer)
        # verbose: the tokenizer would warn of what ``truncated`` tells.
        lengths = [len(ids) for ids in tokenizer(converted, verbose=False).input_ids]
        tokens = tokenizer(converted, padding="max_length", max_length=window, truncation=True, return_tensors="pt")
        masked = getattr(text_encoder.config, "use_attention_mask", False)
        mask = tokens.attention_mask.to(self.device) if masked else None
        hidden = text_encoder(tokens.input_ids.to(self.device), attention_mask=mask)[0].to(self.dtype)
        truncated = tuple(length > window for length in lengths[: len(texts)])
        return Encoded(rows=hidden[: len(texts)], truncated=truncated)

    def timetable(self, scheduler: str, num_inference_steps: int) -> Any:
        """A set diffusers scheduler that was never stepped; slots take deep copies."""
        if SCHEDULERS[scheduler].flow:
            raise RenderError(f"scheduler {scheduler} is for models trained by flow matching")
        return build_scheduler(scheduler, self.scheduler_config, num_inference_steps)

    def start(self, recipe: Recipe, generator: torch.Generator, scheduler: Any) -> Tensor:
        """The first latent, (1, 4, height/8, width/8): unit normal times the scheduler's first sigma."""
        factor = self.latent_factor
        if recipe.height % factor or recipe.width % factor:
            raise RenderError(f"width and height must be multiples of {factor}, not {recipe.width} x {recipe.height}")
        shape = (1, self.stock.unet.config.in_channels, recipe.height // factor, recipe.width // factor)
        noise: Tensor = randn_tensor(shape, generator=generator, device=self.device, dtype=self.dtype)
        latent: Tensor = noise * scheduler.init_noise_sigma
        return latent

    def inputs(self, latent: Tensor, scheduler: Any, timestep: Tensor) -> tuple[Tensor, float]:
        """What the denoiser sees of a latent (1, 4, h, w): scaled to unit variance, and the timestep."""
        return scheduler.scale_model_input(latent, timestep), float(timestep)

    def predict(self, latents: Tensor, timesteps: Tensor, conditioning: Tensor) -> Tensor:
        """The denoiser once: (rows, 4, h, w) near unit variance, (rows,), (rows, tokens, width) -> (rows, 4, h, w)."""
        predicted: Tensor = self.stock.unet(latents, timesteps, encoder_hidden_states=conditioning, return_dict=False)[
            0
        ]
        return predicted

    def combine(self, predicted: Tensor, guidance_scale: float | None) -> Tensor:
        """One task's rows, (1 or 2, 4, h, w), to its prediction, (1, 4, h, w): Ho and Salimans, arXiv:2207.12598."""
        if len(predicted) == 1:
            return predicted
        unconditional, conditional = predicted.chunk(2)
        assert guidance_scale is not None
        return unconditional + guidance_scale * (conditional - unconditional)

    def decode(self, latents: Tensor) -> tuple[NDArray[np.uint8], NDArray[np.bool_]]:
        """Latents (decode_rows, 4, h, w) to RGB (decode_rows, height, width, 3) 0..255, and which rows are finite.

        A row that is not finite in half precision is decoded once more in float32. Rows that stay so are black.
        """
        assert len(latents) == self.decode_rows
        images = self._autoencode(latents)
        pixels, finite = _pixels(images), _finite(images)
        if self.dtype != torch.float32 and not finite.all():
            again = self._autoencode_in_float32(latents)
            pixels = np.where(finite[:, None, None, None], pixels, _pixels(again))
            finite |= _finite(again)
        return pixels, finite

    def _autoencode(self, latents: Tensor) -> Tensor:
        """(n, 4, h, w) in the denoiser's scale to (n, 3, height, width), about -1..1."""
        vae = self.stock.vae
        images: Tensor = vae.decode(latents / vae.config.scaling_factor, return_dict=False)[0]
        return images

    def _autoencode_in_float32(self, latents: Tensor) -> Tensor:
        """The same with float32 weights; widening half precision and narrowing it again changes no weight."""
        # Module.to, because diffusers' own warns of each cast.
        torch.nn.Module.to(self.stock.vae, torch.float32)
        try:
            return self._autoencode(latents.float())
        finally:
            torch.nn.Module.to(self.stock.vae, self.dtype)


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
