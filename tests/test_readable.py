"""Columns of any type and seeds of 64 bits: every layout and export opens with ``load_dataset``, values unchanged."""

from collections.abc import Mapping
from dataclasses import replace
from datetime import UTC, date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path
from types import ModuleType
from typing import Any, get_args
from uuid import UUID

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import InputError
from pipeline.export.formats import export
from pipeline.output.again import command_of
from pipeline.output.finalize import finalize
from pipeline.output.layout import Layout, Packing
from pipeline.output.lookup import find_row
from pipeline.output.part import PartWriter
from pipeline.output.run import write_run
from pipeline.readable import form_warnings, in_readable_form, readable
from pipeline.report.contact_sheet import build
from pipeline.storage.local import LocalStore
from tests.report.reading import cells_of
from tests.test_output import FACTS, RUN, START, rendered, shard_of, task
from tests.test_readers import datasets

__all__ = ["datasets"]

ID = UUID(int=5)
SEED = 2**64 - 1
SECOND_NULL = pa.array([False, True])
COLUMNS: dict[str, tuple[pa.Array, Any]] = {
    "json": (pa.array(['{"a": 1}', None], pa.json_()), '{"a": 1}'),
    "uuid": (pa.array([ID.bytes, None], pa.uuid()), str(ID)),
    "flag8": (pa.ExtensionArray.from_storage(pa.bool8(), pa.array([1, None], pa.int8())), True),
    "tensor": (pa.FixedShapeTensorArray.from_numpy_ndarray(np.arange(8.0).reshape(2, 2, 2)), [[0.0, 1.0], [2.0, 3.0]]),
    "opaque": (
        pa.ExtensionArray.from_storage(pa.opaque(pa.string(), "n", "v"), pa.array(["x", None])),
        "x",
    ),
    "map": (
        pa.array([[("k", 1), ("k", None)], None], pa.map_(pa.string(), pa.int32())),
        [{"key": "k", "value": 1}, {"key": "k", "value": None}],
    ),
    "maps": (
        pa.array([[None, [(1, [("x", 2.5)])]], None], pa.list_(pa.map_(pa.int8(), pa.map_(pa.string(), pa.float64())))),
        [None, [{"key": 1, "value": [{"key": "x", "value": 2.5}]}]],
    ),
    "box": (
        pa.StructArray.from_arrays([pa.array([ID.bytes, None], pa.uuid())], names=["id"], mask=SECOND_NULL),
        {"id": str(ID)},
    ),
    "pair": (
        pa.FixedSizeListArray.from_arrays(pa.array([ID.bytes, *[None] * 3], pa.uuid()), 2, mask=SECOND_NULL),
        [str(ID), None],
    ),
    "small_decimal": (pa.array([Decimal("1.50"), None], pa.decimal32(5, 2)), Decimal("1.50")),
    "wide_decimal": (pa.array([Decimal(10**49), None], pa.decimal256(60, 0)), Decimal(10**49)),
    "elsewhere": (pa.array([0, None], pa.timestamp("us", "Nowhere/Never")), datetime(1970, 1, 1, tzinfo=UTC)),
    "last": (pa.array([253402300799, None], pa.timestamp("s")), datetime(9999, 12, 31, 23, 59, 59)),
    "first": (pa.array([-62135596800000, None], pa.timestamp("ms")), datetime(1, 1, 1)),
    "day": (pa.array([date(9999, 12, 31), None]), date(9999, 12, 31)),
    "span": (pa.array([timedelta(days=40000), None], pa.duration("ms")), timedelta(days=40000)),
    "clock": (pa.array([time(1, 2, 3, 4), None], pa.time64("us")), time(1, 2, 3, 4)),
    "half": (pa.array([np.float16(0.5), None], pa.float16()), 0.5),
    "fixed": (pa.array([b"abcd", None], pa.binary(4)), b"abcd"),
    "nested": (pa.array([[[1, None], None, []], None], pa.list_(pa.list_(pa.int32()))), [[1, None], None, []]),
    "nothing": (pa.nulls(2), None),
    "source_file_name": (pa.array(["../a.png", None]), "../a.png"),
    "hash": (pa.array([SEED, None], pa.uint64()), SEED),
}  # fmt: skip
ARRAYS = {name: column for name, (column, _) in COLUMNS.items()}
OTHER_FORM = {
    "json", "uuid", "flag8", "tensor", "opaque", "map", "maps", "box", "pair", "small_decimal", "elsewhere",
}  # fmt: skip
IN_JSON: dict[str, Any] = {
    "small_decimal": "1.50", "wide_decimal": str(10**49), "elsewhere": "1970-01-01T00:00:00+00:00",
    "last": "9999-12-31T23:59:59", "first": "0001-01-01T00:00:00", "day": "9999-12-31", "span": "40000 days, 0:00:00",
    "clock": "01:02:03.000004", "fixed": "YWJjZA==",
}  # fmt: skip
READABLE = Packing(columns="readable")


