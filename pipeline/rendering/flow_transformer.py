"""What the families trained by flow matching share."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from torch import Tensor

from pipeline.rendering.adapter import Adapter


@dataclass(frozen=True, kw_only=True, eq=False)
class FlowTransformer(Adapter):
    """A transformer, an autoencoder with a shift, and timesteps that may depend on the size."""

    denoiser_name = "transformer"
    scaled_input = False

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
