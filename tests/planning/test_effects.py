"""What has no effect is counted and said."""

from dataclasses import replace
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given

from pipeline.model.family import FAMILIES, Family, Guidance
from pipeline.planning.count import count
from pipeline.planning.effects import Effects
from pipeline.planning.grids import Axes
from pipeline.planning.no_effect import NoEffect, no_effect
from tests.planning.plain import FAMILY, Cells, axes_of, axes_strategy, batches, counted, distinct, plain_ids
from tests.planning.plain import rows_strategy as rows

FLUX = FAMILIES["FluxPipeline"]
SCHNELL = replace(FLUX, guidance=Guidance.NONE)
ROW: dict[str, Any] = {"prompt": "a"}


def judged(cells: Cells, axes: Axes, *given: str, family: Family = FAMILY, columns: str = "") -> NoEffect:
    """``columns``: those that the manifest has, by our names."""
    theirs = {name: f"my {name}" for name in columns.split()}
    return no_effect(counted(cells, axes, family).effects, axes, family, set(given), theirs)


@given(rows, axes_strategy)
def test_requests_are_counted_as_often_as_they_are_made(cells: Cells, axes: Axes) -> None:
    found = counted(cells, axes)
    assert (found.requested, found.amount.images) == (len(plain_ids(cells, axes)), len(distinct(cells, axes)))


@given(rows, axes_strategy)
def test_unused_negative_prompts_are_those_that_change_nothing(cells: Cells, axes: Axes) -> None:
    def ids(row: dict[str, Any], text: str | None) -> set[str]:
        return set(plain_ids([{**row, "negative_prompt": text}], axes))

    having = [row for row in cells if row["negative_prompt"]]
    same = [ids(row, row["negative_prompt"]) & ids(row, None) for row in having]
    whole = [ids(row, None) for row in having]
    found = counted(cells, axes).effects
    assert found.negatives == len(having)
    assert found.negatives_unused == sum(part == all_ for part, all_ in zip(same, whole, strict=True))
    in_part = sum(0 < len(part) < len(all_) for part, all_ in zip(same, whole, strict=True))
    assert found.negatives_unused_in_part == in_part


def test_negative_prompts_that_are_not_used() -> None:
    cells = [{"prompt": "a", "negative_prompt": text} for text in ("x", " ", None, "y")]
    unguided, both = replace(axes_of(1), guidance_scales=(1.0,)), replace(axes_of(1), guidance_scales=(0.5, 4.0))
    no_image = "2 negative prompts are without effect: no image of such a row has a guidance scale above 1"
    assert judged(cells, unguided).sentences() == (no_image,)
    assert judged(cells, axes_of(1), family=FLUX).sentences() == (
        "2 negative prompts are without effect: the model takes none",
    )
    assert judged(cells, both).sentences() == (
        "2 negative prompts are without effect in part: images with a guidance scale of at most 1 use none",
    )
    assert judged(cells, both).summary() == "2 negative prompts unused in part"
    assert judged(cells, axes_of(1)).sentences() == ()


@pytest.mark.parametrize(
    ("cells", "columns", "sentences"),
    [
        ([{"seeds": None}], "seeds", ["the column my seeds of the manifest has no effect: it holds no value"]),
        ([{"seeds": [0]}], "seeds", ["the column my seeds of the manifest has no effect: it holds nothing but the "
                                     "sweep's own value"]),
        ([{"seeds": [0]}, {"seeds": [1]}], "seeds", ["sweep.seeds has no effect: my seeds of the manifest replaces it "
                                                     "in every row"]),
        ([{"seeds": [7]}, {"seeds": None}], "seeds", []),
        ([{"guidance_scale": 4.0}], "guidance_scale", ["the column my guidance_scale of the manifest has no effect: "
                                                       "it holds nothing but the sweep's own value"]),
        ([{"width": 64}], "width height", [f"the column my {side} of the manifest has no effect: it holds nothing but "
                                           "the sweep's own value" for side in ("width", "height")]),
        ([{"width": 128}], "width height", ["sweep.sizes has no effect: my width and my height of the manifest "
                                            "replace it in every row"]),
        ([{"scheduler": "euler"}, {"scheduler": None}], "scheduler", []),
        ([{"negative_prompt": None}], "negative_prompt", ["the column my negative_prompt of the manifest has no "
                                                          "effect: it holds no text"]),
    ],
)  # fmt: skip
def test_columns_and_axes_that_replace_nothing(cells: Cells, columns: str, sentences: list[str]) -> None:
    found = judged([{**ROW, **cell} for cell in cells], axes_of(1), "seeds", "sizes", columns=columns)
    assert list(found.sentences()) == sentences


