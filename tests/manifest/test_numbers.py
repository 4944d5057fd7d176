"""One rule for all columns of numbers, and one for ids: what a type holds exactly is read, all else is refused."""

from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from uuid import UUID

import numpy as np
import pyarrow as pa
import pytest

from pipeline.errors import ManifestError
from pipeline.manifest.read import read_rows
from tests.manifest.files import opened, rows, write

NAN = float("nan")
LAST = 2**64 - 1
SIXTEEN = UUID(int=5).bytes


def one_column(folder: Path, name: str, column: pa.Array) -> Path:
    return write(folder / "m.parquet", {"prompt": [f"p{n}" for n in range(len(column))], name: column})


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([LAST, 0], pa.uint64()), [LAST, 0]),
        (pa.array([2**53 + 1, None]), [2**53 + 1, None]),
        (pa.array([Decimal(LAST), None, Decimal(7)], pa.decimal128(20, 0)), [LAST, None, 7]),
        (pa.array([Decimal("7.00"), Decimal(2**53 + 1)], pa.decimal128(38, 2)), [7, 2**53 + 1]),
        (pa.array([Decimal(7)], pa.decimal256(60, 10)), [7]),
        (pa.array([Decimal(0), Decimal(7)], pa.decimal128(38, 18)), [0, 7]),
        (pa.array([Decimal(7)], pa.decimal32(5, 1)), [7]),
        (pa.array([7.0, NAN, None, 2.0**53 - 1]), [7, None, None, 2**53 - 1]),
        (pa.array([7.0, 2.0**24 - 1], pa.float32()), [7, 2**24 - 1]),
        (pa.array([np.float16(7)], pa.float16()), [7]),
        (pa.array(["7", " 7 ", "007", "+7", "7.0", "-0", "", None]), [7, 7, 7, 7, 7, 0, None, None]),
        (pa.array([str(LAST), f"000{LAST}.00"]), [LAST, LAST]),
        (pa.array(["7", "8"], pa.string_view()), [7, 8]),
        (pa.array([7, 7, None]).dictionary_encode(), [7, 7, None]),
        (pa.array(["7", None]).dictionary_encode(), [7, None]),
    ],
    ids=lambda given: str(given.type) if isinstance(given, pa.Array) else "",
)
def test_whole_numbers_of_every_type_are_exact(tmp_path: Path, column: pa.Array, expected: list[int | None]) -> None:
    read = rows(opened(one_column(tmp_path, "seed", column)))
    assert [row["seeds"] for row in read] == [None if seed is None else [seed] for seed in expected]
    lists = pa.array([None if seed is None else [seed] for seed in column.to_pylist()], pa.list_(column.type))
    present = [seed for seed in expected if seed is not None]
    (batch,) = read_rows(opened(one_column(tmp_path, "seeds", lists)))
    assert batch.table["seeds"].drop_null().to_pylist() == [[seed] for seed in present]


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        (pa.array([Decimal(2**64)], pa.decimal128(38, 0)), "out of range"),
        (pa.array([Decimal("7.5")]), "not a whole number"),
        (pa.array([Decimal("-1")]), "out of range"),
        (pa.array([7.5]), "not a whole number"),
        (pa.array([float("inf")]), "out of range"),
        (pa.array([2.0**53]), "not exact in a column of double"),
        (pa.array([2.0**64]), "out of range"),
        (pa.array([2.0**24], pa.float32()), "not exact in a column of float"),
        (pa.array([str(2**64)]), "out of range"),
        (pa.array(["9" * 40]), "out of range"),
        (pa.array(["-1"]), "out of range"),
        *(
            (pa.array([text]), "not a whole number")
            for text in ("x", "7.5", "1e3", "1,000", "0x7", "nan", "٧", "7 8", "1.000")
        ),
        (pa.array([-1]), "out of range"),
    ],
)
def test_what_is_no_seed_is_refused_with_its_value(tmp_path: Path, column: pa.Array, reason: str) -> None:
    (batch,) = read_rows(opened(one_column(tmp_path, "seed", column)))
    (rejected,) = batch.rejected
    assert (rejected.file, rejected.row, rejected.column, rejected.reason) == ("m.parquet", 0, "seed", reason)
    assert rejected.value == repr(column[0].as_py())
    assert rejected.allowed == f"a whole number from 0 to {LAST}"


@pytest.mark.parametrize(
    "column",
    [
        pa.array([True]),
        pa.array([True]).dictionary_encode(),
        pa.array([timedelta(seconds=7)]),
        pa.array([date(2026, 1, 2)]),
        pa.array([datetime(2026, 1, 2, tzinfo=UTC)]),
        pa.array([time(7)]),
        pa.array([b"7"]),
        pa.array([[7]]),
        pa.array([{"seed": 7}]),
    ],
    ids=lambda column: str(column.type),
)
@pytest.mark.parametrize("name", ["seed", "guidance_scale", "steps"])
def test_types_that_hold_no_number_are_refused_as_a_whole(tmp_path: Path, name: str, column: pa.Array) -> None:
    with pytest.raises(ManifestError, match="wrong type") as caught:
        opened(one_column(tmp_path, name, column))
    assert caught.value.where == "m.parquet"
    assert str(caught.value.allowed).startswith("an integer, floating or decimal type, or strings of numbers")


