"""A model's folder looked at without torch: copies of the built-in model, each with one thing wrong."""

import json
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ModelError
from pipeline.model.facts import check_weights, read_facts, weights_dtype
from pipeline.model.resolve import BUILT_IN

UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
UNET_INDEX = f"{UNET_WEIGHTS}.index.json"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(BUILT_IN["shapes"], tmp_path / "model"))


def change(path: Path, **keys: Any) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **keys}))


def test_sizes(folder: Path) -> None:
    change(folder / "unet" / "config.json", sample_size=[16, 24])
    assert read_facts(folder).native_size == (96, 64)
    change(folder / "unet" / "config.json", sample_size=None)
    assert read_facts(folder).native_size == (256, 256)
    change(folder / "vae" / "config.json", block_out_channels=None)
    assert read_facts(folder).size_factor == 8


@pytest.mark.parametrize(
    ("file", "key", "value"),
    [
        ("vae", "block_out_channels", 4),
        ("vae", "block_out_channels", []),
        ("vae", "block_out_channels", [1] * 1000),
        ("vae", "block_out_channels", ["8"]),
        ("unet", "sample_size", [1, 2, 3]),
        ("unet", "sample_size", "16"),
        ("unet", "sample_size", [16, "16"]),
        ("unet", "sample_size", True),
        ("unet", "sample_size", 0),
        ("unet", "sample_size", 16.5),
        ("unet", "sample_size", 2049),
        ("unet", "sample_size", [24, 10**400]),
    ],
)
def test_values_that_make_no_size(folder: Path, file: str, key: str, value: Any) -> None:
    change(folder / file / "config.json", **{key: value})
    with pytest.raises(ModelError, match="cannot be used") as caught:
        read_facts(folder)
    assert caught.value.where == f"{folder / file / 'config.json'}: {key}"
    assert caught.value.value
    assert caught.value.allowed


@pytest.mark.parametrize("body", ["[" * 100_000, "[]", "{", "\udcff"])
def test_files_that_are_no_json_object(folder: Path, body: str) -> None:
    (folder / "model_index.json").write_bytes(body.encode("utf-8", "surrogateescape"))
    with pytest.raises(ModelError, match="model_index"):
        check_weights(folder)


def test_good_weights(folder: Path) -> None:
    check_weights(folder)
    (folder / "unet" / "diffusion_pytorch_model.fp16.safetensors").write_bytes(b"not loaded")
    change(folder / "model_index.json", safety_checker=["stable_diffusion", "StableDiffusionSafetyChecker"])
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "config.json").write_text("{}")
    check_weights(folder)


def test_split_weights(folder: Path) -> None:
    (folder / UNET_INDEX).write_text(json.dumps({"weight_map": {"a": Path(UNET_WEIGHTS).name}}))
    check_weights(folder)


def split_in_two(folder: Path) -> None:
    (folder / UNET_INDEX).write_text(
        json.dumps({"weight_map": {"a": Path(UNET_WEIGHTS).name, "b": "gone.safetensors"}})
    )


def listed(name: str) -> Callable[[Path], object]:
    """An index of split weights that names this file, which is there."""

    def write(folder: Path) -> None:
        shutil.copy(folder / UNET_WEIGHTS, folder / "unet" / name)
        (folder / UNET_INDEX).write_text(json.dumps({"weight_map": {"a": name}}))

    return write


def configured(**keys: Any) -> Callable[[Path], object]:
    return lambda folder: change(folder / "text_encoder" / "config.json", **keys)


def renamed(suffix: str) -> Callable[[Path], object]:
    return lambda folder: (folder / UNET_WEIGHTS).rename((folder / UNET_WEIGHTS).with_suffix(suffix))


@pytest.mark.parametrize(
    ("spoil", "says", "where"),
    [
        (lambda folder: (folder / UNET_WEIGHTS).unlink(), "no weights", "unet"),
        (renamed(".fp16.safetensors"), "no weights", "unet"),
        (renamed(".bin"), "pickled weights are refused, loading them runs code", "unet"),
        (renamed(".ckpt"), "pickled weights are refused, loading them runs code", "unet"),
        (
            lambda folder: (folder / UNET_WEIGHTS).write_bytes(b"oid sha256:0123"),
            "not a safetensors file",
            UNET_WEIGHTS,
        ),
        (lambda folder: (folder / UNET_WEIGHTS).write_bytes(b""), "not a safetensors file", UNET_WEIGHTS),
        (
            lambda folder: (folder / UNET_WEIGHTS).write_bytes(b"\2" + b"\0" * 7 + b"[]"),
            "not a safetensors file",
            UNET_WEIGHTS,
        ),
        (split_in_two, "weights are missing", UNET_INDEX),
        (lambda folder: (folder / UNET_INDEX).write_text('{"weight_map": 3}'), "index of split weights", UNET_INDEX),
        (listed("weights.bin"), "names a file that is refused", UNET_INDEX),
        (listed("weights.fp16.safetensors"), "names a file that is refused", UNET_INDEX),
        (listed("../weights.safetensors"), "names a file that is refused", UNET_INDEX),
        (lambda folder: (folder / "unet" / "adapter_config.json").write_text("{}"), "adapter inside a model", "unet"),
        (configured(transformers_weights="other.safetensors"), "names its own weights", "text_encoder"),
        (configured(attn_implementation="org/kernel"), "names code of the Hub", "text_encoder"),
        (configured(vision={"_attn_implementation": {"": "org/kernel"}}), "names code of the Hub", "text_encoder"),
        (lambda folder: change(folder / "model_index.json", vae=["mine", "Vae"]), "not a module Darkroom loads", ""),
        (lambda folder: change(folder / "model_index.json", other=["os", "system"]), "not a module Darkroom loads", ""),
        (lambda folder: shutil.rmtree(folder / "tokenizer"), "no vocabulary", "tokenizer"),
        (lambda folder: (folder / "tokenizer" / "tokenizer.json").unlink(), "no vocabulary", "tokenizer"),
    ],
)
def test_bad_weights(folder: Path, spoil: Callable[[Path], object], says: str, where: str) -> None:
    spoil(folder)
    with pytest.raises(ModelError, match=says) as caught:
        check_weights(folder)
    assert str(folder / where) in str(caught.value.where)
    assert caught.value.allowed


def test_a_header_of_no_tensors_has_no_dtype(folder: Path) -> None:
    (folder / UNET_WEIGHTS).write_bytes(b"\2" + b"\0" * 7 + b"[]")
    with pytest.raises(ModelError, match="not a safetensors file"):
        weights_dtype(folder)


def test_looking_at_weights_needs_no_torch() -> None:
    code = f"""
import sys
from pathlib import Path
from pipeline.model.facts import check_weights
check_weights(Path({str(BUILT_IN["shapes"])!r}))
print([name for name in ("torch", "diffusers", "transformers") if name in sys.modules])
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
