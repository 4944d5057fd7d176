"""Cells of many types, seeds, broken text: what a row may hold and what is said of it."""

from decimal import Decimal
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.manifest.columns import BATCH_SCHEMA
from pipeline.manifest.read import read_rows
from tests.manifest.files import opened, rows, write

BROKEN = pa.Array.from_buffers(pa.string(), 3, pa.array([b"good", b"\xff\xfe", b"too"], pa.binary()).buffers())
SEED = st.integers(0, 2**64 - 1) | st.integers(0, 3)


@pytest.mark.parametrize(
    ("name", "column", "expected"),
    [
        ("prompt_id", pa.array([7, None]), ["7", "m:1"]),
        ("prompt_id", pa.array(["x", " "]), ["x", "m:1"]),
        ("prompt_id", pa.array([7, None]).dictionary_encode(), ["7", "m:1"]),
        ("seed", pa.array([7, None], pa.int8()), [[7], None]),
        ("seed", pa.array([2**32 - 1, None], pa.uint64()), [[2**32 - 1], None]),
        ("seed", pa.array([7.0, float("nan")]), [[7], None]),
        ("seed", pa.array([7.0, None], pa.float32()), [[7], None]),
        ("seeds", pa.array([[3, 1, 3], None]), [[3, 1], None]),
        ("seeds", pa.array([[3, 1], [1, 1]], pa.list_(pa.int8(), 2)), [[3, 1], [1]]),
        ("seeds", pa.array([None, [5]], pa.large_list(pa.uint32())), [None, [5]]),
        ("seeds", pa.nulls(2), [None, None]),
        ("guidance_scale", pa.array([7, None], pa.int16()), [7.0, None]),
        ("guidance_scale", pa.array([Decimal("7.5"), None]), [7.5, None]),
        ("guidance_scale", pa.array([np.float16(7.5), None], pa.float16()), [7.5, None]),
        ("num_inference_steps", pa.array([10.0, None]), [10, None]),
        ("steps", pa.array([10, 1000]), [10, 1000]),
        ("scheduler", pa.array(["ddim", None]).dictionary_encode(), ["ddim", None]),
        ("negative_prompt", pa.array(["no", ""], pa.string_view()), ["no", None]),
        ("negative_prompt", pa.nulls(2), [None, None]),
    ],
)
def test_types_that_are_understood(tmp_path: Path, name: str, column: pa.Array, expected: list[Any]) -> None:
    (batch,) = read_rows(opened(write(tmp_path / "m.parquet", {"prompt": ["a", "b"], name: column})))
    assert batch.table.schema == BATCH_SCHEMA
    ours = {"seed": "seeds", "steps": "num_inference_steps"}.get(name, name)
    assert batch.table[ours].to_pylist() == expected


@pytest.mark.parametrize(
    ("column", "reason", "value"),
    [
        (pa.array([[1], []]), "unusable seeds", "[]"),
        (pa.array([[1], [2, None]]), "unusable seeds", "[2, None]"),
        (pa.array([[1], [-1]]), "unusable seeds", "[-1]"),
        (pa.array([["1"], [str(2**64)]]), "unusable seeds", f"['{2**64}']"),
        (pa.array([[1.0], [2.5]]), "unusable seeds", "[2.5]"),
        (pa.array([["1"], [""]]), "unusable seeds", "['']"),
    ],
)
def test_seeds_that_are_refused(tmp_path: Path, column: pa.Array, reason: str, value: str) -> None:
    (batch,) = read_rows(opened(write(tmp_path / "m.parquet", {"prompt": ["a", "b"], "seeds": column})))
    (rejected,) = batch.rejected
    assert (rejected.row, rejected.column, rejected.reason, rejected.value) == (1, "seeds", reason, value)
    assert batch.table["seeds"].to_pylist() == [[1]]


@given(st.lists(st.none() | st.lists(SEED, min_size=1, max_size=6), max_size=12))
def test_lists_of_seeds_come_back_without_repeats(
    tmp_path_factory: pytest.TempPathFactory, seeds: list[list[int] | None]
) -> None:
    table = {"prompt": pa.array(["p"] * len(seeds), pa.string()), "seeds": pa.array(seeds, pa.list_(pa.uint64()))}
    path = write(tmp_path_factory.mktemp("m") / "m.parquet", table, row_group_size=5)
    expected = [None if row is None else list(dict.fromkeys(row)) for row in seeds]
    assert [row["seeds"] for row in rows(opened(path))] == expected


@pytest.mark.parametrize("name", ["prompt", "prompt_id", "negative_prompt", "scheduler", "note"])
@pytest.mark.parametrize("kind", [pa.string(), pa.large_string(), pa.list_(pa.string())])
def test_broken_text_costs_its_row_whatever_the_column(tmp_path: Path, name: str, kind: pa.DataType) -> None:
    column: pa.Array = BROKEN
    if pa.types.is_large_string(kind):
        raw = pa.array([b"good", b"\xff\xfe", b"too"], pa.large_binary())
        column = pa.Array.from_buffers(kind, 3, raw.buffers())
    if pa.types.is_list(kind):
        name, column = "note", pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), BROKEN)
    (batch,) = read_rows(opened(write(tmp_path / "m.parquet", {"prompt": ["a", "b", "c"], name: column})))
    said = {(rejected.row, rejected.column, rejected.reason) for rejected in batch.rejected}
    assert (1, name, "not UTF-8") in said
    assert 1 not in batch.table["manifest_row"].to_pylist()
    assert batch.table.to_pylist() is not None  # every string that is left can be read


def test_a_row_is_refused_once_and_shown_short(tmp_path: Path) -> None:
    table = {"prompt": ["a", "\0" * 500], "negative_prompt": ["", "\0"], "seed": [1, -1]}
    (batch,) = read_rows(opened(write(tmp_path / "m.parquet", table)))
    (rejected,) = batch.rejected
    assert (rejected.column, rejected.reason) == ("prompt", "NUL character")
    assert len(rejected.value) < 120


def test_extra_columns_travel_as_they_are(tmp_path: Path) -> None:
    extras = {
        "meta": pa.array([{"author": "x", "z": 1}, None]),
        "meta.author": pa.array(["dotted", None]),
        "prompt.part": pa.array([1, None], pa.int8()),
        "when": pa.array([1, None], pa.timestamp("us", tz="UTC")),
        "raw": pa.array([b"\xff", b""]),
        "tags": pa.array([{"k": ["v"]}, {"k": None}]),
    }
    (batch,) = read_rows(opened(write(tmp_path / "m.parquet", {"prompt": ["a", "b"], **extras})))
    assert batch.table.column_names == [*BATCH_SCHEMA.names, *extras]
    for name, column in extras.items():
        assert batch.table[name].combine_chunks() == column
