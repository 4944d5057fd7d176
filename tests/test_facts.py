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
from pipeline.model.check import check_weights
from pipeline.model.facts import read_facts, weights_dtype
from pipeline.model.resolve import BUILT_IN

UNET_WEIGHTS = "unet/diffusion_pytorch_model.safetensors"
UNET_INDEX = f"{UNET_WEIGHTS}.index.json"
POINTER = b"version https://git-lfs.github.com/spec/v1\noid sha256:0123\nsize 9\n"


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
    again_as("fp16")(folder)
    check_weights(folder)
    (folder / UNET_WEIGHTS.replace(".", ".fp16.")).rename(folder / UNET_WEIGHTS)
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


def renamed(suffix: str, body: bytes | None = None) -> Callable[[Path], object]:
    def rename(folder: Path) -> None:
        path = (folder / UNET_WEIGHTS).rename((folder / UNET_WEIGHTS).with_suffix(suffix))
        if body is not None:
            path.write_bytes(body)

    return rename


def again_as(*variants: str) -> Callable[[Path], object]:
    """The weights of the denoiser under the names of variants alone."""

    def copy(folder: Path) -> None:
        for variant in variants:
            shutil.copy(folder / UNET_WEIGHTS, (folder / UNET_WEIGHTS).with_suffix(f".{variant}.safetensors"))
        (folder / UNET_WEIGHTS).unlink()

    return copy


def split_variant(folder: Path) -> None:
    names = [f"diffusion_pytorch_model.fp16-0000{number}-of-00002.safetensors" for number in (1, 2)]
    (folder / UNET_WEIGHTS).rename(folder / "unet" / names[0])
    index = folder / UNET_INDEX.replace("index", "index.fp16")
    index.write_text(json.dumps({"weight_map": dict(zip("ab", names, strict=True))}))


def cut(path: Path, size: int) -> None:
    """Keep the beginning of a file, as an interrupted download does."""
    path.write_bytes(path.read_bytes()[:size])


def lengthened(folder: Path) -> None:
    with (folder / UNET_WEIGHTS).open("ab") as file:
        file.write(bytes(8))


def link_to_nothing(folder: Path) -> None:
    (folder / UNET_WEIGHTS).unlink()
    (folder / UNET_WEIGHTS).symlink_to("../../blobs/abc")


def named(name: str) -> Callable[[Path], object]:
    return lambda folder: (folder / UNET_WEIGHTS).rename(folder / "unet" / name)


def with_an_adapter_inside(folder: Path) -> None:
    tensor = {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]}
    header = json.dumps({"mid_block.to_q.lora_A.default.weight": tensor}).encode()
    (folder / UNET_WEIGHTS).write_bytes(len(header).to_bytes(8, "little") + header)


def tokenizer_of(name: str, body: bytes) -> Callable[[Path], object]:
    def write(folder: Path) -> None:
        (folder / "tokenizer" / "tokenizer.json").unlink()
        (folder / "tokenizer" / name).write_bytes(body)

    return write


