"""What a submitted job takes along: what it names by relative paths, all of it, and nothing else."""

import os
from collections.abc import Mapping
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import load_job
from pipeline.distributed import parcel
from pipeline.distributed.parcel import JOB_FOLDER, check_output, left_out, pack, parcel_of, shipped_name
from pipeline.errors import InputError


@pytest.fixture(autouse=True)
def shell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A working directory with more in it than a job needs."""
    tmp_path = tmp_path / "shell"
    tmp_path.mkdir()
    for name in ("prompts/a.parquet", "prompts/deep/b.parquet", "one.parquet"):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pq.write_table(pa.table({"prompt": ["a"]}), tmp_path / name)
    (tmp_path / ".env").write_text("SECRET=1")
    (tmp_path / ".gitignore").write_text("*.parquet\n")
    (tmp_path / "prompts" / "notes.txt").write_text("x")
    (tmp_path / "model" / "unet").mkdir(parents=True)
    (tmp_path / "model" / "model_index.json").write_text("{}")
    (tmp_path / "model" / "unet" / "w.safetensors").write_text("")
    (tmp_path / "style.safetensors").write_text("")
    (tmp_path / "blocked.txt").write_text("gun\n")
    (tmp_path / "job.yaml").write_text("")
    monkeypatch.chdir(tmp_path)
    return tmp_path


def shipped(manifest: str, job_file: Path | None = Path("job.yaml"), **keys: Any) -> Mapping[str, Path]:
    settings: list[tuple[str, Any]] = [("manifest", manifest), *keys.items()]
    return parcel_of(load_job(None, settings, date.today()), job_file)


@pytest.mark.parametrize(
    ("manifest", "files"),
    [
        ("one.parquet", ["one.parquet"]),
        ("./one.parquet", ["one.parquet"]),
        ("prompts", ["prompts/a.parquet", "prompts/deep/b.parquet"]),
        ("prompts/", ["prompts/a.parquet", "prompts/deep/b.parquet"]),
        ("prompts/*.parquet", ["prompts/a.parquet"]),
        ("**/*.parquet", ["one.parquet", "prompts/a.parquet", "prompts/deep/b.parquet"]),
        ("s3://bucket/prompts/*.parquet", []),
        ("/shared/prompts.parquet", []),
    ],
)
def test_manifests(manifest: str, files: list[str]) -> None:
    assert sorted(shipped(manifest)) == sorted(["job.yaml", *files])


def test_a_manifest_that_is_a_link_keeps_its_name(shell: Path) -> None:
    (shell / "today.parquet").symlink_to("one.parquet")
    found = shipped("today.parquet")
    assert set(found) == {"job.yaml", "today.parquet"}
    pack(found, shell / "packed")
    assert pq.read_table(shell / "packed" / JOB_FOLDER / "today.parquet").num_rows == 1
    assert not (shell / "packed" / JOB_FOLDER / "today.parquet").is_symlink()


def test_models_and_loras(shell: Path) -> None:
    loras = [{"id": "style.safetensors"}]
    found = shipped("one.parquet", None, **{"model.id": "model", "model.loras": loras})
    assert set(found) == {"one.parquet", "model/model_index.json", "model/unet/w.safetensors", "style.safetensors"}
    assert set(shipped("one.parquet", None, **{"model.id": "org/name"})) == {"one.parquet"}


@pytest.mark.parametrize(
    ("uri", "files"),
    [("blocked.txt", ["blocked.txt"]), ("./blocked.txt", ["blocked.txt"]), ("/shared/x.txt", []), ("s3://b/x.txt", [])],
)
def test_block_lists(uri: str, files: list[str]) -> None:
    assert set(shipped("one.parquet", None, **{"prompts.blocklist": uri})) == {"one.parquet", *files}


def test_without_a_job_file_and_with_one_elsewhere(shell: Path) -> None:
    assert set(shipped("one.parquet", None)) == {"one.parquet"}
    assert shipped_name(Path("jobs/a.yaml")) == "jobs/a.yaml"
    assert shipped_name(Path("../a.yaml")) == "a.yaml"
    assert shipped_name(shell / "a.yaml") == "a.yaml"


@pytest.mark.parametrize(
    ("manifest", "keys", "says"),
    [
        ("none.parquet", {}, "no such manifest"),
        ("../one.parquet", {}, "no such manifest"),
        ("prompts/../../x/one.parquet", {}, "takes along what lies in the working directory"),
        ("one.parquet", {"model.id": "./none"}, "no such model"),
        ("one.parquet", {"prompts.blocklist": "none.txt"}, "no such block list"),
        ("one.parquet", {"prompts.blocklist": "prompts"}, "no such block list"),
        ("one.parquet", {"prompts.blocklist": "../x/b.txt"}, "takes along what lies in the working directory"),
    ],
)
def test_what_cannot_be_taken_along(shell: Path, manifest: str, keys: dict[str, Any], says: str) -> None:
    other = shell.parent / "x"
    other.mkdir()
    pq.write_table(pa.table({"prompt": ["a"]}), other / "one.parquet")
    (other / "b.txt").write_text("gun\n")
    with pytest.raises(InputError, match=says):
        shipped(manifest, **keys)


def test_large_files_are_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(parcel, "MOST_BYTES", 100)
    with pytest.raises(InputError, match=r"too large .* one\.parquet the largest file"):
        shipped("one.parquet")


@pytest.mark.parametrize("uri", ["renders/a", "./a", "a"])
def test_relative_outputs_are_refused(uri: str) -> None:
    with pytest.raises(InputError, match="no place for a relative output"):
        check_output(uri)


@pytest.mark.parametrize("uri", ["s3://bucket/a", "/shared/a", "file:///shared/a", "~/a"])
def test_outputs_that_all_nodes_reach(uri: str) -> None:
    check_output(uri)


def test_outputs_and_secrets_of_a_directory_are_left_out(shell: Path) -> None:
    run = shell / "renders" / "a" / "_darkroom"
    run.mkdir(parents=True)
    (run / "run.json").write_text("{}")
    found = left_out(shell)
    assert "/renders/a" in found
    assert {".env", ".git", ".venv"} <= set(found)
    assert os.getcwd() == str(shell)
