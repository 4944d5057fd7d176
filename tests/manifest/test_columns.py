"""Names of columns: trimmed, mapped, renamed, left out; names that may mean a setting are said, never taken."""

import shlex
from pathlib import Path
from typing import Any

import pytest

from pipeline.errors import ManifestError
from pipeline.manifest.columns import COLUMNS, ColumnMapping
from pipeline.manifest.foreign_names import SIZE, meant
from tests.manifest.files import opened, rows, write

MEANT = {
    "prompt": ["caption", "text", "TEXT", "Caption", "promt", "positive", "propmt"],
    "negative_prompt": ["Negative Prompt", "negativePrompt", "negative", "neg_prompt", "negativ_prompt"],
    "prompt_id": ["id", "key", "promptId", "image_id"],
    "seed": ["random_seed", "noise_seed", "Seed:", "randomSeed", "s\u0435\u0435d", "\uff33\uff45\uff45\uff44"],
    "guidance_scale": ["cfg", "cfg_scale", "CFG Scale", "cfgScale", "guidance", "guidence_scale", "guidanceScale"],
    "num_inference_steps": ["n_steps", "Steps: ", "num_steps", "inference_steps", "step", "numInferenceSteps"],
    "scheduler": ["Sampler", "sampler_name", "Sampling Method", "sheduler", "schedular"],
    "width": ["w", "W", "image_width", "widht"],
    "height": ["h", "image_height", "hieght", "hight"],
    SIZE: ["Size", "resolution", "image size"],
}  # fmt: skip


@pytest.mark.parametrize("ours", MEANT)
def test_names_that_may_mean_a_setting(ours: str) -> None:
    assert {name: meant(name) for name in MEANT[ours]} == dict.fromkeys(MEANT[ours], ours)


@pytest.mark.parametrize(
    "name",
    ["model", "strength", "mask", "category", "note", "speed", "weight", "url", "score", "hash", "similarity", ""],
)
def test_names_that_mean_no_setting(name: str) -> None:
    assert meant(name) is None


def test_near_names_are_said_with_the_mapping_to_write(tmp_path: Path) -> None:
    table: dict[str, Any] = {"Prompt": ["a"], "Negative Prompt": ["x"], "CFG Scale": [3], "Sampler": ["Euler a"]}
    path = write(tmp_path / "m.parquet", table)
    warnings = opened(path).warnings
    assert len(warnings) == 3
    for said, name, setting in zip(
        warnings, list(table)[1:], ("negative_prompt", "guidance_scale", "scheduler"), strict=True
    ):
        assert f"{{{name}: {setting}}}" in said
        assert f"--column {shlex.quote(f'{name}={setting}')}" in said
        assert f"{{{name}: {name}}}" in said
    assert "euler_ancestral for 'Euler a'" in warnings[2]
    kept = opened(path, {"Negative Prompt": "negative_prompt", "CFG Scale": "CFG Scale", "Sampler": None})
    assert (kept.warnings, kept.extra_schema.names) == ((), ["CFG Scale"])
    (row,) = rows(kept)
    assert (row["negative_prompt"], row["CFG Scale"], row["guidance_scale"]) == ("x", 3, None)


def test_a_setting_that_a_column_gives_needs_no_other(tmp_path: Path) -> None:
    table = {
        "prompt": ["a"],
        "caption": ["b"],
        "seed": [1],
        "noise_seed": [2],
        "width": [64],
        "height": [64],
        "size": [9],
    }
    assert opened(write(tmp_path / "m.parquet", table)).warnings == ()


def test_blanks_around_names_are_no_part_of_them(tmp_path: Path) -> None:
    table = {" prompt": ["a"], "\ufeffSeed ": [7], "note\u00a0": ["n"], " cfg": [3]}
    read = opened(write(tmp_path / "m.parquet", table), {"cfg": "guidance_scale"})
    assert read.extra_schema.names == ["note"]
    (row,) = rows(read)
    assert (row["prompt"], row["seeds"], row["note"], row["guidance_scale"]) == ("a", [7], "n", 3.0)
    with pytest.raises(ManifestError, match="several columns have the same name"):
        opened(write(tmp_path / "n.parquet", {"prompt": ["a"], "x": [1], "x ": [2]}))


