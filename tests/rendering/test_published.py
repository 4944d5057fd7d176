"""Models in the forms in which people publish them, drawn as the stock pipeline draws them."""

import io
import json
import shutil
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import sentencepiece
import torch
from diffusers.utils import SAFETENSORS_WEIGHTS_NAME

from pipeline.errors import ModelError
from pipeline.model.check import check_weights
from pipeline.model.facts import read_facts
from pipeline.model.family import FAMILIES
from pipeline.model.files import UNUSED_COMPONENTS
from pipeline.model.fingerprint import DigestCache, fingerprint, loaded_files
from pipeline.rendering.renderer import load_renderer
from pipeline.rendering.results import Rendered
from tests import tiny_models
from tests.rendering.tasks import task

STEPS = {"width": 32, "height": 32, "num_inference_steps": 2, "guidance_scale": 7.5}


def edit_json(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


def check_like_stock(folder: Path, **told: Any) -> None:
    """Render one image and hold it against the stock pipeline, loaded as a user of diffusers would."""
    facts = read_facts(folder)
    check_weights(folder)
    renderer = load_renderer(folder, dtype="float32", device="cpu", rows=2)
    (outcome,) = renderer.render([task(scheduler=facts.scheduler, num_inference_steps=2)])
    assert isinstance(outcome, Rendered), outcome
    stock_class: Any = getattr(diffusers, facts.class_name)
    stock = stock_class.from_pretrained(folder, dtype=torch.float32, **told)
    stock.set_progress_bar_config(disable=True)
    more = {"use_resolution_binning": False, "clean_caption": False} if "PixArt" in facts.class_name else {}
    image = stock("a red cat", generator=torch.Generator().manual_seed(1), **STEPS, **more).images[0]
    assert np.abs(outcome.pixels - np.asarray(image).astype(int)).max() <= 1


def as_variant(part: Path, variant: str, *, parts: int = 1) -> None:
    """Save the weights of one component as a variant in half precision, split into several files for ``parts`` > 1."""
    stem = part / ("diffusion_pytorch_model" if (part / SAFETENSORS_WEIGHTS_NAME).exists() else "model")
    weights = stem.with_suffix(".safetensors")
    entry = json.loads((part.parent / "model_index.json").read_text())[part.name]
    import transformers

    module = getattr({"diffusers": diffusers, "transformers": transformers}[entry[0]], entry[1]).from_pretrained(part)
    weights.unlink()
    size = sum(tensor.numel() * 2 for tensor in module.state_dict().values())
    largest = f"{size // parts // 1000 + 2}KB" if parts > 1 else "1GB"
    module.half().save_pretrained(part, variant=variant, max_shard_size=largest)


def everything_as_fp16(folder: Path) -> dict[str, Any]:
    for name in ("unet", "vae", "text_encoder"):
        as_variant(folder / name, "fp16")
    return {"variant": "fp16"}


def split_fp16(folder: Path) -> dict[str, Any]:
    for name in ("unet", "text_encoder"):
        as_variant(folder / name, "fp16", parts=2)
        assert len(list((folder / name).glob("*.fp16-00001-of-0000*.safetensors"))) == 1
    return {"variant": "fp16"}


def only_the_denoiser_as_fp16(folder: Path) -> dict[str, Any]:
    as_variant(folder / "unet", "fp16")
    return {"variant": "fp16"}


def fp16_beside_another_file(folder: Path) -> dict[str, Any]:
    told = only_the_denoiser_as_fp16(folder)
    shutil.copy(folder / "vae" / SAFETENSORS_WEIGHTS_NAME, folder / "text_encoder" / "other.safetensors")
    (folder / "unet" / "notes.safetensors").write_bytes(b"never opened")
    return told


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("publish", [everything_as_fp16, split_fp16, only_the_denoiser_as_fp16])
def test_weights_of_one_variant(
    epsilon_folder: Path, tmp_path: Path, publish: Callable[[Path], dict[str, Any]]
) -> None:
    folder = Path(shutil.copytree(epsilon_folder, tmp_path / "model"))
    check_like_stock(folder, **publish(folder))
    weights = {path.relative_to(folder).as_posix() for path in folder.rglob("*.safetensors")}
    assert weights == {
        path.relative_to(folder).as_posix() for path in loaded_files(folder) if path.suffix == ".safetensors"
    }


@pytest.mark.filterwarnings("ignore")
def test_a_file_of_another_name_does_not_hide_a_variant(epsilon_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(epsilon_folder, tmp_path / "model"))
    check_like_stock(folder, **fp16_beside_another_file(folder))
    assert folder / "unet" / "notes.safetensors" not in loaded_files(folder)


def test_plain_weights_are_preferred_and_keep_their_fingerprint(epsilon_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(epsilon_folder, tmp_path / "model"))
    before = fingerprint(folder, DigestCache(tmp_path / "digests"))
    for name in ("diffusion_pytorch_model.fp16.safetensors", "diffusion_pytorch_model.fp16-00001-of-00002.safetensors"):
        (folder / "unet" / name).write_bytes(b"never opened")
    assert fingerprint(folder, DigestCache(tmp_path / "digests")) == before
    load_renderer(folder, dtype="float32", device="cpu", rows=2)


def left_out(model: Any, *names: str) -> Any:
    for name in names:
        setattr(model, name, None)
        model.register_to_config(**{name: (None, None)})
    return model


def sdxl_without_the_first_encoder() -> Any:
    model = left_out(tiny_models.stable_diffusion_xl(), "text_encoder", "tokenizer")
    torch.manual_seed(0)
    model.unet = tiny_models._loud(
        tiny_models._unet(
            addition_embed_type="text_time",
            addition_time_embed_dim=8,
            projection_class_embeddings_input_dim=6 * 8 + 16,
        )
    )
    return model


WITHOUT: Mapping[str, tuple[Callable[[], Any], dict[str, Any]]] = {
    "sd3": (
        lambda: left_out(tiny_models.stable_diffusion_3(), "text_encoder_3", "tokenizer_3"),
        {"text_encoder_3": None, "tokenizer_3": None},
    ),
    "sd3 with a tokenizer": (
        lambda: left_out(tiny_models.stable_diffusion_3(), "text_encoder_3"),
        {"text_encoder_3": None},
    ),
    "sdxl": (sdxl_without_the_first_encoder, {}),
    "lcm": (lambda: left_out(tiny_models.latent_consistency(), "image_encoder"), {}),
}


@pytest.mark.filterwarnings("ignore")
@pytest.mark.parametrize("kind", WITHOUT)
def test_parts_that_a_model_leaves_out(kind: str, tmp_path: Path) -> None:
    build, told = WITHOUT[kind]
    check_like_stock(tiny_models.save(build(), tmp_path / "model"), **told)


@pytest.mark.filterwarnings("ignore")
def test_parts_that_the_index_does_not_name(tmp_path: Path) -> None:
    folder = tiny_models.save(WITHOUT["sd3"][0](), tmp_path / "model")
    index = json.loads((folder / "model_index.json").read_text())
    for name in ("text_encoder_3", "tokenizer_3", "image_encoder", "feature_extractor"):
        index.pop(name, None)
    (folder / "model_index.json").write_text(json.dumps(index))
    check_like_stock(folder, text_encoder_3=None, tokenizer_3=None)


@pytest.mark.parametrize("name", sorted(FAMILIES))
def test_what_a_class_cannot_do_without_is_as_in_diffusers(name: str) -> None:
    stock_class: Any = getattr(diffusers, name)
    parts, _ = stock_class._get_signature_keys(stock_class)
    optional = set(stock_class._optional_components) | set(UNUSED_COMPONENTS)
    family = FAMILIES[name]
    needed = {"scheduler", "vae", "transformer", "unet", *family.text_parts}
    assert needed & set(parts) >= set(parts) - optional - {"text_encoder_3", "tokenizer_3"}
    assert set(family.text_parts) <= set(parts)
    assert family.loras == hasattr(stock_class, "load_lora_weights")


@pytest.fixture(scope="module")
def spiece() -> bytes:
    """A sentencepiece model with T5's first three pieces, of letters alone."""
    written = io.BytesIO()
    sentencepiece.SentencePieceTrainer.train(
        sentence_iterator=iter(["the quick brown fox jumps over a lazy dog"] * 8), model_writer=written,
        model_type="unigram", vocab_size=34, pad_id=0, eos_id=1, unk_id=2, bos_id=-1, hard_vocab_limit=False,
        minloglevel=2,
    )  # fmt: skip
    return written.getvalue()


def with_spiece(folder: Path, body: bytes) -> Path:
    """Replace the T5 tokenizer of a model by ``spiece.model``, as Google publishes it."""
    for path in (folder / "tokenizer").iterdir():
        path.unlink()
    special = {"eos_token": "</s>", "unk_token": "<unk>", "pad_token": "<pad>", "extra_ids": 0}
    config = {"tokenizer_class": "T5Tokenizer", "model_max_length": 120, **special}
    (folder / "tokenizer" / "tokenizer_config.json").write_text(json.dumps(config))
    (folder / "tokenizer" / "spiece.model").write_bytes(body)
    return folder


@pytest.fixture(scope="module")
def pixart_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tiny_models.save(tiny_models.pixart(), tmp_path_factory.mktemp("pixart"))
    edit_json(folder / "scheduler" / "scheduler_config.json", lambda_min_clipped=-5.1)
    return folder


@pytest.mark.filterwarnings("ignore")
def test_a_sentencepiece_model_alone(pixart_folder: Path, spiece: bytes, tmp_path: Path) -> None:
    folder = with_spiece(Path(shutil.copytree(pixart_folder, tmp_path / "model")), spiece)
    check_like_stock(folder)
    assert folder / "tokenizer" / "spiece.model" in loaded_files(folder)


@pytest.mark.filterwarnings("ignore")
def test_a_vocabulary_with_merges_alone(epsilon_folder: Path, tmp_path: Path) -> None:
    folder = Path(shutil.copytree(epsilon_folder, tmp_path / "model"))
    read = json.loads((folder / "tokenizer" / "tokenizer.json").read_text())["model"]
    (folder / "tokenizer" / "vocab.json").write_text(json.dumps(read["vocab"]))
    (folder / "tokenizer" / "merges.txt").write_text("#version: 0.2\n")
    check_like_stock(folder)  # both forms
    (folder / "tokenizer" / "tokenizer.json").unlink()
    check_like_stock(folder)
    (folder / "tokenizer" / "merges.txt").unlink()
    for check in (check_weights, partial(load_renderer, dtype="float32", device="cpu", rows=2)):
        with pytest.raises(ModelError, match=r"no merges\.txt"):
            check(folder)