def test_guidance_scales_that_amount_to_the_same() -> None:
    axes = replace(axes_of(1), guidance_scales=(0.0, 1.0, 4.0))
    assert judged([ROW], axes, "guidance_scales").sentences() == (
        "the guidance scales 0, 1 of the sweep make the same images: up to 1, there is no guidance",
    )
    assert judged([ROW], axes).sentences() == (), "the job did not ask for them"
    assert judged([ROW], axes, "guidance_scales", family=FLUX).sentences() == ()
    assert judged([ROW], axes, "guidance_scales", family=SCHNELL).sentences() == (
        "sweep.guidance_scales has no effect: the model takes no guidance scale; 3 values make one image",
    )
    column = judged([{**ROW, "guidance_scale": 3.0}], axes, family=SCHNELL, columns="guidance_scale")
    assert column.sentences() == (
        "the column my guidance_scale of the manifest has no effect: the model takes no guidance scale",
    )
    assert column.facts()["columns"] == ["my guidance_scale"]


def test_values_that_an_axis_names_twice() -> None:
    axes = replace(axes_of(1), seeds=(1, 2, 1), sizes=((64, 64), (64, 64)), guidance_scales=(4.0, 4.0, 0.0, -0.0))
    found = judged([ROW], axes, "seeds", "sizes", "guidance_scales")
    assert found.sentences() == (
        "sweep.seeds names 1 more than once, which makes no further images",
        "sweep.guidance_scales names 4, 0 more than once, which makes no further images",
        "sweep.sizes names 64x64 more than once, which makes no further images",
    )
    assert found.summary().startswith("repeated values of sweep.seeds, ")
    assert judged([ROW], axes).sentences() == ()


def test_cut_prompts_are_counted_by_tokenizer() -> None:
    def cut(texts: pa.ChunkedArray) -> dict[str, np.ndarray]:
        lengths = np.array([len(text or "") for text in texts.to_pylist()])
        return {"tokenizer": lengths > 3, "tokenizer_2": lengths > 5}

    cells = [{"prompt": "x" * length, "negative_prompt": "y" * length} for length in (1, 4, 4, 6)]
    found = count(lambda: batches(cells), axes_of(1), FAMILY, cut).effects
    assert (found.rows, found.looked_at, found.cut, found.negatives_cut) == (4, 4, 3, 3)
    assert found.cut_by == {"tokenizer": 3, "tokenizer_2": 1}
    said = replace(no_effect(found, axes_of(1), FAMILY, set(), {}), windows={"tokenizer": 3, "tokenizer_2": 5})
    assert said.sentences()[0] == (
        "3 prompts are longer than a window of the model's text encoders (tokenizer 3 tokens, 3 cut; tokenizer_2 "
        "5 tokens, 1 cut): the text beyond it has no effect"
    )
    unguided = replace(axes_of(1), guidance_scales=(1.0,))
    assert count(lambda: batches(cells), unguided, FAMILY, cut).effects.negatives_cut == 0


def test_what_is_not_counted_is_no_number() -> None:
    unknown = NoEffect(effects=Effects(rows=9), not_counted="it is a mystery")
    assert (unknown.facts()["prompts_cut"], unknown.facts()["prompts_not_counted"]) == (None, "it is a mystery")
    part = NoEffect(effects=Effects(rows=9, looked_at=6, cut=2), windows={"tokenizer": 77}, not_counted="many words")
    assert part.facts()["prompts_cut"] == 2
    assert part.sentences() == (
        "2 prompts are longer than the model's window of 77 tokens: the text beyond it has no effect; only the first "
        "6 rows were looked at",
    )
    assert part.summary() == "2 prompts cut at 77 tokens"
