"""What is said of a manifest's rows: settings that come from columns, signs of other programs' syntax."""

from pathlib import Path

import pyarrow as pa
import pytest

from pipeline.manifest import survey
from pipeline.manifest.check import check_manifest, rejection_error
from pipeline.manifest.signs import Signs
from tests.manifest.files import opened, write


def test_own_values_are_counted_under_the_names_of_the_files(tmp_path: Path) -> None:
    table = {
        "prompt": ["a", "b", "c"], "WIDTH": [64, 64, 96], "HEIGHT": [64, 64, 64], "seed": [1, 1, None],
        "cfg": [None, 3.0, None], "steps": pa.nulls(3),
    }  # fmt: skip
    write(tmp_path / "m" / "a.parquet", table)
    write(tmp_path / "m" / "b.parquet", {"prompt": ["d"], "seeds": [[1, 2]]})
    said = check_manifest(opened(tmp_path / "m", {"cfg": "guidance_scale"})).own_values
    assert list(map(str, said)) == [
        "seeds come from the manifest's columns seed and seeds: 2 seeds",
        "guidance scales come from the manifest's column cfg: 1 guidance scale",
        "sizes come from the manifest's columns WIDTH and HEIGHT: 2 sizes",
    ]
    free = {"WIDTH": "source_width", "HEIGHT": None, "cfg": None, "seed": None, "seeds": None}
    assert check_manifest(opened(tmp_path / "m", free)).own_values == ()


def test_sizes_that_do_not_fit_name_the_mapping_that_leaves_them_out(tmp_path: Path) -> None:
    path = write(
        tmp_path / "m.parquet", {"prompt": ["a", "b"], "WIDTH": [1023, 64], "HEIGHT": [64, 64], "seed": [1, -1]}
    )
    manifest = opened(path)
    assert "manifest_columns: {WIDTH: null, HEIGHT: null}" in str(rejection_error(check_manifest(manifest), manifest))
    free = opened(path, {"WIDTH": None, "HEIGHT": None})
    assert "leaves the columns out" not in str(rejection_error(check_manifest(free), free))


def test_many_values_are_counted_up_to_a_limit(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(survey, "MAX_VALUES", 3)
    path = write(tmp_path / "m.parquet", {"prompt": ["a"] * 5, "seed": [1, 2, 3, 4, 5]})
    (said,) = check_manifest(opened(path)).own_values
    assert str(said) == "seeds come from the manifest's column seed: more than 3 seeds"


@pytest.mark.parametrize(
    "prompt",
    [
        "a (ring:1.3)", "a ((ring))", "a <lora:ink:0.8>", "<hypernet:x:1>", "__color__ star", "{red|blue} star",
        "a star BREAK a ring", "a cross AND a circle:1.2", "a [red:blue:0.5] star", "a [red|blue] star",
        "--prompt a --seed 7", "a star --ar 16:9 --v 5", "Negative prompt: ugly",
        "/imagine prompt: a star", "a embedding:EasyNegative", "{prompt}, ink", "a\nSteps: 20, Sampler: Euler a",
    ],
)  # fmt: skip
def test_signs_of_other_programs(prompt: str) -> None:
    signs = Signs()
    signs.see(pa.table({"prompt": ["a red star", prompt, None], "negative_prompt": ["(bad:2)", None, None]}))
    (said,) = signs.warnings()
    assert said.startswith("2 prompts hold signs")


def test_words_for_an_absent_value_are_counted() -> None:
    signs = Signs()
    signs.see(pa.table({"prompt": ["nan", "a", "none of them"], "negative_prompt": [" NULL ", None, r"\N"]}))
    (said,) = signs.warnings()
    assert "such as 'nan': 3; they are drawn as text" in said


@pytest.mark.parametrize(
    "prompt",
    [
        "a red star (1887) by [sic] {x}", "SALT AND PEPPER", "COFFEE BREAK", "a -- b", "well-known", "ratio 16:9",
        "snake_case and __init", "3 < 4 > 2", "a photo: 3 cats", "a (small) ring | a star", "BREAK THE RULES",
    ],
)  # fmt: skip
def test_plain_prompts_hold_no_signs(prompt: str) -> None:
    signs = Signs()
    signs.see(pa.table({"prompt": [prompt]}))
    assert list(signs.warnings()) == []