@pytest.mark.parametrize("name", ["guidance_scale", "steps", "seed"])
def test_nan_and_blank_text_are_null_in_every_column_of_numbers(tmp_path: Path, name: str) -> None:
    ours = {"seed": "seeds", "steps": "num_inference_steps"}.get(name, name)
    for column in (pa.array([7, NAN, None]), pa.array(["7", " ", None]), pa.array([np.float16(7), NAN], pa.float16())):
        read = [row[ours] for row in rows(opened(one_column(tmp_path, name, column)))]
        assert read == [[7] if name == "seed" else 7, *[None] * (len(column) - 1)]


@pytest.mark.parametrize(
    ("text", "expected"),
    [("7.5", 7.5), (" 7 ", 7.0), ("+.5", 0.5), ("1e1", 10.0), ("7.", 7.0)]
    + [(text, "not a number") for text in ("7,5", "x", "nan", "inf", "1e", ".", "--1")]
    + [("1e4", "out of range"), ("-1", "out of range"), ("1e999", "not finite")],
)
def test_guidance_as_text(tmp_path: Path, text: str, expected: float | str) -> None:
    (batch,) = read_rows(opened(one_column(tmp_path, "guidance_scale", pa.array([text]))))
    found = batch.rejected[0].reason if batch.rejected else batch.table["guidance_scale"][0].as_py()
    assert found == expected


@pytest.mark.parametrize(
    ("column", "expected"),
    [
        (pa.array([2**64 - 1], pa.uint64()), str(LAST)),
        (pa.array([7.0]), "7"),
        (pa.array([-0.0]), "0"),
        (pa.array([NAN]), None),
        (pa.array([Decimal(10**37)], pa.decimal128(38, 0)), str(10**37)),
        (pa.array([Decimal("7.50")]), "7.5"),
        (pa.array([Decimal("100.00")]), "100"),
        (pa.array([Decimal(0)], pa.decimal128(38, 18)), "0"),
        (pa.array([Decimal("0.0000001")], pa.decimal128(38, 18)), "0.0000001"),
        (pa.array([True]), "true"),
        (pa.array([date(9999, 12, 31)]), "9999-12-31"),
        (pa.array([datetime(2026, 1, 2, 3, 4, 5)], pa.timestamp("ns")), "2026-01-02 03:04:05"),
        (pa.array([datetime(2026, 1, 2, 3, 4, 5, 120000)], pa.timestamp("us")), "2026-01-02 03:04:05.12"),
        (pa.array([datetime(2026, 1, 2, tzinfo=UTC)], pa.timestamp("us", "Europe/Berlin")), "2026-01-02 00:00:00Z"),
        (pa.array([datetime(2026, 1, 2, tzinfo=UTC)], pa.timestamp("us", "Mars/Phobos")), "2026-01-02 00:00:00Z"),
        (pa.array([time(3, 4, 5)]), "03:04:05"),
        (pa.array([SIXTEEN], pa.binary(16)), "00000000-0000-0000-0000-000000000005"),
        (pa.ExtensionArray.from_storage(pa.uuid(), pa.array([SIXTEEN], pa.binary(16))), str(UUID(int=5))),
        (pa.array([b"\x00\xff"]), "00ff"),
    ],
    ids=lambda given: str(given.type) if isinstance(given, pa.Array) else "",
)
def test_ids_of_any_plain_type(tmp_path: Path, column: pa.Array, expected: str | None) -> None:
    (read,) = rows(opened(one_column(tmp_path, "prompt_id", column)))
    assert read["prompt_id"] == (expected or "m:0")


@pytest.mark.parametrize(
    ("column", "reason"),
    [
        (pa.array([7.5]), "not a whole number"),
        (pa.array([2.0**53 + 2]), "not exact in a column of double"),
        (pa.array([10**17], pa.date64()), "no such date"),
    ],
)
def test_ids_that_have_no_exact_text(tmp_path: Path, column: pa.Array, reason: str) -> None:
    (batch,) = read_rows(opened(one_column(tmp_path, "prompt_id", column)))
    assert [row.reason for row in batch.rejected] == [reason]


@pytest.mark.parametrize("name", ["negative_prompt", "scheduler"])
def test_a_column_of_text_without_values_may_be_one_of_floats(tmp_path: Path, name: str) -> None:
    (batch,) = read_rows(opened(one_column(tmp_path, name, pa.array([NAN, None, 1.5]))))
    assert batch.table[name].to_pylist() == [None, None]
    assert [(row.row, row.reason, row.value) for row in batch.rejected] == [(2, "not a text", "1.5")]


def test_broken_text_in_a_column_of_numbers_costs_its_row(tmp_path: Path) -> None:
    broken = pa.Array.from_buffers(pa.string(), 3, pa.array([b"7", b"\xff", b"8"], pa.binary()).buffers())
    lists = pa.ListArray.from_arrays(pa.array([0, 1, 2, 3], pa.int32()), broken)
    for name, column in (("seed", broken), ("guidance_scale", broken), ("seeds", lists)):
        (batch,) = read_rows(opened(one_column(tmp_path, name, column)))
        assert [(row.row, row.column, row.reason) for row in batch.rejected] == [(1, name, "not UTF-8")]
