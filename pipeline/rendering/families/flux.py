"""Flux.1 dev and schnell."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import numpy as np
import torch
from diffusers import FluxPipeline
from torch import Tensor

from pipeline.recipe import Recipe
from pipeline.rendering.adapter import Rows
from pipeline.rendering.flow_transformer import FlowTransformer


@dataclass(frozen=True, kw_only=True, eq=False)
class Flux(FlowTransformer):
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
        texts = conditioning["encoder_hidden_states"].shape[1]
        image_ids, text_ids = _positions(height // 2, width // 2, texts, self.device, self.dtype)
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


@lru_cache(maxsize=8)
def _positions(height: int, width: int, texts: int, device: torch.device, dtype: torch.dtype) -> tuple[Tensor, Tensor]:
    """Return the positions of an image's tokens, (height * width, 3), and of the text's, (texts, 3).

    The cache is of the module: one of a method would keep every model that was ever loaded.
    """
    image = FluxPipeline._prepare_latent_image_ids(1, height, width, device, dtype)
    return image, torch.zeros(texts, 3, device=device, dtype=dtype)