def write_output(folder: Path, layout: Layout, columns: Mapping[str, pa.Array] = ARRAYS) -> LocalStore:
    store, facts = LocalStore(folder), replace(FACTS, packing=replace(READABLE, layout=layout))
    write_run(store, replace(RUN, packing=facts.packing))
    shard = shard_of(1, 2)
    shard = shard.set_column(shard.column_names.index("seed"), "seed", pa.array([SEED, 2], pa.uint64()))
    for name, column in columns.items():
        shard = shard.append_column(name, column)
    writer = PartWriter(store, shard, facts)
    for number in (1, 2):
        writer.put(rendered(number), START)
    writer.commit()
    finalize(store)
    return store


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[Layout, LocalStore]:
    return {layout: write_output(tmp_path_factory.mktemp(layout), layout) for layout in get_args(Layout)}


def check(rows: Any, *, seed: Any = SEED, texts: bool = False) -> None:
    """The values of both rows; ``texts`` where they went through JSON."""
    first, second = rows
    assert (first["seed"], second["seed"]) == (seed, type(seed)(2))
    expected = {name: value for name, (_, value) in COLUMNS.items()}
    expected |= {"hash": seed} | (IN_JSON if texts else {})
    assert {name: first.get(name) for name in COLUMNS} == expected
    assert {name for name in COLUMNS if second.get(name) is not None} == {"tensor"}


@pytest.mark.parametrize("layout", get_args(Layout))
def test_every_layout_opens(
    datasets: ModuleType, outputs: dict[Layout, LocalStore], tmp_path: Path, layout: Layout
) -> None:
    loaded = datasets.load_dataset(outputs[layout].uri, split="train", cache_dir=tmp_path)
    rows = [row["json"] for row in loaded] if layout == "webdataset" else list(loaded)
    check(rows, texts=layout == "webdataset")


def test_the_exports_open(datasets: ModuleType, outputs: dict[Layout, LocalStore], tmp_path: Path) -> None:
    for form in ("imagefolder", "webdataset"):
        export(outputs["files"], LocalStore(tmp_path / form), form, lambda done, total: None)

    def load(name: str, **where: str) -> list[dict[str, Any]]:
        return list(datasets.load_dataset(name, split="train", cache_dir=tmp_path / "cache", **where))

    check(load("imagefolder", data_dir=str(tmp_path / "imagefolder")), seed=Decimal(SEED))
    check(load("parquet", data_files=str(tmp_path / "webdataset" / "00000.parquet")))
    samples = load("webdataset", data_files=str(tmp_path / "webdataset" / "00000.tar"))
    check([sample["json"] for sample in samples], seed=str(SEED), texts=True)


def test_a_warning_names_each_column_of_another_form() -> None:
    said = form_warnings(pa.table(ARRAYS).schema)
    assert [sentence.split("'")[1] for sentence in said] == [name for name in COLUMNS if name in OTHER_FORM]
    assert said[0] == (
        "the extra column 'json' is stored as string in a new output, since Hugging Face's datasets cannot read "
        "extension<arrow.json>"
    )


