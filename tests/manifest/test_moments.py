"""Extra columns with dates, times and durations that Python cannot hold, and with tensors."""

from datetime import UTC, date, datetime, timedelta
from pathlib import Path
from typing import Any

import numpy as np
import pyarrow as pa
import pytest

from pipeline.output.moments import doubtful_columns
from pipeline.parquet import ParquetReader
from tests.manifest.files import opened, rows, write

BEYOND: dict[str, tuple[pa.DataType, int, Any, str, str]] = {
    "s": (pa.timestamp("s"), 10**12, 0, "33658-09-27 01:46:40", "1970-01-01 00:00:00"),
    "us": (pa.timestamp("us"), 2**63 - 1, 1, "294247-01-10 04:00:54.775807", "1970-01-01 00:00:00.000001"),
    "negative": (pa.timestamp("ms"), -(2**50), 1, "-33709-08-27 01:52:37.376", "1970-01-01 00:00:00.001000"),
    "zone": (pa.timestamp("s", "UTC"), 253402300800, 0, "10000-01-01 00:00:00+00:00", "1970-01-01 00:00:00+00:00"),
    "edge": (
        pa.timestamp("s", "+02:00"), 253402300799, 0, "9999-12-31 23:59:59+00:00", "1970-01-01 02:00:00+02:00",
    ),
    "day": (pa.date32(), 2**30, 0, "2941775-04-07", "1970-01-01"),
    "day64": (pa.date64(), 86_400_000 * 2**30, 0, "2941775-04-07", "1970-01-01"),
    "span": (pa.duration("ms"), 2**60, 5, "13343998895 days, 21:54:06.976", "0:00:00.005000"),
    "clock": (pa.time64("ns"), 1001, 1000, "00:00:00.000001001", "00:00:00.000001"),
}  # fmt: skip
HELD: dict[str, tuple[pa.DataType, Any]] = {
    "last": (pa.timestamp("us", "UTC"), datetime(9999, 12, 31, 23, 59, 59, 999999, UTC)),
    "first": (pa.timestamp("s"), datetime(1, 1, 1)),
    "day": (pa.date32(), date(9999, 12, 31)),
    "day64": (pa.date64(), date(1, 1, 1)),
    "span": (pa.duration("s"), timedelta(days=999_999_999)),
    "nanos": (pa.timestamp("ns"), datetime(2020, 1, 1)),
    "null": (pa.timestamp("us"), None),
}


@pytest.mark.parametrize("statistics", [True, False])
def test_columns_with_a_moment_beyond_python_are_text(tmp_path: Path, statistics: bool) -> None:
    columns = {name: pa.array([far, near, None], kind) for name, (kind, far, near, _, _) in BEYOND.items()}
    columns["deep"] = pa.array([[{"at": 10**12}], [], None], pa.list_(pa.struct([("at", pa.timestamp("s"))])))
    manifest = opened(write(tmp_path / "m.parquet", {"prompt": [*"abc"], **columns}, write_statistics=statistics))
    assert set(manifest.extra_schema.types) == {pa.string()}
    assert [said.split("'")[1] for said in manifest.warnings if "stored as text" in said] == list(columns)
    first, second, third = rows(manifest)
    assert {name: first[name] for name in BEYOND} == {name: case[3] for name, case in BEYOND.items()}
    assert {name: second[name] for name in BEYOND} == {name: case[4] for name, case in BEYOND.items()}
    assert (first["deep"], third["deep"], third["day"]) == ("[{'at': '33658-09-27 01:46:40'}]", None, None)


@pytest.mark.parametrize("statistics", [True, False])
def test_columns_that_python_holds_keep_their_types(tmp_path: Path, statistics: bool) -> None:
    columns = {name: pa.array([value, None], kind) for name, (kind, value) in HELD.items()}
    path = write(tmp_path / "m.parquet", {"prompt": ["a", "b"], **columns}, write_statistics=statistics)
    manifest = opened(path)
    assert manifest.warnings == ()
    assert {name: rows(manifest)[0][name] for name in HELD} == {name: value for name, (_, value) in HELD.items()}
    doubtful = doubtful_columns(ParquetReader(path.read_bytes()))
    assert doubtful == (set() if statistics else set(HELD) - {"nanos"}), "statistics show it without reading"


def test_one_file_decides_for_all(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"prompt": ["a"], "at": pa.array([0], pa.timestamp("us"))})
    write(tmp_path / "b.parquet", {"prompt": ["b"], "at": pa.array([2**62], pa.timestamp("us"))})
    assert [row["at"] for row in rows(opened(tmp_path))] == ["1970-01-01 00:00:00", "148108-07-06 14:00:27.387904"]


def test_tensors_of_numpy_travel(tmp_path: Path) -> None:
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(8.0).reshape(2, 2, 2))
    manifest = opened(write(tmp_path / "m.parquet", {"prompt": ["a", "b"], "tensor": tensor}))
    assert manifest.extra_schema.field("tensor").type == tensor.type
    assert rows(manifest)[1]["tensor"] == [4.0, 5.0, 6.0, 7.0]
