"""Prompts that are cut are counted without torch, as the renderer records them."""

import json
import subprocess
import sys
from collections.abc import Callable
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import CLIPTokenizer, T5Tokenizer

from pipeline.api import _loaded, _tasks
from pipeline.config import load_job
from pipeline.model import windows
from pipeline.model.facts import read_facts
from pipeline.model.resolve import BUILT_IN
from pipeline.model.windows import Windows
from pipeline.prepare import prepare, select
from pipeline.rendering.loading import load_model
from pipeline.rendering.results import Rendered
from tests import tiny_models
from tests.rendering.test_published import spiece, with_spiece

__all__ = ["spiece"]

TEXTS = ["", "a cat", "x" * 13, "x" * 14, "x" * 15, "x" * 16, "  many   spaces  here ", "a\nb\tc d e f g h", "ü" * 7,
         "ü" * 8, "ﷺ and " * 3, "İ" * 6, "word " * 24, "word " * 30, "word " * 60, "UPPER " * 50, "y" * 119, "y" * 120,
         "z" * 254, "z" * 255, "z" * 298, "z" * 299, "w" * 510, "w" * 511, "<|endoftext|>" * 14, "<|endoftext|>" * 15,
         "</s>" * 118, "</s> " * 119]  # fmt: skip
FAMILIES = [
    tiny_models.stable_diffusion, tiny_models.stable_diffusion_xl, tiny_models.stable_diffusion_3, tiny_models.flux,
    tiny_models.pixart, lambda: tiny_models.pixart(sigma=True),
]  # fmt: skip


def cut(found: Windows, texts: list[str]) -> list[bool]:
    masks = found.cut(pa.chunked_array([texts]))
    assert masks is not None, found.not_counted
    return [any(row) for row in zip(*masks.values(), strict=True)]


@pytest.mark.parametrize("make", FAMILIES)
def test_every_family_agrees_with_what_the_renderer_records(make: Callable[[], Any], tmp_path: Path) -> None:
    folder = tiny_models.save(make(), tmp_path / "model")
    adapter = load_model(folder, dtype="float32", device="cpu").adapter
    found = Windows(folder, read_facts(folder))
    assert found.tokens == adapter.windows()
    recorded = [
        truncated for at in range(0, len(TEXTS), 8) for truncated in adapter.encode(TEXTS[at : at + 8]).truncated
    ]
    assert cut(found, TEXTS) == recorded
    assert {*recorded} == {True, False}


def test_a_word_of_megabytes_is_looked_at_as_far_as_any_window_reaches() -> None:
    counter = windows._Counter(BUILT_IN["shapes"] / "tokenizer", ["transformers", "CLIPTokenizer"])
    beginning, whole = counter.tokens(pa.array(["ab" * 100_000, "ab" * 1_000_000])).tolist()
    assert whole == beginning > 512


def test_the_plan_counts_the_rows_that_the_renderer_marks(tmp_path: Path) -> None:
    tiny_models.save(tiny_models.stable_diffusion(), tmp_path / "model")
    pq.write_table(
        pa.table({"prompt": ["short", "x" * 40, "a cat", "many little words that do not fit"]}), tmp_path / "m"
    )
    keys = {"manifest": tmp_path / "m", "model.id": tmp_path / "model", "output.uri": tmp_path / "out"}
    sweep = [("sweep.seeds", "0-1"), ("sweep.num_inference_steps", "1")]
    prepared = prepare(load_job(None, [*((key, str(value)) for key, value in keys.items()), *sweep], date(2026, 1, 1)))
    renderer, _, space = _loaded(prepared, "cpu")
    outcomes = list(renderer.render(_tasks(prepared, space, select(prepared, limit=None, sample=None))))
    marked = [outcome.task.recipe.prompt for outcome in outcomes if isinstance(outcome, Rendered)
              if outcome.prompt_truncated]  # fmt: skip
    assert len(marked) == 2 * len(set(marked))
    assert prepared.no_effect.prompts_cut == len(set(marked)) == 2
    assert prepared.warnings == (
        "2 prompts are longer than the model's window of 16 tokens: the text beyond it has no effect",
    )


@pytest.fixture(scope="module")
def shapes() -> tuple[Windows, Any]:
    """A tokenizer with merges, of the built-in model."""
    folder = BUILT_IN["shapes"]
    return Windows(folder, read_facts(folder)), CLIPTokenizer.from_pretrained(folder / "tokenizer")


