"""Stable Diffusion 3 and 3.5."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pipeline.rendering.adapter import Rows
from pipeline.rendering.flow_transformer import FlowTransformer


@dataclass(frozen=True, kw_only=True, eq=False)
class StableDiffusion3(FlowTransformer):
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
