"""Tables as pandas, polars, Spark, DuckDB and `datasets` write them are read as meant, or refused cell by cell."""

import math
from decimal import Decimal
from pathlib import Path
from typing import Any

import duckdb
import numpy as np
import pandas as pd  # type: ignore[import-untyped]  # comes with datasets, without stubs
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.manifest.read import read_rows
from tests.manifest.files import opened

SEEDS = st.none() | st.sampled_from([0, 7, 2**24 + 1, 2**32 + 5, 2**53, 2**53 + 1, 2**63 - 1])
SCALES = st.none() | st.sampled_from([0.0, 1.0, 7.5, 1000.0])
NOTES = st.none() | st.sampled_from(["", "a", "žluť", "7", "NaN"])
ROWS = st.lists(st.tuples(SEEDS, SCALES, NOTES), min_size=1, max_size=6)
Rows = list[tuple[int | None, float | None, str | None]]


def pandas_floats(path: Path, table: pa.Table) -> None:
    """Integers with a null become floats, and a filtered frame keeps its index."""
    frame = table.to_pandas()
    frame.index = frame.index + 1
    frame.to_parquet(path, index=True)


def pandas_nullable(path: Path, table: pa.Table) -> None:
    table.to_pandas(types_mapper={pa.int64(): pd.Int64Dtype(), pa.string(): pd.StringDtype()}.get).to_parquet(path)


def polars(path: Path, table: pa.Table) -> None:
    """Views, a category, and NaN where a number is absent."""
    scale = pa.array([math.nan if cell is None else cell for cell in table["guidance_scale"].to_pylist()], pa.float64())
    prompt = table["prompt"].combine_chunks().cast(pa.string_view())
    note = table["note"].combine_chunks().cast(pa.large_string()).dictionary_encode()
    pq.write_table(pa.table({"prompt": prompt, "seed": table["seed"], "guidance_scale": scale, "note": note}), path)


def spark(path: Path, table: pa.Table) -> None:
    """Decimals, INT96 times, and a folder with hidden files."""
    seeds = [None if seed is None else Decimal(seed) for seed in table["seed"].to_pylist()]
    kept = table.set_column(1, "seed", pa.array(seeds, pa.decimal128(20, 0)))
    kept = kept.append_column("at", pa.array([1] * len(kept), pa.timestamp("us")))
    pq.write_table(kept, path, use_deprecated_int96_timestamps=True)
    (path.parent / "_SUCCESS").touch()
    (path.parent / "_temporary").mkdir()
    (path.parent / "_temporary" / "half.parquet").write_bytes(b"PAR1")


def texts(path: Path, table: pa.Table) -> None:
    """A CSV file read without types."""
    pq.write_table(pa.table({name: table[name].cast(pa.string()) for name in table.column_names}), path)


def duck(path: Path, table: pa.Table) -> None:
    with duckdb.connect() as base:
        base.register("prompts", table)
        base.execute(f"copy (select * from prompts) to '{path}' (format parquet)")


def hugging_face(path: Path, table: pa.Table) -> None:
    info = table.schema.with_metadata({"huggingface": '{"info": {"features": {}}}'})
    pq.write_table(table.cast(info), path)


WRITERS = {"pandas": pandas_floats, "nullable": pandas_nullable, "polars": polars, "spark": spark, "csv": texts,
           "duckdb": duck, "datasets": hugging_face}  # fmt: skip


def table_of(drawn: Rows, start: int) -> pa.Table:
    seeds, scales, notes = zip(*drawn, strict=True)
    return pa.table(
        {
            "prompt": [f"p{start + number}" for number in range(len(drawn))],
            "seed": pa.array(seeds, pa.int64()),
            "guidance_scale": pa.array(scales, pa.float64()),
            "note": pa.array(notes, pa.string()),
        }
    )


@pytest.mark.parametrize("writer", WRITERS)
@settings(max_examples=12)
@given(files=st.lists(ROWS, min_size=1, max_size=2))
def test_cells_are_read_as_meant_or_refused(
    tmp_path_factory: pytest.TempPathFactory, writer: str, files: list[Rows]
) -> None:
    folder, meant = tmp_path_factory.mktemp("m"), dict[str, Any]()
    for number, drawn in enumerate(files):
        table = table_of(drawn, 100 * number)
        meant |= {row["prompt"]: row for row in table.to_pylist()}
        (folder / f"day=0{number}").mkdir()
        WRITERS[writer](folder / f"day=0{number}" / "part.parquet", table)
    seen, refused = 0, 0
    for batch in read_rows(opened(folder)):
        for row in batch.table.to_pylist():
            wanted = meant[row["prompt"]]
            seed = None if wanted["seed"] is None else [wanted["seed"]]
            assert (row["seeds"], row["guidance_scale"]) == (seed, wanted["guidance_scale"])
            assert (row["note"], row["day"]) == (wanted["note"], f"0{row['prompt'].removeprefix('p')[:-2] or 0}")
            seen += 1
        for bad in batch.rejected:
            assert (bad.column, bad.reason) == ("seed", "not exact in a column of double")
            assert bad.file.endswith("part.parquet")
            assert float(bad.value) >= 2**53
            refused += 1
    assert seen + refused == len(meant)
    assert not refused or writer == "pandas"


def test_an_index_that_pandas_keeps_as_a_range_is_said(tmp_path: Path) -> None:
    frame = pd.DataFrame({"prompt": ["a", "b"]}, index=pd.RangeIndex(5, 7, name="seed"))
    frame.to_parquet(tmp_path / "m.parquet")
    (warning,) = opened(tmp_path / "m.parquet").warnings
    assert warning.startswith("the pandas index 'seed' is no column of the file and has no effect")
    frame.reset_index().to_parquet(tmp_path / "m.parquet")
    assert opened(tmp_path / "m.parquet").warnings == ()


def test_a_seed_that_pandas_has_rounded_is_refused_not_drawn(tmp_path: Path) -> None:
    frame = pd.DataFrame({"prompt": ["a", "b"], "seed": [2**53 + 3, np.nan]})
    frame.to_parquet(tmp_path / "m.parquet")
    (batch,) = read_rows(opened(tmp_path / "m.parquet"))
    assert [(bad.row, bad.reason) for bad in batch.rejected] == [(0, "not exact in a column of double")]
    assert batch.table["prompt"].to_pylist() == ["b"]
