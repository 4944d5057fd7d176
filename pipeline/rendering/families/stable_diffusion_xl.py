"""Stable Diffusion XL."""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from pipeline.recipe import Recipe
from pipeline.rendering.adapter import Rows, Text
from pipeline.rendering.families.stable_diffusion import StableDiffusion


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
