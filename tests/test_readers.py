"""An output as others read it: ``datasets``, the ``webdataset`` package and DuckDB find the pixels we put there."""

import gc
import io
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from random import Random
from types import ModuleType
from typing import Any, get_args

import duckdb
import numpy as np
import pyarrow as pa
import pytest
import webdataset
from PIL import Image

from pipeline.output.encode import pixel_sha256
from pipeline.output.features import json_features, table_features
from pipeline.output.finalize import finalize
from pipeline.output.layout import Layout, Packing
from pipeline.output.part import PartWriter
from pipeline.output.run import write_run
from pipeline.report.contact_sheet import build
from pipeline.shapes.pictures import draw, held_out_prompts
from pipeline.storage.local import LocalStore
from tests.test_output import FACTS, RUN, START, failed, rendered, shard_of, task

IMAGES, FAILED = 14, 4
PICTURES = {number: draw(scene, Random(number), 64) for number, scene in enumerate(held_out_prompts(IMAGES), 1)}
DIGESTS = {task(number).task_id: pixel_sha256(pixels) for number, pixels in PICTURES.items() if number != FAILED}
PACKING = {
    "files": Packing(layout="files"),
    "webdataset": Packing(layout="webdataset", format="webp"),
    "parquet": Packing(layout="parquet"),
}


@pytest.fixture(scope="module")
def datasets(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ModuleType]:
    """The package, which must not ask its Hub for anything."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("HF_HUB_OFFLINE", "1")
        patch.setenv("HF_HOME", str(tmp_path_factory.mktemp("hugging-face")))
        import datasets

        patch.setattr(datasets.config, "HF_HUB_OFFLINE", True)
        datasets.disable_progress_bars()
        yield datasets


def write_part(store: LocalStore, packing: Packing, numbers: range) -> None:
    """The first rows have nulls where later ones have values: readers that take types from them must be told."""
    shard = shard_of(*numbers)
    for name, later in (("negative_prompt", "ugly"), ("motif", "ü"), ("score", 1.5)):
        values = [later if number > IMAGES // 2 else None for number in numbers]
        shard = shard.append_column(name, pa.array(values, pa.float64() if name == "score" else pa.string()))
    writer = PartWriter(store, shard, replace(FACTS, packing=packing))
    for number in numbers:
        whole = replace(rendered(number), pixels=PICTURES[number])
        writer.put(failed(number) if number == FAILED else whole, START)
    writer.commit()


def write_output(folder: Path, layout: Layout) -> Path:
    store, packing = LocalStore(folder), PACKING[layout]
    write_run(store, replace(RUN, packing=packing))
    write_part(store, packing, range(1, 10))
    write_part(store, packing, range(10, IMAGES + 1))
    finalize(store)
    build(store, LocalStore(folder / "contact-sheet"), pictures="../", previews=True)  # no reader may stumble over it
    return folder


@pytest.fixture(scope="module")
def outputs(tmp_path_factory: pytest.TempPathFactory) -> dict[Layout, Path]:
    return {layout: write_output(tmp_path_factory.mktemp(layout), layout) for layout in get_args(Layout)}


def digest(picture: Image.Image) -> str:
    return pixel_sha256(np.asarray(picture))


def check_table(table: Any) -> None:
    """A dataset whose rows have a column of ours beside each image."""
    assert {row["task_id"]: digest(row["image"]) for row in table} == DIGESTS
    rows = {row["task_id"]: row for row in table}
    first, last = rows[task(1).task_id], rows[task(IMAGES).task_id]
    assert (first["seed"], first["score"], first["motif"]) == (1, None, None)
    assert (last["negative_prompt"], last["score"], last["motif"]) == ("ugly", 1.5, "ü")


def check_samples(samples: Any, whole: bool) -> None:
    """A dataset of a tar's members, with all columns where they were stated."""
    assert {row["__key__"]: digest(row["webp"]) for row in samples} == DIGESTS
    last = next(row for row in samples if row["__key__"] == task(IMAGES).task_id)
    assert (last["txt"], last["json"]["task_id"], last["json"]["seed"]) == (f"p{IMAGES}", last["__key__"], IMAGES)
    if whole:
        described = last["json"]
        assert (described["negative_prompt"], described["score"], described["motif"]) == ("ugly", 1.5, "ü")


