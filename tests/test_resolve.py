"""What the job file calls a model, found and pinned; the Hub itself is not asked here."""

import json
import shutil
from fnmatch import fnmatch
from pathlib import Path

import huggingface_hub
import pytest
from huggingface_hub.errors import HTTPError  # type: ignore[attr-defined]  # of its HTTP library

from pipeline.errors import ModelError
from pipeline.model.recognize import require_index
from pipeline.model.resolve import BUILT_IN, LoraSource, ModelSource, in_any_home
from pipeline.model.selection import NO_VARIANTS, files_of_model, patterns_of_files

XL_INDEX = {
    "_class_name": "StableDiffusionXLPipeline",
    "_diffusers_version": "0.19.0",
    "force_zeros_for_empty_prompt": True,
    "feature_extractor": [None, None],
    "image_encoder": ["transformers", "CLIPVisionModelWithProjection"],
    "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    "scheduler": ["diffusers", "EulerDiscreteScheduler"],
    "text_encoder": ["transformers", "CLIPTextModel"],
    "tokenizer": ["transformers", "CLIPTokenizer"],
    "unet": ["diffusers", "UNet2DConditionModel"],
    "vae": ["diffusers", "AutoencoderKL"],
}


@pytest.fixture
def in_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "models" / "mine").mkdir(parents=True)
    (tmp_path / "style.safetensors").write_bytes(b"")
    return tmp_path


def test_a_folder_travels_by_its_absolute_path(in_folder: Path) -> None:
    loras = (LoraSource(lora_id="style.safetensors", weight=0.5), LoraSource(lora_id="."))
    pinned = ModelSource(model_id="models/mine", loras=loras).pinned()
    assert pinned.model_id == str(in_folder / "models" / "mine")
    assert pinned.revision is None
    files = [in_folder / "style.safetensors"] * 2
    assert [lora.lora_id for lora in pinned.loras] == [str(files[0]), str(in_folder)]
    assert pinned.lora_files() == tuple(zip(files, [0.5, 1.0], strict=True))
    assert pinned.pinned() == pinned


def test_a_folder_of_the_hubs_cache_is_a_folder(in_folder: Path) -> None:
    folder = in_folder / "snapshots" / "0123abc"
    folder.mkdir(parents=True)
    pinned = ModelSource(model_id="snapshots/0123abc").pinned()
    assert (pinned.model_id, pinned.revision) == (str(folder), None)
    assert pinned.folder() == folder


def test_the_built_in_model_is_that_of_each_machine() -> None:
    source = ModelSource(model_id="shapes")
    assert source.pinned() == source
    assert source.folder() == BUILT_IN["shapes"]


@pytest.mark.parametrize("model_id", ["shapes", "models/mine"])
def test_a_revision_of_what_has_none_is_refused(in_folder: Path, model_id: str) -> None:
    with pytest.raises(ModelError, match="only models of the Hub") as caught:
        ModelSource(model_id=model_id, revision="main").pinned()
    assert (caught.value.where, caught.value.value) == ("model.revision", "'main'")


def test_a_folder_without_an_index_is_named_for_what_it_is(in_folder: Path) -> None:
    (in_folder / "unet").mkdir()
    (in_folder / "unet/config.json").write_text('{"_class_name": "UNet2DConditionModel"}')
    (in_folder / "above").mkdir()
    shutil.copytree(BUILT_IN["shapes"], in_folder / "above" / "shapes")
    for name, says in (
        ("models/mine", "it has no files"),
        (".", "the model is in above/shapes"),
        ("above", "the model is in shapes"),
        ("unet", "it is one part of a model, a UNet2DConditionModel; give the folder above it"),
    ):
        with pytest.raises(ModelError, match=f"no model in diffusers format: {says}"):
            require_index(in_folder / name)
    require_index(in_folder / "above" / "shapes")


def tensors(*names: str) -> bytes:
    header = json.dumps({name: {"dtype": "F32", "shape": [0], "data_offsets": [0, 0]} for name in names}).encode()
    return len(header).to_bytes(8, "little") + header


