"""Facts of a family of models that planning needs, from its class and JSON alone.

A family says which parts of a recipe decide the pixels (``effective_guidance``, ``uses_negative_prompt``) and how many
rows of the denoiser's batch an image takes (``rows``). Planning merges recipes by these facts, and the renderer follows
them.
"""

from collections.abc import Hashable, Mapping
from dataclasses import dataclass, replace
from enum import Enum
from math import isqrt
from typing import Any, Literal

from pipeline.recipe import Recipe
from pipeline.schedulers import SCHEDULERS, evaluations


class Guidance(Enum):
    """The use that a model makes of its guidance scale."""

    CLASSIFIER_FREE = "classifier_free"
    """Two rows, unconditional and conditional. A scale of at most 1 is unguided: one row, no negative prompt."""
    FROM_CONDITIONAL = "from_conditional"
    """Two rows, with the prediction c + g (c - u). A scale of at most 0 is unguided."""
    EMBEDDED = "embedded"
    """One row. The scale is an input of the network, and each value gives another image."""
    NONE = "none"
    """One row. The network has no such input, and the scale is removed from the recipe."""


_GUIDED_ABOVE: Mapping[Guidance, float] = {Guidance.CLASSIFIER_FREE: 1.0, Guidance.FROM_CONDITIONAL: 0.0}


@dataclass(frozen=True, slots=True, kw_only=True)
class Family:
    """Facts of one diffusers pipeline class. Defaults are those of its ``__call__``."""

    name: str
    guidance: Guidance
    guidance_scale: float
    num_inference_steps: int
    patch: int = 1
    """Latent pixels per side of a token of the denoiser. Sizes must divide by this times the autoencoder's factor."""
    flow: bool = False
    """Whether the model was trained by flow matching. It takes either schedulers for that or all others."""
    given_sigmas: bool = False
    """Whether the pipeline passes its own sigmas, or a shift for the size, to the scheduler, which must accept them."""
    sample_size: int = 64
    """Latent pixels per side if the denoiser's configuration has no such key."""
    positions: Literal["side", "area"] = "side"
    """The unit of ``pos_embed_max_size`` in the denoiser's configuration: tokens per side, or tokens of a square."""
    single: bool = False
    """Whether each image is rendered by one call of the diffusers pipeline, which is slower."""
    lists: tuple[str, ...] = ("timesteps", "sigmas")
    """Lists that the pipeline's call, or our adapter, takes in place of a step count."""
    negative_prompts: bool = True
    """Whether the pipeline of a ``single`` family takes negative prompts."""
    text_parts: tuple[str, ...] = ("text_encoder", "tokenizer")
    """Names of the text encoders and tokenizers that a model must have. It may leave out others."""
    loras: bool = True
    """Whether the diffusers pipeline can load LoRAs."""
    own_schedulers: tuple[str, ...] | None = None
    """Names of the schedulers that work; None for all that suit ``flow``."""
    px_per_token: int = 256
    """Pixels of an image per token of the denoiser. A transformer's patch has 16 x 16 px.

    For a U-Net this is the harmonic mean over its layers, weighted by FLOPs (``python -m benchmarks.row_facts``).
    """
    row_values_per_px: int = 290
    """Values in memory at the denoiser's peak, per row of the batch and pixel of an image, from the same command."""

    @property
    def guided_above(self) -> float | None:
        """The largest guidance scale of an unguided image; None if the scale does not weight two rows."""
        return _GUIDED_ABOVE.get(self.guidance)

    def effective_guidance(self, guidance_scale: float) -> float | None:
        """Return the guidance scale that decides the pixels; None if the model takes none."""
        if self.guidance is Guidance.NONE:
            return None
        if self.guided_above is not None and guidance_scale <= self.guided_above:
            return self.guided_above
        return guidance_scale + 0.0  # -0.0 becomes 0.0: one image, one id

    def uses_negative_prompt(self, effective_guidance: float | None) -> bool:
        """Return whether a negative prompt changes the image."""
        return self.negative_prompts if self.single else self.rows(effective_guidance) == 2

    def rows(self, effective_guidance: float | None) -> int:
        """Return the number of rows of the denoiser's batch that one image takes."""
        if self.guided_above is None or effective_guidance is None:
            return 1
        return 2 if effective_guidance > self.guided_above else 1

    def effective(self, recipe: Recipe) -> Recipe:
        """Return the recipe without the parts that the model ignores, so that equal images have equal recipes."""
        guidance = None if recipe.guidance_scale is None else self.effective_guidance(recipe.guidance_scale)
        kept = recipe.negative_prompt if self.uses_negative_prompt(guidance) else None
        return replace(recipe, guidance_scale=guidance, negative_prompt=kept)

    def batch_key(self, recipe: Recipe) -> Hashable:
        """Return the key of a batch's shapes and weights. Images with equal keys can share a batch."""
        return recipe.width, recipe.height

    def cost(self, recipe: Recipe) -> float:
        """Return the cost of an effective recipe: rows times megapixels, summed over the calls of the denoiser.

        Raise ``InputError`` for a scheduler that does not exist.
        """
        calls = evaluations(recipe.scheduler, recipe.num_inference_steps)
        return calls * self.rows(recipe.guidance_scale) * recipe.megapixels

    def schedulers(self) -> tuple[str, ...]:
        """Return the names in ``SCHEDULERS`` that work with this family."""
        return tuple(
            name
            for name, kind in SCHEDULERS.items()
            if kind.flow == self.flow and ("sigmas" in kind.lists or not self.given_sigmas)
            if self.own_schedulers is None or name in self.own_schedulers
        )

    def max_side_px(self, denoiser_config: Mapping[str, Any], factor: int) -> int | None:
        """Return the largest width or height that the denoiser has positions for; None if there is no limit."""
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
    """Return the facts of a class without an adapter. Its recipes are not merged, as none are known to be equal."""
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
"""Families by the class that a model's ``model_index.json`` names."""


def family_of(class_name: str, denoiser_config: Mapping[str, Any], *, single: bool = False) -> Family | None:
    """Return the family of a model, or None for an unknown class. ``single`` asks for one call per image.

    The denoiser's configuration says how guidance enters. A U-Net with ``time_cond_proj_dim`` (latent consistency
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
