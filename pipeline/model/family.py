"""What a family of models makes of a recipe, from its class and JSON alone.

A family decides what really matters for the pixels (``effective_guidance``, ``uses_negative_prompt``) and how many
rows of the denoiser's batch an image takes (``rows``). Planning merges recipes by it; the renderer obeys it.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from math import isqrt
from typing import Any, Literal

from pipeline.recipe import Recipe
from pipeline.schedulers import SCHEDULERS, evaluations


class Guidance(Enum):
    """How a model takes its guidance scale."""

    CLASSIFIER_FREE = "classifier_free"
    """Two rows, conditional and unconditional; at most 1 means unguided: one row, no negative prompt."""
    FROM_CONDITIONAL = "from_conditional"
    """As above, but counted from the conditional prediction, c + g (c - u): at most 0 means unguided."""
    EMBEDDED = "embedded"
    """An input of the network: every value is another image, one row."""
    NONE = "none"
    """No input for it: the value is dropped from the recipe, one row."""


_GUIDED_ABOVE: Mapping[Guidance, float] = {Guidance.CLASSIFIER_FREE: 1.0, Guidance.FROM_CONDITIONAL: 0.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Facts of one stock diffusers pipeline class; defaults are those of its ``__call__``."""

    name: str
    guidance: Guidance
    guidance_scale: float
    num_inference_steps: int
    patch: int = 1
    """Latent pixels per side of one token of the denoiser; sizes divide by the autoencoder's factor times this."""
    flow: bool = False
    """Trained by flow matching: takes the schedulers for that, and only those."""
    given_sigmas: bool = False
    """The pipeline gives its own sigmas, or a shift for the size, to the scheduler, which must take them."""
    sample_size: int = 64
    """Latent pixels per side where the denoiser's configuration says nothing."""
    positions: Literal["side", "area"] = "side"
    """What ``pos_embed_max_size`` of the denoiser's configuration counts: tokens per side, or of a whole square."""
    single: bool = False
    """Rendered by one call of the stock pipeline per image: slower, correct for any diffusers pipeline."""
    lists: tuple[str, ...] = ("timesteps", "sigmas")
    """What its call, or our adapter, takes in place of a step count."""
    negative_prompts: bool = True
    """Whether the call of a ``single`` one takes them."""
    text_parts: tuple[str, ...] = ("text_encoder", "tokenizer")
    """Text encoders and tokenizers without which no prompt can be drawn; models may leave others out."""
    loras: bool = True
    """Whether the stock pipeline can load LoRAs."""
    own_schedulers: tuple[str, ...] | None = None
    """Where only some can work; None: all of its kind."""
    px_per_token: int = 256
    """Pixels of an image per token of the denoiser: a patch of a transformer, 16 x 16 px.

    For a U-Net, the harmonic mean over its layers weighted by their FLOPs (``python -m benchmarks.row_facts``).
    """
    row_values_per_px: int = 290
    """Values alive at the denoiser's peak per row of the batch and pixel of an image, counted by the same command."""

    @property
    def guided_above(self) -> float | None:
        """The largest guidance scale that leaves an image unguided; None where the scale is no weight of two rows."""
        return _GUIDED_ABOVE.get(self.guidance)

    def effective_guidance(self, guidance_scale: float) -> float | None:
        """What the guidance scale amounts to; None where the model takes none."""
        if self.guidance is Guidance.NONE:
            return None
        if self.guided_above is not None and guidance_scale <= self.guided_above:
            return self.guided_above
        return guidance_scale + 0.0  # -0.0 becomes 0.0: one image, one id

    def uses_negative_prompt(self, effective_guidance: float | None) -> bool:
        return self.negative_prompts if self.single else self.rows(effective_guidance) == 2

    def rows(self, effective_guidance: float | None) -> int:
        """Rows of the denoiser's batch that one image takes."""
        if self.guided_above is None or effective_guidance is None:
            return 1
        return 2 if effective_guidance > self.guided_above else 1

    def effective(self, recipe: Recipe) -> Recipe:
        """Return the recipe without what the model ignores, so that equal images have equal recipes."""
        guidance = None if recipe.guidance_scale is None else self.effective_guidance(recipe.guidance_scale)
        kept = recipe.negative_prompt if self.uses_negative_prompt(guidance) else None
        return replace(recipe, guidance_scale=guidance, negative_prompt=kept)

    def batch_key(self, recipe: Recipe) -> Hashable:
        """Return what fixes the shapes of a batch and its weights: images of one key can share a batch."""
        return recipe.width, recipe.height

    def cost(self, recipe: Recipe) -> float:
        """Return rows of the denoiser's batch times megapixels that an effective recipe takes, over all evaluations.

        Raises ``InputError`` for a scheduler that does not exist.
        """
        calls = evaluations(recipe.scheduler, recipe.num_inference_steps)
        return calls * self.rows(recipe.guidance_scale) * recipe.megapixels

    def schedulers(self) -> tuple[str, ...]:
        """Names of ``SCHEDULERS`` this family can be sampled with."""
        return tuple(
            name
            for name, kind in SCHEDULERS.items()
            if kind.flow == self.flow and ("sigmas" in kind.lists or not self.given_sigmas)
            if self.own_schedulers is None or name in self.own_schedulers
        )

    def max_side_px(self, denoiser_config: Mapping[str, Any], factor: int) -> int | None:
        """The largest width or height whose tokens the denoiser has positions for; None where any size will do."""
        most = denoiser_config.get("pos_embed_max_size")
        if not isinstance(most, int):
            return None
        return (most if self.positions == "side" else isqrt(most)) * self.patch * factor


