"""What is said of files and values of other programs: the one thing to write."""

from pathlib import Path

import pytest

from pipeline.errors import ManifestError
from pipeline.manifest.advice import TEXT_ENDINGS, as_mapping, building_advice
from pipeline.manifest.read import read_rows
from pipeline.manifest.sources import FORMATS
from pipeline.strict_yaml import parse_yaml
from tests.manifest.files import opened, write


def test_a_text_file_is_answered_with_the_command_to_type(tmp_path: Path) -> None:
    path = tmp_path / "my prompts.csv"
    path.write_text("prompt\na\n")
    with pytest.raises(ManifestError, match="not a Parquet file") as caught:
        opened(path)
    assert f"`darkroom manifest build '{path}'`, then give '{path.with_suffix('.parquet')}'" in str(
        caught.value.allowed
    )
    assert "download" in building_advice("s3://bucket/in", "p.csv")
    assert set(TEXT_ENDINGS) == set(FORMATS)


def test_samplers_of_the_web_ui_are_answered_with_our_names(tmp_path: Path) -> None:
    path = write(tmp_path / "m.parquet", {"prompt": ["a", "b", "c"], "Sampler": ["Euler", "ddim", "no such"]})
    (batch,) = read_rows(opened(path, {"Sampler": "scheduler"}))
    assert [row.row for row in batch.rejected] == [0, 2]
    assert all(row.allowed.startswith("euler for 'Euler'; ddim, euler") for row in batch.rejected)


@pytest.mark.parametrize(
    "name", ["a", "CFG Scale", "Text:", "null", "On", 'a "b"', "1", "é", "a: b", "#", "", "{", "~", " x", "se\u200bed"]
)
def test_mappings_are_yaml(name: str) -> None:
    assert parse_yaml(as_mapping({name: "prompt", "url": None})) == {name: "prompt", "url": None}