@pytest.mark.parametrize(
    ("spoil", "says", "where"),
    [
        (lambda folder: (folder / UNET_WEIGHTS).unlink(), "no weights", "unet"),
        (lambda folder: again_as("fp16", "bf16")(folder), "several variants and no plain files", "unet"),
        (again_as("fp16-00001-of-00002"), "the index of split weights is missing", "unet"),
        (split_variant, "weights are missing: 1 of 2 files", UNET_INDEX.replace("index", "index.fp16")),
        (renamed(".msgpack"), "Flax weights cannot be loaded", "unet"),
        (renamed(".onnx"), "ONNX weights cannot be loaded", "unet"),
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
        (renamed(".safetensors", POINTER), "git-lfs pointer", UNET_WEIGHTS),
        (lambda folder: (folder / "vae" / "config.json").write_bytes(POINTER), "git-lfs pointer", "vae/config.json"),
        (
            lambda folder: (folder / "tokenizer" / "tokenizer.json").write_bytes(POINTER),
            "git-lfs pointer",
            "tokenizer/tokenizer.json",
        ),
        (lambda folder: cut(folder / UNET_WEIGHTS, 2000), "incomplete, as after an interrupted", UNET_WEIGHTS),
        (lambda folder: cut(folder / UNET_WEIGHTS, 20), "incomplete, as after an interrupted", UNET_WEIGHTS),
        (lengthened, "8 bytes follow after its last tensor", UNET_WEIGHTS),
        (link_to_nothing, "its link leads to nothing", UNET_WEIGHTS),
        (named("unet.safetensors"), "a name under which they are not looked for", "unet"),
        (named("model.safetensors"), "a name under which they are not looked for", "unet"),
        (lambda folder: cut(folder / "tokenizer" / "tokenizer.json", 2000), "cannot be read", "tokenizer"),
        (with_an_adapter_inside, "saved with an adapter inside", UNET_WEIGHTS),
        (lambda folder: shutil.rmtree(folder / "text_encoder"), "a folder of the model is missing", "text_encoder"),
        (lambda folder: (folder / "text_encoder/config.json").unlink(), "a file of the model is missing", "text_en"),
        (lambda folder: (folder / "scheduler" / "scheduler_config.json").unlink(), "is missing", "scheduler"),
        (
            lambda folder: change(folder / "model_index.json", vae=["diffusers", "AutoencoderOfTomorrow"]),
            "the installed diffusers has no class of this name",
            "model_index.json: vae",
        ),
        (
            lambda folder: change(folder / "model_index.json", text_encoder=["transformers", "NoSuchModel"]),
            "the installed transformers has no class of this name",
            "model_index.json: text_encoder",
        ),
        (lambda folder: shutil.rmtree(folder / "tokenizer"), "a folder of the model is missing", "tokenizer"),
        (tokenizer_of("vocab.json", b"{}"), "no merges.txt", "tokenizer"),
        (tokenizer_of("spiece.model", b"nonsense"), "not a sentencepiece model", "tokenizer/spiece.model"),
        (tokenizer_of("spiece.model", POINTER), "git-lfs pointer", "tokenizer/spiece.model"),
        (lambda folder: (folder / "tokenizer" / "tokenizer.json").unlink(), "no vocabulary", "tokenizer"),
    ],
)
def test_bad_weights(folder: Path, spoil: Callable[[Path], object], says: str, where: str) -> None:
    spoil(folder)
    with pytest.raises(ModelError, match=says) as caught:
        check_weights(folder)
    assert str(folder / where) in str(caught.value.where)
    assert caught.value.allowed


@pytest.mark.parametrize("package", ["sentencepiece", "tiktoken"])
def test_a_tokenizer_whose_package_is_missing(folder: Path, package: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, package, None)  # as Python marks what cannot be imported
    tokenizer_of("tokenizer.model", b"IQ== 0\nIg== 1\n")(folder)
    with pytest.raises(ModelError, match=f"needs the package {package}, which is not installed") as caught:
        check_weights(folder)
    assert caught.value.value == f"'{package}'"


@pytest.mark.parametrize("name", ["vae", "unet", "tokenizer", "text_encoder", "scheduler"])
@pytest.mark.parametrize("entry", [[None, None], None])
def test_parts_that_no_model_can_do_without(folder: Path, name: str, entry: Any) -> None:
    change(folder / "model_index.json", **{name: entry})
    with pytest.raises(ModelError, match="the model has no") as caught:
        read_facts(folder)
    assert caught.value.allowed


def test_a_header_of_no_tensors_has_no_dtype(folder: Path) -> None:
    (folder / UNET_WEIGHTS).write_bytes(b"\2" + b"\0" * 7 + b"[]")
    with pytest.raises(ModelError, match="not a safetensors file"):
        weights_dtype(folder)


def test_looking_at_weights_needs_no_torch() -> None:
    code = f"""
import sys
from pathlib import Path
from pipeline.model.check import check_weights
check_weights(Path({str(BUILT_IN["shapes"])!r}))
print([name for name in ("torch", "diffusers", "transformers") if name in sys.modules])
"""
    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "[]"
