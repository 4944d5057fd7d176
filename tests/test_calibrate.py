"""``darkroom calibrate`` as a user runs it, on a tiny model."""

import json
import re
import shutil

import pytest

from pipeline.rendering.calibration import GOOD_ENOUGH
from tests import tiny_models
from tests.conftest import Command
from tests.test_end_to_end import Darkroom, write_manifest

WORDS = ("--manifest", "m.parquet", "--model", "model")


@pytest.fixture(scope="module")
def darkroom(tmp_path_factory: pytest.TempPathFactory) -> Darkroom:
    folder = tmp_path_factory.mktemp("user")
    model = tiny_models.save(tiny_models.stable_diffusion(), folder / "model")
    index = json.loads((model / "model_index.json").read_text())
    fallback = shutil.copytree(model, folder / "fallback")
    (fallback / "model_index.json").write_text(json.dumps({**index, "_class_name": "StableDiffusionPAGPipeline"}))
    write_manifest(folder / "m.parquet", [{"prompt": "a"}])
    return Darkroom(folder)


def test_a_table_for_each_size_and_what_to_set(darkroom: Darkroom) -> None:
    said = darkroom.run("calibrate", *WORDS, "--seconds", "0.1", "--sizes", "32x32,64x32")
    tables = re.split(r"^.*model, (?=\d+x\d+ px)", said, flags=re.M)[1:]
    assert [table.split(" px, float32")[0] for table in tables] == ["64x32", "32x32"]
    best_of_sizes = []
    for table in tables:
        found = [(int(rows), float(rate)) for rows, rate in re.findall(r"^ *(\d+) +([\d.]+) +[\d.]+ +-$", table, re.M)]
        assert [rows for rows, _ in found] == [2**n for n in range(1, len(found) + 1)]
        assert len(found) >= 4
        (advice,) = re.findall(r"^best with (\d+) rows$", table, re.M)
        best = max(rate for _, rate in found)
        assert dict(found)[int(advice)] >= GOOD_ENOUGH * best - 0.1, "rates are rounded to tenths"
        assert all(rate < GOOD_ENOUGH * best + 0.1 for rows, rate in found if rows < int(advice))
        best_of_sizes.append(int(advice))
    assert said.endswith(f"\n--set render.rows={min(best_of_sizes)}\n")
    darkroom.run("plan", *WORDS, "--set", f"render.rows={min(best_of_sizes)}")


def test_json_has_what_the_table_says(darkroom: Darkroom) -> None:
    told = json.loads(darkroom.run("calibrate", *WORDS, "--seconds", "0.1", "--sizes", "32x32", "--json"))
    (size,) = told["sizes"]
    assert (told["dtype"], told["rows"], size["width"], size["height"]) == ("float32", size["best"], 32, 32)
    assert told["rows"] in [one["rows"] for one in size["measured"]]


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (["--set", "model.call={clip_skip: 1}"], "one call per image, which has no batch to calibrate"),
        (["--model", "fallback"], "one call per image, which has no batch to calibrate"),
        (["--sizes", "34x32"], "does not fit the model"),
        (["--sizes", "8196x32"], "each from 1 to 8192"),
        (["--seconds", "0"], "seconds"),
        (["--set", "render.rows=1"], "a whole number from 2 to 1024"),
        (["--manifest", "none.parquet"], "no such manifest"),
    ],
)
def test_what_cannot_be_calibrated_is_refused(
    darkroom: Darkroom, monkeypatch: pytest.MonkeyPatch, command: Command, words: list[str], says: str
) -> None:
    monkeypatch.chdir(darkroom.folder)
    code, _, said = command("calibrate", *WORDS, *words)
    assert code == 2
    assert says in said
    assert "Traceback" not in said