def test_forms_of_slices_and_of_nothing() -> None:
    """A shard is a slice of a column; types follow from types alone, so that all parts of a run have the same."""
    table = pa.table(ARRAYS)
    whole = in_readable_form(table)
    assert whole.schema.types == [readable(kind) for kind in table.schema.types]
    for part in (table.slice(1), table.slice(0, 1), table.slice(0, 0), pa.concat_tables([table, table])):
        found = in_readable_form(part)
        found.validate(full=True)
        assert found.schema == whole.schema
    assert in_readable_form(table.slice(1)).equals(whole.slice(1))
    assert in_readable_form(whole) is whole


def test_dimensions_of_a_tensor_in_their_logical_order() -> None:
    numbers = np.arange(6.0).reshape(1, 2, 3)
    tensor = pa.FixedShapeTensorArray.from_numpy_ndarray(np.transpose(numbers, (0, 2, 1)))
    assert tensor.type.permutation is not None
    made = in_readable_form(pa.table({"tensor": tensor}))
    assert made["tensor"].to_pylist() == np.transpose(numbers, (0, 2, 1)).tolist()


def test_seeds_that_diffusiondb_has_no_place_for(outputs: dict[Layout, LocalStore], tmp_path: Path) -> None:
    with pytest.raises(InputError, match="and 1 of 2 images have a larger one"):
        export(outputs["parquet"], LocalStore(tmp_path), "diffusiondb", lambda done, total: None)
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("layout", get_args(Layout))
def test_moments_that_python_cannot_hold_are_kept(tmp_path: Path, layout: Layout) -> None:
    columns = {
        "moment": pa.array([10**12, None], pa.timestamp("s")),
        "day": pa.array([2**30, None], pa.date32()),
        "span": pa.array([2**60, None], pa.duration("ms")),
    }
    store = write_output(tmp_path / "run", layout, columns)
    kept = pq.read_table(tmp_path / "run" / "metadata.parquet")
    assert kept["moment"].cast(pa.int64()).to_pylist() == [10**15, None], "milliseconds: Parquet has no seconds"
    assert kept["day"].cast(pa.int32()).to_pylist() == [2**30, None]
    assert kept["span"].cast(pa.int64()).to_pylist() == [2**60, None]
    expected = {"moment": "33658-09-27 01:46:40", "day": "2941775-04-07", "span": "13343998895 days, 21:54:06.976"}
    export(store, LocalStore(tmp_path / "out"), "imagefolder", lambda done, total: None)
    exported = pq.read_table(tmp_path / "out" / "metadata.parquet").select(list(expected)).to_pylist()
    assert exported == [expected, dict.fromkeys(expected)]
    build(store, LocalStore(tmp_path / "sheet"), pictures=None, previews=False)
    cells = {cell["name"][:2]: cell["metadata"] for cell in cells_of(tmp_path / "sheet")}
    assert {name: cells["01"].get(name) for name in expected} == expected
    row = find_row(store, task(1).task_id)
    assert row is not None
    assert {name: row[name] for name in expected} == expected


def test_large_seeds_stand_exactly_on_the_contact_sheet(outputs: dict[Layout, LocalStore], tmp_path: Path) -> None:
    build(outputs["files"], LocalStore(tmp_path), pictures=None, previews=False)
    cells = {cell["name"][:2]: cell for cell in cells_of(tmp_path)}
    assert (cells["01"]["seed"], cells["01"]["metadata"]["seed"]) == (str(SEED), str(SEED))
    assert cells["01"]["metadata"]["hash"] == str(SEED)
    (row, _) = pq.read_table(f"{outputs['files'].uri}/metadata.parquet").to_pylist()
    assert f"--seeds {SEED} " in command_of(RUN, row, "again")
