"""What a row of the batch takes, counted on a published architecture without its weights."""

from math import isclose

from benchmarks.row_facts import counted, unet
from pipeline.model.family import FAMILIES


def test_the_facts_of_stable_diffusion_are_those_of_its_layers() -> None:
    found, family = counted(unet("sd15"), 512), FAMILIES["StableDiffusionPipeline"]
    assert isclose(found.px_per_token, family.px_per_token, rel_tol=0.01)
    assert isclose(found.values_per_px, family.row_values_per_px, rel_tol=0.01)
    assert isclose(found.values_per_px * 512**2 * 2, 0.068e9, rel_tol=0.01)