@pytest.mark.parametrize(
    ("name", "body", "says"),
    [
        ("a.safetensors", tensors("model.diffusion_model.x", "first_stage_model.y"), "this file is a whole checkpoint"),
        ("a.safetensors", tensors("unet.x", "vae.y"), "this file is a whole checkpoint"),
        ("a.safetensors", tensors("double_blocks.0.x"), "this file is a single file of weights"),
        ("a.safetensors", tensors("lora_unet_x.lora_down.weight"), "this file is a LoRA"),
        ("a.safetensors", tensors("unet.x.lora_A.weight"), "this file is a LoRA"),
        ("a.safetensors", b"version https://git-lfs.github.com/spec/v1\noid x", "a git-lfs pointer"),
        ("a.safetensors", tensors("x")[:20], "incomplete"),
        ("a.ckpt", b"PK", "a pickled checkpoint, which is never opened"),
        ("a.bin", b"PK", "a pickled checkpoint, which is never opened"),
        ("a.gguf", b"GGUF", "one of GGUF weights, which are not supported"),
        ("a.onnx", b"", "one of ONNX weights, which are not supported"),
        ("a.txt", b"", "no weights"),
    ],
)
def test_a_file_is_no_model(in_folder: Path, name: str, body: bytes, says: str) -> None:
    (in_folder / name).write_bytes(body)
    with pytest.raises(ModelError, match=says) as caught:
        ModelSource(model_id=name).folder(weights=False)
    assert caught.value.allowed


@pytest.mark.parametrize("name", ["./nothing", "~nosuchuser/x", "x" * 5000, "a/b/c", "loop"])
def test_what_is_nowhere(in_folder: Path, name: str) -> None:
    (in_folder / "loop").symlink_to("loop")
    with pytest.raises(ModelError, match="no such model"):
        ModelSource(model_id=name).folder()
    with pytest.raises(ModelError, match="no such LoRA"):
        LoraSource(lora_id=name).file()


def test_a_cache_below_a_home_is_below_that_of_each_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("HOME", str(tmp_path / "driver"))
    shipped = in_any_home(tmp_path / "driver" / ".cache" / "darkroom")
    assert in_any_home(shipped) == shipped
    monkeypatch.setenv("HOME", str(tmp_path / "worker"))
    assert shipped.expanduser() == tmp_path / "worker" / ".cache" / "darkroom"
    assert in_any_home(tmp_path / "driver" / "cache") == tmp_path / "driver" / "cache"


def test_a_lora_that_is_no_safetensors_file_is_refused(in_folder: Path) -> None:
    (in_folder / "style.bin").write_bytes(b"")
    with pytest.raises(ModelError, match="no safetensors file is refused") as caught:
        LoraSource(lora_id="style.bin").file()
    assert (caught.value.where, caught.value.value) == ("model.loras", "'style.bin'")


COMMITS = {"main": "a" * 40, None: "a" * 40, "v1": "b" * 40}


@pytest.fixture
def hub(in_folder: Path, monkeypatch: pytest.MonkeyPatch) -> list[str | None]:
    """Instead of the Hub: branches with a commit each. Returns the revisions that are asked for, as they come."""
    asked: list[str | None] = []

    def snapshot(name: str, revision: str | None = None, **_: object) -> str:
        asked.append(revision)
        folder = in_folder / "hub" / name / "snapshots" / COMMITS.get(revision, str(revision))
        folder.mkdir(parents=True, exist_ok=True)
        (folder / "model_index.json").write_text("{}")
        (folder / "style.safetensors").write_bytes(b"")
        return str(folder)

    def file(name: str, path: str, revision: str | None = None) -> str:
        return f"{snapshot(name, revision)}/{path}"

    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    monkeypatch.setattr(huggingface_hub, "hf_hub_download", file)
    monkeypatch.setattr(huggingface_hub, "list_repo_files", lambda *_, **__: ["style.safetensors"])
    return asked


