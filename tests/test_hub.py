"""Models and LoRAs of the Hub, from a server of its kind on loopback."""

import json
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from huggingface_hub import constants, hf_api

from pipeline.errors import ModelError
from pipeline.model.check import check_weights
from pipeline.model.fingerprint import DigestCache, fingerprint
from pipeline.model.resolve import BUILT_IN, LoraSource, ModelSource
from tests.servers.hub import COMMIT, Hub, serving

UNET = "unet/diffusion_pytorch_model.safetensors"


@pytest.fixture
def hub(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Hub]:
    with serving(tmp_path / "hub") as server:
        monkeypatch.setattr(constants, "ENDPOINT", server.endpoint)
        template = f"{server.endpoint}/{{repo_id}}/resolve/{{revision}}/{{filename}}"
        monkeypatch.setattr(constants, "HUGGINGFACE_CO_URL_TEMPLATE", template)
        monkeypatch.setattr(hf_api.api, "endpoint", server.endpoint)
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)
        monkeypatch.chdir(tmp_path)
        yield server


@pytest.fixture
def repository(hub: Hub) -> Path:
    return Path(shutil.copytree(BUILT_IN["shapes"], hub.root / "org" / "model"))


def weights_read(hub: Hub) -> list[str]:
    return sorted(name for name in hub.read if name.endswith(".safetensors"))


def test_plain_weights_alone_are_fetched(hub: Hub, repository: Path, tmp_path: Path) -> None:
    for name in (UNET, "vae/diffusion_pytorch_model.safetensors"):
        shutil.copy(repository / name, repository / name.replace(".", ".fp16."))
    pinned = ModelSource(model_id="org/model").pinned()
    assert pinned.revision == COMMIT
    assert not [name for name in hub.read if "fp16" in name]
    digests = DigestCache(tmp_path / "digests")
    assert fingerprint(pinned.folder(), digests) == fingerprint(BUILT_IN["shapes"], digests)


def test_a_variant_alone_is_fetched(hub: Hub, repository: Path) -> None:
    (repository / UNET).rename(repository / UNET.replace(".", ".fp16."))
    shutil.copy(repository / "vae/diffusion_pytorch_model.safetensors", repository / "vae/x.fp16.safetensors")
    folder = ModelSource(model_id="org/model").folder()
    check_weights(folder)
    assert weights_read(hub) == [
        "text_encoder/model.safetensors",
        UNET.replace(".", ".fp16."),
        "vae/diffusion_pytorch_model.safetensors",
    ]


