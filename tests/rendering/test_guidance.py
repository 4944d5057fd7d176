"""How the predictions of guided images are combined, against the formulas of the diffusers pipelines."""

from dataclasses import replace

import pytest
import torch

from pipeline.model.family import Guidance
from pipeline.rendering.loading import LoadedModel
from tests.rendering.tasks import task


def combined(model: LoadedModel, rule: Guidance, scale: float) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
    """Predictions without and with the prompt, and what a rule makes of them."""
    family = replace(model.adapter.family, guidance=rule)
    adapter = replace(model.adapter, family=family)
    generator = torch.Generator().manual_seed(0)
    unconditional, conditional = torch.randn(2, 3, 64, generator=generator)
    if family.rows(family.effective_guidance(scale)) == 1:
        unconditional = conditional
    weight = adapter.guidance(family.effective(task(guidance_scale=scale).recipe))
    out = torch.empty_like(conditional)
    adapter.combine(unconditional, conditional, torch.full((3, 1), weight), out=out)
    return unconditional, conditional, out


@pytest.mark.parametrize("scale", [1.01, 2.5, 7.5, 30.0])
def test_guidance_above_1_is_counted_from_the_unconditional_prediction(
    epsilon_model: LoadedModel, scale: float
) -> None:
    unconditional, conditional, found = combined(epsilon_model, Guidance.CLASSIFIER_FREE, scale)
    expected = unconditional + scale * (conditional - unconditional)
    assert torch.allclose(found, expected, rtol=1e-5, atol=1e-5 * scale)


@pytest.mark.parametrize("scale", [0.5, 4.0])
def test_guidance_above_0_is_counted_from_the_conditional_prediction(epsilon_model: LoadedModel, scale: float) -> None:
    unconditional, conditional, found = combined(epsilon_model, Guidance.FROM_CONDITIONAL, scale)
    assert torch.allclose(found, conditional + scale * (conditional - unconditional), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize(
    ("rule", "scale"),
    [(Guidance.CLASSIFIER_FREE, 1.0), (Guidance.CLASSIFIER_FREE, 0.0), (Guidance.FROM_CONDITIONAL, 0.0),
     (Guidance.EMBEDDED, 7.5)],
)  # fmt: skip
def test_without_guidance_the_prediction_stays_as_it_is(
    epsilon_model: LoadedModel, rule: Guidance, scale: float
) -> None:
    _, conditional, found = combined(epsilon_model, rule, scale)
    assert torch.equal(found, conditional)


def test_recipes_that_differ_in_what_is_ignored_are_one(epsilon_model: LoadedModel) -> None:
    family = epsilon_model.adapter.family
    unguided = [task(guidance_scale=scale, negative_prompt=text).recipe for scale, text in ((1.0, None), (0.2, "ugly"))]
    assert len({family.effective(recipe) for recipe in unguided}) == 1
    guided = task(guidance_scale=3.0, negative_prompt="ugly").recipe
    assert family.effective(guided) == guided
    assert family.cost(guided) == 2 * family.cost(family.effective(unguided[0]))