@settings(deadline=None)
@given(texts=st.lists(st.text(st.sampled_from(" \n\t'aeé́İßΣ１a中<|>sqrtcircle\u00a0\u2028"), max_size=60), min_size=1))
def test_words_have_as_many_tokens_alone_as_in_a_text(shapes: tuple[Windows, Any], texts: list[str]) -> None:
    found, tokenizer = shapes
    assert cut(found, texts) == [len(ids) > 32 for ids in tokenizer(texts, verbose=False).input_ids]


def test_a_vocabulary_and_merges_are_read_too(tmp_path: Path, shapes: tuple[Windows, Any]) -> None:
    model = tiny_models.save(tiny_models.stable_diffusion(), tmp_path / "model")
    stored = json.loads((BUILT_IN["shapes"] / "tokenizer" / "tokenizer.json").read_text())["model"]
    (model / "tokenizer" / "tokenizer.json").unlink()
    (model / "tokenizer" / "vocab.json").write_text(json.dumps(stored["vocab"]))
    merges = [merge if isinstance(merge, str) else " ".join(merge) for merge in stored["merges"]]
    (model / "tokenizer" / "merges.txt").write_text("\n".join(["#version: 0.2", *merges]))
    tokenizer = CLIPTokenizer.from_pretrained(model / "tokenizer")
    texts = ["a red circle on a white background " * number for number in range(1, 6)]
    expected = [len(ids) > tiny_models.TEXT_WINDOW for ids in tokenizer(texts, verbose=False).input_ids]
    assert cut(Windows(model, read_facts(model)), texts) == expected


@pytest.mark.filterwarnings("ignore")
def test_a_sentencepiece_model_alone_is_read_too(tmp_path: Path, spiece: bytes) -> None:
    """It brings a table of characters that become several, or none."""
    model = with_spiece(tiny_models.save(tiny_models.pixart(), tmp_path / "model"), spiece)
    tokenizer = T5Tokenizer.from_pretrained(model / "tokenizer")
    odd = ["ﷺ", "１２ ", "e\u0301 ", " \u0301", "a\x0bb", "\u200b", "\u2028", "½ ", "the Quick ", "\x01"]
    texts = [text * number for text in odd for number in range(5, 120, 3)]
    lowered = [text.lower().strip() for text in texts]
    expected = [len(ids) > 120 for ids in tokenizer(lowered, verbose=False).input_ids]
    assert {*expected} == {True, False}
    assert cut(Windows(model, read_facts(model)), texts) == expected


def test_parts_that_are_left_out_cut_nothing(tmp_path: Path) -> None:
    model = tiny_models.stable_diffusion_3()
    model.register_modules(text_encoder_3=None, tokenizer_3=None)
    folder = tiny_models.save(model, tmp_path / "model")
    assert Windows(folder, read_facts(folder)).tokens == {"tokenizer": 16, "tokenizer_2": 16}


def test_what_cannot_be_counted_says_why(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    long = pa.chunked_array([["x" * 99, "y" * 99, "z"]])
    assert "one call per image" in str(Windows(tmp_path, read_facts(BUILT_IN["shapes"], single=True)).not_counted)
    model = tiny_models.save(tiny_models.stable_diffusion(), tmp_path / "model")
    facts, config = read_facts(model), model / "tokenizer" / "tokenizer_config.json"
    monkeypatch.setattr(windows, "MOST_WORDS", 1)
    found = Windows(model, facts)
    assert (found.cut(long), found.not_counted) == (None, "the prompts have more than 1 distinct words")
    (model / "tokenizer" / "tokenizer.json").unlink()
    found = Windows(model, facts)
    assert found.cut(long[2:]) is not None, "nothing here can be too long"
    assert (found.cut(long), "the tokenizer has no vocabulary" in str(found.not_counted)) == (None, True)
    config.write_text("{}")
    assert Windows(model, facts).not_counted == "tokenizer/tokenizer_config.json has no model_max_length"


def test_counting_loads_no_torch() -> None:
    code = (
        "import sys, pyarrow as pa; from pipeline.model.resolve import BUILT_IN; from pipeline.model.facts import "
        "read_facts; from pipeline.model.windows import Windows; f = BUILT_IN['shapes']; "
        "print(Windows(f, read_facts(f)).cut(pa.chunked_array([['x' * 99]]))['tokenizer'].tolist(), "
        "'torch' in sys.modules)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert (done.stdout, done.stderr) == ("[True] False\n", "")