def test_a_variant_is_found_again_without_the_hub(hub: Hub, repository: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (repository / UNET).rename(repository / UNET.replace(".", ".fp16."))
    pinned = ModelSource(model_id="org/model").pinned()
    monkeypatch.setattr(constants, "HF_HUB_OFFLINE", True)
    assert pinned.folder() == ModelSource(model_id="org/model").folder()
    check_weights(pinned.folder())


@pytest.mark.parametrize(
    ("suffixes", "says"),
    [
        ((".fp16.safetensors", ".bf16.safetensors"), "several variants and no plain files"),
        ((".bin",), "pickled weights are refused"),
        ((".msgpack",), "Flax weights cannot be loaded"),
        ((), "no weights"),
    ],
)
def test_weights_that_cannot_be_loaded(hub: Hub, repository: Path, suffixes: tuple[str, ...], says: str) -> None:
    (repository / UNET).unlink()
    for suffix in suffixes:
        (repository / UNET).with_suffix(suffix).write_bytes(b"")
    with pytest.raises(ModelError, match=says) as caught:
        ModelSource(model_id="org/model").folder()
    assert caught.value.where == "org/model: unet"
    assert not [name for name in hub.read if name.startswith("unet/d")]


@pytest.mark.parametrize(
    ("files", "says"),
    [
        (["style.safetensors", "README.md"], "single files, style.safetensors: for a checkpoint, convert it once"),
        (["checkpoint.ckpt"], "single files, checkpoint.ckpt"),
        (["adapter_config.json", "adapter_model.safetensors"], "it is an adapter; give it in model.loras"),
        (["config.json", "diffusion_pytorch_model.safetensors"], "one part of a model"),
        (["modular_model_index.json"], "a modular pipeline"),
        (["flux-q4.gguf"], "it holds GGUF weights"),
        (["unet/model.onnx"], "it holds ONNX weights"),
        (["flax_model.msgpack"], "it holds Flax weights"),
        (["xl/model_index.json", "small/model_index.json"], "the model is in small, xl"),
    ],
)
def test_a_repository_that_is_no_model(hub: Hub, files: list[str], says: str) -> None:
    for name in files:
        (hub.root / "org/other" / name).parent.mkdir(parents=True, exist_ok=True)
        (hub.root / "org/other" / name).write_bytes(b"{}")
    with pytest.raises(ModelError, match=f"no model in diffusers format: .*{says}"):
        ModelSource(model_id="org/other").folder(weights=False)
    assert hub.read == []


@pytest.fixture
def loras(hub: Hub) -> Hub:
    for name in ("a.safetensors", "b.safetensors", "more/c.safetensors", "d.bin"):
        (hub.root / "org/loras" / name).parent.mkdir(parents=True, exist_ok=True)
        (hub.root / "org/loras" / name).write_bytes(name.encode())
    return hub


@pytest.mark.parametrize("name", ["b.safetensors", "more/c.safetensors"])
@pytest.mark.parametrize("revision", [None, "main"])
def test_a_named_lora_alone_is_fetched(loras: Hub, name: str, revision: str | None) -> None:
    by_id = LoraSource(lora_id=f"org/loras/{name}", revision=revision)
    by_key = LoraSource(lora_id="org/loras", file_name=name, revision=revision)
    pinned = by_id.pinned()
    assert pinned == by_key.pinned() == pinned.pinned()
    assert (pinned.lora_id, pinned.file_name, pinned.revision) == ("org/loras", name, COMMIT)
    assert pinned.file().read_bytes() == name.encode()
    assert loras.read == [name]


def test_a_repository_of_several_loras_is_refused_with_the_list(loras: Hub) -> None:
    with pytest.raises(ModelError, match=r"here are 2: a\.safetensors, b\.safetensors") as caught:
        LoraSource(lora_id="org/loras").file()
    assert caught.value.value == "'org/loras'"
    assert loras.read == []
    (loras.root / "org/loras/a.safetensors").unlink()
    assert LoraSource(lora_id="org/loras").file().name == "b.safetensors"


@pytest.mark.parametrize(
    ("lora", "says"),
    [
        (LoraSource(lora_id="org/loras/d.bin"), "no safetensors file is refused"),
        (LoraSource(lora_id="org/loras", file_name="d.bin"), "no safetensors file is refused"),
        (LoraSource(lora_id="org/loras/a.safetensors", file_name="b.safetensors"), "names a file twice"),
        (LoraSource(lora_id="org/loras", file_name="e.safetensors"), "did not give it"),
        (LoraSource(lora_id="org/loras/e.safetensors"), "did not give it"),
    ],
)
def test_loras_that_are_refused(loras: Hub, lora: LoraSource, says: str) -> None:
    with pytest.raises(ModelError, match=says) as caught:
        lora.file()
    assert caught.value.where == "model.loras"
    assert loras.read == []


def test_a_file_of_a_local_folder(tmp_path: Path) -> None:
    for name in ("a.safetensors", "b.safetensors"):
        (tmp_path / name).write_bytes(name.encode())
    lora = LoraSource(lora_id=str(tmp_path), file_name="b.safetensors")
    assert lora.pinned().file() == tmp_path / "b.safetensors"
    for wrong, says in (
        ({"lora_id": str(tmp_path)}, "here are 2: a.safetensors, b.safetensors"),
        ({"lora_id": str(tmp_path), "file_name": "c.safetensors"}, "there is no such file"),
        ({"lora_id": str(tmp_path / "a.safetensors"), "file_name": "a.safetensors"}, "is a file already"),
        ({"lora_id": str(tmp_path), "file_name": "a.safetensors", "revision": "main"}, "have revisions"),
    ):
        with pytest.raises(ModelError, match=says):
            LoraSource(**wrong).file()  # type: ignore[arg-type]  # texts alone


def test_a_model_index_of_a_variant(hub: Hub, repository: Path) -> None:
    """Split weights of a variant come with their index, those of another do not."""
    names = [f"diffusion_pytorch_model.fp16-0000{number}-of-00002.safetensors" for number in (1, 2)]
    (repository / "unet" / names[1]).write_bytes(b"\2" + b"\0" * 7 + b"{}")
    (repository / UNET).rename(repository / "unet" / names[0])
    index = repository / "unet" / "diffusion_pytorch_model.safetensors.index.fp16.json"
    index.write_text(json.dumps({"weight_map": dict(zip("ab", names, strict=True))}))
    check_weights(ModelSource(model_id="org/model").folder())
    assert [name for name in weights_read(hub) if name.startswith("unet")] == [f"unet/{name}" for name in names]
