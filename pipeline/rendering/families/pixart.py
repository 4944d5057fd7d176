"""PixArt alpha and sigma."""

from collections.abc import Mapping
from dataclasses import dataclass
from functools import lru_cache

import torch
from torch import Tensor

from pipeline.rendering.adapter import Adapter, Rows


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
            added_cond_kwargs=self._sizes(latents.shape),
            return_dict=False,
        )[0]
        # The second half of the channels is a learned variance that no sampler here uses.
        learned = self.network.config.out_channels // 2 == self.latent_channels
        return predicted.chunk(2, dim=1)[0] if learned else predicted

    def step_output(self, num_inference_steps: int) -> int:
        """With one step the stock pipeline takes the prediction of the clean latent, where the scheduler gives it."""
        return 1 if num_inference_steps == 1 else 0

    def _sizes(self, shape: torch.Size) -> Mapping[str, Tensor | None]:
        """Return the micro-conditions of the alpha model for 1024 px; the others take none."""
        alpha = type(self.stock).__name__ == "PixArtAlphaPipeline"
        if not alpha or self.network.config.sample_size != 128:
            return {"resolution": None, "aspect_ratio": None}
        height, width = (side * self.latent_factor for side in shape[2:])
        return _micro_conditions(shape[0], height, width, self.device, self.dtype)


@lru_cache(maxsize=8)
def _micro_conditions(
    rows: int, height: int, width: int, device: torch.device, dtype: torch.dtype
) -> Mapping[str, Tensor]:
    """Return the size of images (px) and their aspect ratio, by name, (rows, 2) and (rows, 1).

    The cache is of the module: one of a method would keep every model that was ever loaded.
    """
    numbers = {"resolution": [[height, width]], "aspect_ratio": [[height / width]]}
    return {
        name: torch.tensor(own, dtype=dtype).to(device, non_blocking=True).expand(rows, -1)
        for name, own in numbers.items()
    }
