"""What decides the pixels of one image."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True, kw_only=True)
class Recipe:
    """The settings of one image, beside what is constant in a run (model, dtype, scheduler configuration).

    A recipe that reaches the renderer is *effective*: what its family ignores is already dropped
    (``pipeline.model.family``), so equal recipes are equal pictures.
    """

    prompt: str
    negative_prompt: str | None
    """None and blank are the same."""
    seed: int
    """0 .. 2**64 - 1; seeds a fresh CPU generator."""
    guidance_scale: float | None
    """None where the model takes no guidance; 1.0 means unguided for classifier-free families."""
    num_inference_steps: int
    scheduler: str
    """As ``pipeline.schedulers.scheduler_of`` reads it, in canonical text."""
    width: int
    """px"""
    height: int
    """px"""

    @property
    def megapixels(self) -> float:
        """Of the picture."""
        return self.width * self.height / 1e6


@dataclass(frozen=True, slots=True, kw_only=True)
class RenderTask:
    """One effective recipe = one image; ``task_id`` is the recipe's digest, 32 hex digits."""

    task_id: str
    recipe: Recipe