def test_names_of_the_metadata_travel_under_another_name_or_not_at_all(tmp_path: Path) -> None:
    table = {"prompt": ["a"], "status": ["success"], "file_name": ["a.png"], "width": [1], "height": [2], "key": ["7"]}
    path = write(tmp_path / "m.parquet", table)
    with pytest.raises(ManifestError, match="Darkroom's own metadata: status, file_name") as caught:
        opened(path)
    assert "{status: source_status, file_name: source_file_name}" in str(caught.value.allowed)
    assert "{status: null, file_name: null}" in str(caught.value.allowed)
    assert "--column status=source_status" in str(caught.value.allowed)
    columns: ColumnMapping = {
        "status": None, "key": "prompt_id",
        "file_name": "source_file", "width": "source_width", "height": "source_height",
    }  # fmt: skip
    (row,) = rows(opened(path, columns))
    assert (row["prompt_id"], row["width"], row["height"]) == ("7", None, None)
    assert {name: row[name] for name in row if name.startswith("source")} == {
        "source_file": "a.png", "source_width": 1, "source_height": 2
    }  # fmt: skip
    assert "status" not in row


def test_advice_names_the_column_of_the_file(tmp_path: Path) -> None:
    path = write(tmp_path / "m.parquet", {"prompt": ["a"], "its name": [1]})
    with pytest.raises(ManifestError, match="Darkroom's own metadata: file_name") as caught:
        opened(path, {"its name": "file_name"})
    assert "{its name: source_its name} renames" in str(caught.value.allowed)
    assert "--column 'its name=source_its name'" in str(caught.value.allowed)


def test_a_name_with_nul_cannot_travel(tmp_path: Path) -> None:
    path = write(tmp_path / "m.parquet", {"prompt": ["a"], "a\0b": [1]})
    with pytest.raises(ManifestError, match="NUL"):
        opened(path)
    assert opened(path, {"a\0b": "x"}).extra_schema.names == ["x"]


def test_a_name_may_be_another_column_s_old_name(tmp_path: Path) -> None:
    path = write(tmp_path / "m.parquet", {"a": ["one"], "b": ["two"], "prompt": ["p"]})
    (row,) = rows(opened(path, {"a": "b", "b": "a"}))
    assert (row["a"], row["b"]) == ("two", "one")
    (row,) = rows(opened(path, {"prompt": "old", "b": "prompt"}))
    assert (row["prompt"], row["old"], row["a"]) == ("two", "p", "one")


@pytest.mark.parametrize(
    ("columns", "says"),
    [
        ({"x": "a"}, "two columns are both a"),
        ({"x": "task_id"}, "Darkroom's own metadata: task_id"),
        ({"x": "manifest_row"}, "Darkroom's own metadata"),
        ({"x": ""}, "invalid name"),
        ({"x": " y"}, "invalid name"),
        ({"x": "Seed"}, "invalid name"),
        ({"x": "guidence_scale"}, "invalid name"),
        ({"x": "seed", "a": "seed"}, "2 columns are mapped to seed"),
        ({"nothing": None}, "does not exist"),
        ({"prompt": None}, "no prompt column"),
        ({"prompt": "text"}, "no prompt column"),
    ],
)
def test_mappings_that_cannot_be_meant(tmp_path: Path, columns: ColumnMapping, says: str) -> None:
    path = write(tmp_path / "m.parquet", {"prompt": ["p"], "a": ["b"], "x": [1]})
    with pytest.raises(ManifestError, match=says) as caught:
        opened(path, columns)
    assert caught.value.allowed


@pytest.mark.parametrize(
    ("name", "written"), [("TEXT", "{TEXT: prompt}"), ("Text: ", '{"Text: ": prompt}'), ("on", "")]
)
def test_no_prompt_column_names_the_mapping_to_write(tmp_path: Path, name: str, written: str) -> None:
    with pytest.raises(ManifestError, match="no prompt column") as caught:
        opened(write(tmp_path / "m.parquet", {name: ["a"]}))
    assert (written or "{<its name>: prompt}") in str(caught.value.allowed)


def test_columns_of_ours_that_are_not_meant_can_be_kept(tmp_path: Path) -> None:
    for table in ({"width": [1]}, {"seed": [[1]]}, {"seed": [1], "seeds": [[1]]}):
        name = next(iter(table))
        path = write(tmp_path / "m.parquet", {"prompt": ["a"], **table})
        with pytest.raises(ManifestError) as caught:
            opened(path)
        assert f"{name}: source_{name}" in str(caught.value.allowed)
        assert opened(path, {name: f"source_{name}"}).extra_schema.names == [f"source_{name}"]


def test_every_setting_has_its_names() -> None:
    assert {meant(name) for name in COLUMNS} == set(COLUMNS)
