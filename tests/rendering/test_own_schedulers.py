"""Models with every scheduler as their own, as diffusers saves them, against the stock pipeline as it is loaded."""

import json
import os
import shutil
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from numpy.typing import NDArray

from pipeline.errors import ModelError
from pipeline.model.facts import read_facts
from pipeline.rendering.renderer import load_renderer
from pipeline.rendering.results import Rendered
from pipeline.schedulers import SCHEDULERS, scheduler_of
from tests import tiny_models
from tests.rendering.tasks import task

pytestmark = pytest.mark.filterwarnings("ignore::FutureWarning")  # the stock pipeline's, of the keys it corrects

STEPS = 4
BETAS = {"beta_start": 0.00085, "beta_end": 0.012, "beta_schedule": "scaled_linear"}
PUBLISHED = {**BETAS, "clip_sample": False, "set_alpha_to_one": False, "skip_prk_steps": True, "steps_offset": 1}
"""Keys that every published Stable Diffusion has, whatever its class."""


@dataclass(frozen=True)
class Model:
    """A saved model whose scheduler can be replaced."""

    saved: Path
    stock: Any
    scratch: Path

    def with_scheduler(self, class_name: str, config: Mapping[str, Any], written_class: str | None = None) -> Path:
        """Return a folder with the same weights, the class in its index and the file with these keys."""
        folder = self.scratch / str(len(list(self.scratch.iterdir())))
        shutil.copytree(self.saved, folder, copy_function=os.link)
        index = json.loads((folder / "model_index.json").read_text())
        for path, content in (
            (folder / "model_index.json", {**index, "scheduler": ["diffusers", class_name]}),
            (folder / "scheduler" / "scheduler_config.json", {"_class_name": written_class or class_name, **config}),
        ):
            path.unlink()
            path.write_text(json.dumps(content))
        return folder

    def reference(self, folder: Path) -> Any:
        """Return what ``from_pretrained`` makes of a folder, without loading the weights again."""
        class_name = json.loads((folder / "model_index.json").read_text())["scheduler"][1]
        own = getattr(diffusers, class_name).from_pretrained(folder, subfolder="scheduler")
        parts = {**self.stock.components, "scheduler": own}
        checker = {"requires_safety_checker": False} if "safety_checker" in parts else {}
        made = type(self.stock)(**parts, **checker)
        made.set_progress_bar_config(disable=True)
        return made


def saved_model(made: Any, folder: Path) -> Model:
    tiny_models.save(made, folder / "saved")
    stock = diffusers.DiffusionPipeline.from_pretrained(folder / "saved")
    (folder / "scratch").mkdir()
    return Model(saved=folder / "saved", stock=stock, scratch=folder / "scratch")


@pytest.fixture(scope="module")
def diffusion(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return saved_model(tiny_models.stable_diffusion(), tmp_path_factory.mktemp("sd"))


@pytest.fixture(scope="module")
def flow(tmp_path_factory: pytest.TempPathFactory) -> Model:
    return saved_model(tiny_models.stable_diffusion_3(), tmp_path_factory.mktemp("sd3"))


def drawn(folder: Path, scheduler: str | None = None) -> NDArray[np.uint8]:
    """Return Darkroom's image, with the model's own scheduler unless one is named."""
    own = task(scheduler=scheduler or read_facts(folder).scheduler, num_inference_steps=STEPS, guidance_scale=3.0)
    (outcome,) = load_renderer(folder, dtype="float32", device="cpu", rows=2).render([own])
    assert isinstance(outcome, Rendered), outcome
    return outcome.pixels


def expected(pipeline: Any) -> NDArray[np.int64]:
    own = task(scheduler="ddim", num_inference_steps=STEPS, guidance_scale=3.0).recipe
    generator = torch.Generator("cpu").manual_seed(own.seed)
    size = {"width": own.width, "height": own.height}
    made = pipeline(own.prompt, generator=generator, guidance_scale=3.0, num_inference_steps=STEPS, **size)
    return np.asarray(made.images[0]).astype(int)


def assert_same(pixels: NDArray[np.uint8], reference: NDArray[np.int64]) -> None:
    assert int(np.abs(pixels.astype(int) - reference).max()) <= 1


def of_kind(name: str, diffusion: Model, flow: Model) -> Model:
    return flow if SCHEDULERS[name].flow else diffusion


@pytest.mark.parametrize("name", SCHEDULERS)
def test_every_scheduler_as_the_models_own(name: str, diffusion: Model, flow: Model) -> None:
    """The file is what diffusers saves, with ``-Infinity`` where it writes that."""
    kind, model = SCHEDULERS[name], of_kind(name, diffusion, flow)
    settings = {} if kind.flow else BETAS
    made = getattr(diffusers, kind.class_name)(**settings, **kind.settings)
    folder = model.with_scheduler(kind.class_name, json.loads(made.to_json_string()))
    assert read_facts(folder).scheduler == name
    assert read_facts(folder).own_scheduler.warnings == ()
    assert_same(drawn(folder), expected(model.reference(folder)))


CORRECTED = {
    "DDIMScheduler": {"steps_offset": 1, "clip_sample": False},
    "DDPMScheduler": {"steps_offset": 1, "clip_sample": False},
    "PNDMScheduler": {"steps_offset": 1},
}
"""What the pipeline of Stable Diffusion sets of the keys that are absent, where images depend on it."""


def former_digest_config(folder: Path) -> Mapping[str, Any]:
    """Return the scheduler configuration as it entered digests from the first version on."""
    read = json.loads((folder / "scheduler" / "scheduler_config.json").read_text())
    return {key: value for key, value in read.items() if not key.startswith("_")}


def formerly_drawn(folder: Path, scheduler: str, model: Model) -> NDArray[np.int64]:
    """Return the image that earlier versions drew: the class from the named scheduler, keys left out by from_config."""
    reference, found = model.reference(folder), scheduler_of(scheduler)
    made = getattr(diffusers, found.kind.class_name).from_config(dict(reference.scheduler.config), **found.settings)
    return expected_with(reference, made)


def expected_with(reference: Any, scheduler: Any) -> NDArray[np.int64]:
    reference.scheduler = scheduler
    return expected(reference)


@pytest.mark.parametrize("class_name", [kind.class_name for name, kind in SCHEDULERS.items() if not kind.flow])
def test_absent_keys_change_the_digest_only_with_the_image(class_name: str, diffusion: Model) -> None:
    kept = {"skip_prk_steps": True} if class_name == "PNDMScheduler" else {}
    folder = diffusion.with_scheduler(class_name, {**BETAS, **kept})
    facts = read_facts(folder)
    assert facts.scheduler is not None
    corrected = CORRECTED.get(class_name, {})
    pixels, former = drawn(folder), formerly_drawn(folder, facts.scheduler, diffusion)
    assert_same(pixels, expected(diffusion.reference(folder)))
    assert (np.abs(pixels.astype(int) - former).max() > 1) == bool(corrected)
    assert facts.own_scheduler.reading == ({"_class_name": class_name, **corrected} if corrected else {})
