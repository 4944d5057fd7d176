"""What a family of models makes of a recipe, from its class and JSON alone.

A family decides what really matters for the pixels (``effective_guidance``, ``uses_negative_prompt``) and how many
rows of the denoiser's batch an image takes (``rows``). Planning merges recipes by it; the renderer obeys it.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from enum import Enum
from typing import Any


class Guidance(Enum):
    """How a model takes its guidance scale."""

    CLASSIFIER_FREE = "classifier_free"
    """Two rows, conditional and unconditional; at most 1 means unguided: one row, no negative prompt."""
    EMBEDDED = "embedded"
    """An input of the network: every value is another image, one row."""
    NONE = "none"
    """No input for it: the value is dropped from the recipe, one row."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Facts of one stock diffusers pipeline class; defaults are those of its ``__call__``."""

    name: str
    guidance: Guidance
    guidance_scale: float
    num_inference_steps: int
    patch: int = 1
    """Latent pixels per side of one token of the denoiser; sizes divide by the autoencoder's factor times this."""

    def effective_guidance(self, guidance_scale: float) -> float | None:
        """What the guidance scale amounts to; None where the model takes none."""
        if self.guidance is Guidance.NONE:
            return None
        if self.guidance is Guidance.CLASSIFIER_FREE and guidance_scale <= 1:
            return 1.0
        return guidance_scale + 0.0  # -0.0 becomes 0.0: one image, one id

    def uses_negative_prompt(self, effective_guidance: float | None) -> bool:
        return self.rows(effective_guidance) == 2

    def rows(self, effective_guidance: float | None) -> int:
        """Rows of the denoiser's batch that one image takes."""
        classifier_free = self.guidance is Guidance.CLASSIFIER_FREE
        return 2 if classifier_free and effective_guidance is not None and effective_guidance > 1 else 1


FAMILIES: Mapping[str, Family] = {
    "StableDiffusionPipeline": Family(
        name="stable_diffusion",
        guidance=Guidance.CLASSIFIER_FREE,
        guidance_scale=7.5,
        num_inference_steps=50,
    ),
}
"""By the class that a model's ``model_index.json`` names."""


def family_of(class_name: str, denoiser_config: Mapping[str, Any]) -> Family | None:
    """The family of a model, or None for one Darkroom does not know.

    A U-Net with ``time_cond_proj_dim`` (latent consistency models) takes its guidance scale as an input, which no
    family here does yet.
    """
    return FAMILIES.get(class_name) if denoiser_config.get("time_cond_proj_dim") is None else None
