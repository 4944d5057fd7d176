"""The families of models whose denoiser calls the engine batches, by what tells them apart."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from pipeline.model.family import Guidance
from pipeline.recipe import Recipe
from pipeline.rendering.adapter import Adapter, Rows, Text


@dataclass(frozen=True, kw_only=True, eq=False)
class StableDiffusion(Adapter):
    """Stable Diffusion 1.x and 2.x, and latent consistency models made of them."""

    modules: ClassVar[tuple[str, ...]] = ("text_encoder", "unet", "vae")

    def encode_texts(self, texts: list[str]) -> Rows:
        embeddings, _ = self.stock.encode_prompt(texts, self.device, 1, do_classifier_free_guidance=False)
        return {"encoder_hidden_states": embeddings.to(self.dtype)}

    def extras(self, recipe: Recipe) -> Rows:
        """The guidance scale as U-Nets of latent consistency models take it: less 1, as a sine embedding."""
        if self.family.guidance is not Guidance.EMBEDDED:
            return {}
        width = self.network.config.time_cond_proj_dim
        scale = torch.tensor([recipe.guidance_scale]) - 1
        embedding = self.stock.get_guidance_scale_embedding(scale, embedding_dim=width)
        return {"timestep_cond": self.sent(embedding.to(self.dtype))}

    def predict(self, latents: Tensor, timesteps: Tensor, conditioning: Rows) -> Tensor:
        predicted: Tensor = self.denoiser(latents, timesteps, **conditioning, return_dict=False)[0]
        return predicted


@dataclass(frozen=True, kw_only=True, eq=False)
class StableDiffusionXL(StableDiffusion):
    """Two text encoders, of which the first may be left out, a pooled embedding and the picture's size as inputs."""

    modules = ("text_encoder_2", "unet", "vae")

    def __post_init__(self) -> None:
        """The autoencoder overflows in float16: it is kept in float32, to which stock casts it for each picture."""
        if self.dtype == torch.float16 and self.stock.vae.config.force_upcast:
            torch.nn.Module.to(self.stock.vae, torch.float32)

    @property
    def no_negative_prompt(self) -> Text:
        """Zeros in place of an embedding, where the model was trained so."""
        return None if self.stock.config.force_zeros_for_empty_prompt else ""

    def encode_texts(self, texts: list[str]) -> Rows:
        embeddings, _, pooled, _ = self.stock.encode_prompt(
            texts, device=self.device, num_images_per_prompt=1, do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": embeddings, "text_embeds": pooled}

    def windows(self) -> Mapping[str, int]:
        found = {name: getattr(self.stock, name) for name in ("tokenizer", "tokenizer_2")}
        return {name: tokenizer.model_max_length for name, tokenizer in found.items() if tokenizer is not None}

    def extras(self, recipe: Recipe) -> Rows:
        # Original size, crop and target size, as the stock pipeline fills them in.
        size = [recipe.height, recipe.width, 0, 0, recipe.height, recipe.width]
        return {**super().extras(recipe), "time_ids": self.sent(torch.tensor([size], dtype=self.dtype))}

    def predict(self, latents: Tensor, timesteps: Tensor, conditioning: Rows) -> Tensor:
        further = {name: conditioning[name] for name in ("text_embeds", "time_ids")}
        own = {name: rows for name, rows in conditioning.items() if name not in further}
        predicted: Tensor = self.denoiser(latents, timesteps, **own, added_cond_kwargs=further, return_dict=False)[0]
        return predicted

    def unscaled(self, latents: Tensor) -> Tensor:
        config = self.stock.vae.config
        if config.latents_mean is None or config.latents_std is None:
            return super().unscaled(latents)
        mean, std = (
            torch.tensor(values).view(1, -1, 1, 1).to(latents.device, latents.dtype)
            for values in (config.latents_mean, config.latents_std)
        )
        unscaled: Tensor = latents * std / config.scaling_factor + mean
        return unscaled


@dataclass(frozen=True, kw_only=True, eq=False)
class Transformer(Adapter):
    """What models trained by flow matching share: a transformer, an autoencoder with a shift, a size-dependent mu."""

    denoiser_name = "transformer"

    def scaled_noise(self, noise: Tensor, scheduler: Any) -> Tensor:
        return noise

    def inputs(self, latent: Tensor, scheduler: Any, timestep: Tensor) -> tuple[Tensor, float]:
        return latent, float(timestep)

    def unscaled(self, latents: Tensor) -> Tensor:
        config = self.stock.vae.config
        unscaled: Tensor = (latents / config.scaling_factor) + config.shift_factor
        return unscaled

    def mu(self, config: Mapping[str, Any], width: int, height: int, *, max_shift: float) -> float:
        """The timestep shift for a size in latent pixels: linear in its tokens (Esser et al., arXiv:2403.03206)."""
        tokens = (width // self.family.patch) * (height // self.family.patch)
        fewest, most = config.get("base_image_seq_len", 256), config.get("max_image_seq_len", 4096)
        least, largest = config.get("base_shift", 0.5), config.get("max_shift", max_shift)
        slope = (largest - least) / (most - fewest)
        return float(tokens * slope + (least - slope * fewest))


@dataclass(frozen=True, kw_only=True, eq=False)
class StableDiffusion3(Transformer):
    """Stable Diffusion 3 and 3.5; the T5 encoder may be left out."""

    modules = ("text_encoder", "text_encoder_2", "transformer", "vae")

    def encode_texts(self, texts: list[str]) -> Rows:
        embeddings, _, pooled, _ = self.stock.encode_prompt(
            texts, None, None, device=self.device, do_classifier_free_guidance=False
        )
        return {"encoder_hidden_states": embeddings.to(self.dtype), "pooled_projections": pooled.to(self.dtype)}

    def windows(self) -> Mapping[str, int]:
        """77 and 77 tokens for the CLIP encoders, 256 for T5."""
        clip = dict.fromkeys(("tokenizer", "tokenizer_2"), self.stock.tokenizer_max_length)
        return {**clip, "tokenizer_3": 256} if self.stock.text_encoder_3 is not None else clip

    def timing(
        self, config: Mapping[str, Any], *, num_inference_steps: int, width: int, height: int
    ) -> Mapping[str, Any]:
        dynamic = config.get("use_dynamic_shifting", False)
        return {"mu": self.mu(config, width, height, max_shift=1.16)} if dynamic else {}

    def predict(self, latents: Tensor, timesteps: Tensor, conditioning: Rows) -> Tensor:
        predicted: Tensor = self.denoiser(hidden_states=latents, timestep=timesteps, **conditioning, return_dict=False)[
            0
        ]
        return predicted


@dataclass(frozen=True, kw_only=True, eq=False)
class Flux(Transformer):
    """Flux dev, whose guidance scale is an input, and schnell, which takes none.

    Latents stay pictures here and become tokens of 2 x 2 pixels only for the transformer: noise is drawn and steps
    are taken pixel by pixel, so that changes nothing.
    """

    modules = ("text_encoder", "text_encoder_2", "transformer", "vae")

    def encode_texts(self, texts: list[str]) -> Rows:
        embeddings, pooled, _ = self.stock.encode_prompt(texts, None, device=self.device)
        return {"encoder_hidden_states": embeddings, "pooled_projections": pooled}

    def windows(self) -> Mapping[str, int]:
        """77 tokens for CLIP, 512 for T5. Only the end of CLIP's pooled embedding is used, so T5's counts."""
        return {"tokenizer_2": 512}

    def extras(self, recipe: Recipe) -> Rows:
        if recipe.guidance_scale is None:
            return {}
        return {"guidance": torch.full([1], recipe.guidance_scale, device=self.device, dtype=torch.float32)}

    @property
    def latent_channels(self) -> int:
        return int(self.network.config.in_channels) // 4

    def timing(
        self, config: Mapping[str, Any], *, num_inference_steps: int, width: int, height: int
    ) -> Mapping[str, Any]:
        mu = self.mu(config, width, height, max_shift=1.15)
        return {"sigmas": np.linspace(1.0, 1 / num_inference_steps, num_inference_steps), "mu": mu}

    def predict(self, latents: Tensor, timesteps: Tensor, conditioning: Rows) -> Tensor:
        rows, channels, height, width = latents.shape
        image_ids, text_ids = self._positions(height, width, conditioning["encoder_hidden_states"].shape[1])
        tokens = self.denoiser(
            hidden_states=self.stock._pack_latents(latents, rows, channels, height, width),
            timestep=timesteps.to(latents.dtype) / 1000,
            img_ids=image_ids,
            txt_ids=text_ids,
            **{"guidance": None, **conditioning},
            return_dict=False,
        )[0]
        factor = self.latent_factor
        predicted: Tensor = self.stock._unpack_latents(tokens, height * factor, width * factor, factor)
        return predicted

    @lru_cache(maxsize=8)  # noqa: B019  # adapters live as long as their worker
    def _positions(self, height: int, width: int, tokens: int) -> tuple[Tensor, Tensor]:
        """(h/2 * w/2, 3) and (tokens, 3)"""
        image = self.stock._prepare_latent_image_ids(1, height // 2, width // 2, self.device, self.dtype)
        return image, torch.zeros(tokens, 3, device=self.device, dtype=self.dtype)


@dataclass(frozen=True, kw_only=True, eq=False)
class PixArt(Adapter):
    """PixArt alpha and sigma, without resolution binning and caption cleaning."""

    modules = ("text_encoder", "transformer", "vae")
    denoiser_name = "transformer"

    def encode_texts(self, texts: list[str]) -> Rows:
        embeddings, mask, _, _ = self.stock.encode_prompt(
            texts, False, device=self.device, clean_caption=False, max_sequence_length=self._window
        )
        return {"encoder_hidden_states": embeddings, "encoder_attention_mask": mask}

    @property
    def _window(self) -> int:
        """120 tokens for alpha, 300 for sigma: the defaults of their calls."""
        return 300 if type(self.stock).__name__ == "PixArtSigmaPipeline" else 120

    def windows(self) -> Mapping[str, int]:
        return {"tokenizer": self._window}

    def converted(self, texts: list[str], tokenizer_name: str) -> list[str]:
        preprocessed: list[str] = self.stock._text_preprocessing(texts, clean_caption=False)
        return preprocessed

    def predict(self, latents: Tensor, timesteps: Tensor, conditioning: Rows) -> Tensor:
        predicted: Tensor = self.denoiser(
            latents,
            timestep=timesteps,
            **conditioning,
            added_cond_kwargs=self._size(latents),
            return_dict=False,
        )[0]
        # The second half of the channels is a learned variance that no sampler here uses.
        learned = self.network.config.out_channels // 2 == self.latent_channels
        return predicted.chunk(2, dim=1)[0] if learned else predicted

    def stepped(self, step_output: tuple[Tensor, ...], num_inference_steps: int) -> Tensor:
        """With one step the stock pipeline takes the prediction of the clean latent, where the scheduler gives it."""
        return step_output[1] if num_inference_steps == 1 and len(step_output) > 1 else step_output[0]

    def _size(self, latents: Tensor) -> dict[str, Tensor | None]:
        """The micro-conditions of the alpha model for 1024 px; the others take none."""
        alpha = type(self.stock).__name__ == "PixArtAlphaPipeline"
        if not alpha or self.network.config.sample_size != 128:
            return {"resolution": None, "aspect_ratio": None}
        height, width = (side * self.latent_factor for side in latents.shape[2:])
        like: dict[str, Any] = {"dtype": self.dtype, "device": self.device}
        return {
            "resolution": torch.tensor([[height, width]], **like).expand(len(latents), -1),
            "aspect_ratio": torch.tensor([[height / width]], **like).expand(len(latents), -1),
        }


ADAPTERS: Mapping[str, type[Adapter]] = {
    "StableDiffusionPipeline": StableDiffusion,
    "StableDiffusionXLPipeline": StableDiffusionXL,
    "StableDiffusion3Pipeline": StableDiffusion3,
    "FluxPipeline": Flux,
    "PixArtAlphaPipeline": PixArt,
    "PixArtSigmaPipeline": PixArt,
}
"""By the class that ``model_index.json`` names."""