_STABLE_DIFFUSION = Family(
    name="stable_diffusion",
    guidance=Guidance.CLASSIFIER_FREE,
    guidance_scale=7.5,
    num_inference_steps=50,
    px_per_token=577,
    row_values_per_px=130,
)
_TWO_ENCODERS = ("text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2")
_SECOND_ENCODER = ("text_encoder_2", "tokenizer_2")
_STABLE_DIFFUSION_XL = replace(
    _STABLE_DIFFUSION,
    name="stable_diffusion_xl",
    guidance_scale=5.0,
    sample_size=128,
    text_parts=_SECOND_ENCODER,
    px_per_token=865,
    row_values_per_px=80,
)
_PIXART = Family(
    name="pixart",
    guidance=Guidance.CLASSIFIER_FREE,
    guidance_scale=4.5,
    num_inference_steps=20,
    patch=2,
    loras=False,
    row_values_per_px=60,
)


def _single(
    guidance_scale: float,
    num_inference_steps: int,
    *,
    flow: bool,
    sample_size: int = 128,
    patch: int = 2,
    **more: Any,
) -> Family:
    """A class without an adapter: nothing is known to be equal, so no recipes are merged."""
    return Family(
        name="single",
        guidance=Guidance.EMBEDDED,
        guidance_scale=guidance_scale,
        num_inference_steps=num_inference_steps,
        patch=patch,
        flow=flow,
        sample_size=sample_size,
        single=True,
        **more,
    )


FAMILIES: Mapping[str, Family] = {
    "StableDiffusionPipeline": _STABLE_DIFFUSION,
    "StableDiffusionXLPipeline": _STABLE_DIFFUSION_XL,
    "StableDiffusion3Pipeline": Family(
        name="stable_diffusion_3",
        guidance=Guidance.CLASSIFIER_FREE,
        guidance_scale=7.0,
        num_inference_steps=28,
        patch=2,
        flow=True,
        sample_size=128,
        text_parts=_TWO_ENCODERS,
        row_values_per_px=130,
    ),
    "FluxPipeline": Family(
        name="flux",
        guidance=Guidance.EMBEDDED,
        guidance_scale=3.5,
        num_inference_steps=28,
        patch=2,
        flow=True,
        given_sigmas=True,
        sample_size=128,
        text_parts=_TWO_ENCODERS,
    ),
    "PixArtAlphaPipeline": _PIXART,
    "PixArtSigmaPipeline": _PIXART,
    "AuraFlowPipeline": _single(3.5, 50, flow=True, positions="area"),
    "ChromaPipeline": _single(5.0, 35, flow=True, given_sigmas=True),
    "CogView3PlusPipeline": _single(5.0, 50, flow=False, lists=("timesteps",), loras=False),
    "CogView4Pipeline": _single(5.0, 50, flow=True, given_sigmas=True),
    "Flux2KleinPipeline": _single(4.0, 50, flow=True, given_sigmas=True, negative_prompts=False),
    "Flux2Pipeline": _single(4.0, 50, flow=True, given_sigmas=True, negative_prompts=False),
    "HunyuanDiTPipeline": _single(5.0, 50, flow=False, lists=(), loras=False, text_parts=_TWO_ENCODERS),
    "LatentConsistencyModelPipeline": _single(
        8.5,
        4,
        flow=False,
        sample_size=64,
        patch=1,
        lists=("timesteps",),
        negative_prompts=False,
        own_schedulers=("lcm",),
    ),
    "Lumina2Pipeline": _single(4.0, 30, flow=True, given_sigmas=True),
    "LuminaPipeline": _single(4.0, 30, flow=True, loras=False),
    "OvisImagePipeline": _single(5.0, 50, flow=True, given_sigmas=True, loras=False),
    "SanaPipeline": _single(4.5, 20, flow=False, sample_size=32, patch=1),
    "StableDiffusionPAGPipeline": _single(7.5, 50, flow=False, sample_size=64, patch=1),
    "StableDiffusionXLPAGPipeline": _single(5.0, 50, flow=False, patch=1, text_parts=_SECOND_ENCODER),
    "ZImagePipeline": _single(5.0, 50, flow=True, given_sigmas=True),
}
"""By the class that a model's ``model_index.json`` names."""


def family_of(class_name: str, denoiser_config: Mapping[str, Any], *, single: bool = False) -> Family | None:
    """The family of a model, or None for a class Darkroom does not know. With ``single``, one call per image.

    The denoiser's configuration says how guidance enters: a U-Net with ``time_cond_proj_dim`` (latent consistency
    models, arXiv:2310.04378) embeds the guidance scale, a Flux without ``guidance_embeds`` (schnell) takes none.
    """
    family = FAMILIES.get(class_name)
    if family is None or family.single:
        return family
    if single:
        return replace(family, guidance=Guidance.EMBEDDED, single=True)
    if denoiser_config.get("time_cond_proj_dim") is not None:
        return replace(family, guidance=Guidance.EMBEDDED)
    if family.guidance is Guidance.EMBEDDED and not denoiser_config.get("guidance_embeds", False):
        return replace(family, guidance=Guidance.NONE)
    return family
