"""Stable Diffusion 1.x and 2.x."""

from dataclasses import dataclass
from typing import ClassVar

import torch
from torch import Tensor

from pipeline.model.family import Guidance
from pipeline.recipe import Recipe
from pipeline.rendering.adapter import Adapter, Rows


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