@pytest.mark.parametrize("layout", get_args(Layout))
def test_load_dataset_of_an_output(
    datasets: ModuleType, outputs: dict[Layout, Path], tmp_path: Path, layout: Layout
) -> None:
    loaded = datasets.load_dataset(str(outputs[layout]), split="train", cache_dir=tmp_path)
    check_samples(loaded, whole=True) if layout == "webdataset" else check_table(loaded)


@pytest.mark.parametrize("layout", get_args(Layout))
def test_what_was_never_committed_is_not_loaded(datasets: ModuleType, tmp_path: Path, layout: Layout) -> None:
    output = write_output(tmp_path / "output", layout)
    writer = PartWriter(LocalStore(output), shard_of(99), replace(FACTS, packing=PACKING[layout]))
    writer.put(replace(rendered(99), pixels=PICTURES[1]), START)
    (name,) = writer.commit()["part_id"].to_pylist()
    for part in output.glob(f"metadata/*/{name}-*"):
        part.unlink()
    finalize(LocalStore(output))
    loaded = datasets.load_dataset(str(output), split="train", cache_dir=tmp_path / "cache")
    assert len(loaded) == len(DIGESTS)


def test_load_dataset_by_format(datasets: ModuleType, outputs: dict[Layout, Path], tmp_path: Path) -> None:
    def load(name: str, **where: str) -> Any:
        return datasets.load_dataset(name, split="train", cache_dir=tmp_path / name, **where)

    check_table(load("imagefolder", data_dir=str(outputs["files"])))
    check_samples(load("webdataset", data_files=f"{outputs['webdataset']}/shards/*.tar"), whole=False)
    check_table(load("parquet", data_files=f"{outputs['parquet']}/data/*.parquet"))


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the package leaves what it opened to be collected
def test_the_webdataset_package(outputs: dict[Layout, Path]) -> None:
    urls = [str(path) for path in sorted((outputs["webdataset"] / "shards").iterdir())]
    samples = webdataset.WebDataset(urls, shardshuffle=False).decode("pil").to_tuple("__key__", "webp", "json", "txt")
    found = {}
    for key, picture, described, prompt in samples:
        found[key] = digest(picture)
        assert (described["task_id"], described["prompt"]) == (key, prompt)
    assert found == DIGESTS
    del samples
    gc.collect()


def ask(query: str) -> list[Any]:
    with duckdb.connect() as connection:
        return connection.execute(query).fetchall()


def test_duckdb(outputs: dict[Layout, Path]) -> None:
    for output in outputs.values():
        assert dict(ask(f"select task_id, pixel_sha256 from '{output}/metadata.parquet'")) == DIGESTS
        assert ask(f"select error from '{output}/failures.parquet'") == [("decode: NaN: no",)]
    bodies = ask(f"select task_id, image.bytes from '{outputs['parquet']}/data/*.parquet'")
    assert {key: digest(Image.open(io.BytesIO(body))) for key, body in bodies} == DIGESTS


KINDS: dict[str, pa.DataType] = {
    "text": pa.string(), "flag": pa.bool_(), "small": pa.int8(), "large": pa.uint64(), "half": pa.float16(),
    "single": pa.float32(), "double": pa.float64(), "day": pa.date32(), "day64": pa.date64(), "raw": pa.binary(),
    "when": pa.timestamp("us", "UTC"), "local": pa.timestamp("ns"), "span": pa.duration("ms"), "clock": pa.time64("us"),
    "price": pa.decimal128(10, 2), "null": pa.null(), "list": pa.list_(pa.float64()), "fixed": pa.list_(pa.int8(), 3),
    "nested": pa.list_(pa.struct([("a", pa.list_(pa.string())), ("b", pa.timestamp("s"))])),
    "deep": pa.list_(pa.list_(pa.int64())), "struct": pa.struct([("x", pa.struct([("y", pa.bool_())]))]),
}  # fmt: skip


def test_types_are_stated_as_datasets_has_them(datasets: ModuleType) -> None:
    schema = pa.schema(list(KINDS.items()))
    theirs = datasets.Features.from_arrow_schema(schema)
    assert table_features(schema) == theirs._to_yaml_list()
    assert datasets.Features._from_yaml_list(table_features(schema)) == theirs
    plain = datasets.Features._from_yaml_list(json_features(schema))
    assert (
        plain["nested"]
        == datasets.Features.from_arrow_schema(
            pa.schema([("nested", pa.list_(pa.struct([("a", pa.list_(pa.string())), ("b", pa.string())])))])
        )["nested"]
    )
    assert {plain[name].dtype for name in ("day", "raw", "when", "span", "clock", "price")} == {"string"}