@pytest.mark.parametrize("revision", [None, "main", "v1"])
def test_what_is_of_the_hub_is_pinned_to_a_commit(hub: list[str | None], revision: str | None) -> None:
    commit = COMMITS[revision]
    pinned = ModelSource(model_id="org/name", revision=revision, loras=(LoraSource(lora_id="org/lora"),)).pinned()
    assert (pinned.revision, pinned.loras[0].revision) == (commit, COMMITS[None])
    assert hub == [revision, commit, None], "facts and weights are of one commit, though a branch may move"
    hub.clear()
    assert pinned.folder().name == commit
    assert pinned.lora_files()[0][0].parent.name == COMMITS[None]
    assert pinned.pinned() == pinned
    assert {*hub} == {commit, COMMITS[None]}, "a worker asks for commits alone"


def test_a_folder_that_the_hub_gives_for_want_of_a_list_is_no_model(
    hub: list[str | None], in_folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As its client does when only the index has come before the Hub says 429."""

    def index_alone(name: str, path: str, revision: str | None = None) -> str:
        index = in_folder / "hub" / name / "snapshots" / COMMITS[None] / path
        index.parent.mkdir(parents=True)
        index.write_text(json.dumps(XL_INDEX))
        return str(index)

    def snapshot(name: str, **_: object) -> str:
        return str(in_folder / "hub" / name / "snapshots" / COMMITS[None])

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", index_alone)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", snapshot)
    with pytest.raises(ModelError, match="did not list the files"):
        ModelSource(model_id="org/name").folder()


@pytest.mark.parametrize("error", [HTTPError("reset by peer"), RuntimeError("no space left"), OSError("no route")])
def test_what_breaks_a_download_off_is_the_models_error(
    in_folder: Path, monkeypatch: pytest.MonkeyPatch, error: Exception
) -> None:
    def broken(*_: object, **__: object) -> str:
        raise error

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", broken)
    with pytest.raises(ModelError, match=str(error)):
        ModelSource(model_id="org/name").folder()


def test_only_what_is_fetched_is_remote(hub: list[str | None], in_folder: Path) -> None:
    assert not ModelSource(model_id="models/mine", loras=(LoraSource(lora_id="."),)).pinned().remote
    assert ModelSource(model_id="models/mine", loras=(LoraSource(lora_id="org/lora"),)).pinned().remote
    assert ModelSource(model_id="org/name").pinned().remote
    assert ModelSource(model_id="s3://bucket/model").remote


@pytest.mark.parametrize(
    ("file", "fetched"),
    [
        ("model_index.json", True),
        ("unet/config.json", True),
        ("unet/diffusion_pytorch_model.safetensors", True),
        ("unet/diffusion_pytorch_model-00001-of-00002.safetensors", True),
        ("unet/diffusion_pytorch_model.safetensors.index.json", True),
        ("tokenizer/merges.txt", True),
        ("tokenizer/spiece.model", True),
        ("scheduler/scheduler_config.json", True),
        ("sd_xl_base_1.0.safetensors", False),
        ("unet/diffusion_pytorch_model.fp16.safetensors", False),
        ("unet/diffusion_pytorch_model.bin", False),
        ("safety_checker/model.safetensors", False),
        ("image_encoder/config.json", False),
        ("feature_extractor/preprocessor_config.json", False),
        ("vae_1_0/diffusion_pytorch_model.safetensors", False),
        ("README.md", False),
    ],
)
def test_what_is_fetched_of_the_hub(file: str, fetched: bool) -> None:
    wanted = patterns_of_files(XL_INDEX, ("json", "safetensors", "txt", "model"))
    assert (any(fnmatch(file, p) for p in wanted) and not any(fnmatch(file, p) for p in NO_VARIANTS)) == fetched
    chosen = files_of_model(
        [file, "unet/model.safetensors"], XL_INDEX, ("json", "safetensors", "txt", "model"), checked=False, where=""
    )
    assert (file in chosen) == fetched


def test_facts_need_json_only() -> None:
    assert patterns_of_files(XL_INDEX, ("json",))[:2] == ["model_index.json", "scheduler/*.json"]


def test_a_hub_cache_that_cannot_be_written_names_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    def no_room(*_: object, **__: object) -> str:
        Path("/proc/no-such-folder/hub").mkdir(parents=True)
        return ""

    monkeypatch.setattr(huggingface_hub, "hf_hub_download", no_room)
    with pytest.raises(ModelError, match="HF_HOME"):
        ModelSource(model_id="org/name").folder()
