"""``darkroom export``: trees with exactly the published names and types, and the pixels that were committed."""

import io
import json
import sys
import tarfile
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC
from pathlib import Path
from types import ModuleType
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import webdataset
from PIL import Image

from jobs import cli
from pipeline.errors import JobBrokenError, OutputError
from pipeline.export import committed as reading
from pipeline.export.committed import Committed
from pipeline.export.diffusiondb import SAMPLERS, SCHEMA, export_diffusiondb, sampler_of
from pipeline.export.formats import FORMATS, export
from pipeline.export.webdataset import export_webdataset
from pipeline.output.encode import pixel_sha256
from pipeline.output.finalize import finalize
from pipeline.output.layout import Format, Layout, Packing
from pipeline.output.part import PartWriter
from pipeline.output.provenance import read_provenance
from pipeline.output.run import write_run
from pipeline.schedulers import SCHEDULERS
from pipeline.storage.local import LocalStore
from pipeline.storage.location import open_store
from pipeline.storage.s3_settings import S3Settings
from tests.noise import noise
from tests.test_layouts import EXTRAS
from tests.test_output import FACTS, RUN, START, commit, failed, rendered, shard_of, task
from tests.test_readers import datasets

__all__ = ["datasets"]
IMAGES, FAILED = 7, 4
NUMBERS = [number for number in range(1, IMAGES + 2) if number != FAILED]
DIGESTS = {task(number).task_id: pixel_sha256(noise(number)[:8, :8]) for number in NUMBERS}


def write_output(folder: Path, layout: Layout = "files", image_format: Format = "png") -> LocalStore:
    """Two parts, one with a failure, and columns of the manifest's own."""
    quality = 90 if image_format == "jpeg" else None
    packing = Packing(layout=layout, format=image_format, jpeg_quality=quality, provenance="full")
    store, facts = LocalStore(folder), replace(FACTS, packing=packing)
    write_run(store, replace(RUN, packing=packing))
    for numbers in (range(1, 6), range(6, IMAGES + 2)):
        shard = shard_of(*numbers)
        shard = shard.append_column("score", pa.array([n / 2 if n > 2 else None for n in numbers]))
        writer = PartWriter(store, shard, facts)
        for number in numbers:
            whole = replace(rendered(number), pixels=noise(number)[:8, :8])
            writer.put(failed(number) if number == FAILED else whole, START)
        writer.commit()
    finalize(store)
    return store


def exported(store: LocalStore, folder: Path, form: str) -> Path:
    seen: list[tuple[int, int]] = []
    assert export(store, LocalStore(folder), form, lambda done, total: seen.append((done, total))) == IMAGES
    assert seen == [(done, IMAGES) for done in range(1, IMAGES + 1)]
    return folder


def digest(body: bytes) -> str:
    return pixel_sha256(np.asarray(Image.open(io.BytesIO(body))))


@pytest.mark.parametrize("layout", get_args(Layout))
def test_imagefolder(layout: Layout, tmp_path: Path, datasets: ModuleType) -> None:
    folder = exported(write_output(tmp_path / "out", layout), tmp_path / "export", "imagefolder")
    table = pq.read_table(folder / "metadata.parquet")
    names = {path.relative_to(folder).as_posix() for path in folder.rglob("*") if path.is_file()}
    assert names == {"metadata.parquet", *table["file_name"].to_pylist()}
    assert table["score"].to_pylist() == [None, None, 1.5, 2.5, 3.0, 3.5, 4.0]
    loaded = datasets.load_dataset("imagefolder", data_dir=str(folder), split="train", cache_dir=tmp_path / "cache")
    assert {row["task_id"]: pixel_sha256(np.asarray(row["image"])) for row in loaded} == DIGESTS
    assert [(row["prompt"], row["seed"], row["theme"]) for row in loaded] == [(f"p{n}", n, "x") for n in NUMBERS]


@pytest.mark.filterwarnings("ignore:unclosed file:ResourceWarning")  # the package leaves what it opened to be collected
@pytest.mark.parametrize("layout", get_args(Layout))
def test_webdataset(layout: Layout, tmp_path: Path, datasets: ModuleType) -> None:
    store, target = write_output(tmp_path / "out", layout, "webp"), LocalStore(tmp_path / "export")
    committed = Committed(store)
    export_webdataset(committed, target, lambda _: None, shard_images=3, clock=iter(range(6)).__next__)
    committed.close()
    shards = ["00000", "00001", "00002"]
    assert [info.key for info in target.list()] == [
        f"{shard}{end}" for shard in shards for end in (".parquet", ".tar", "_stats.json")
    ]
    stats = [json.loads(target.get(f"{shard}_stats.json")) for shard in shards]
    assert [one["successes"] for one in stats] == [3, 3, 1]
    assert stats[0] == {
        "count": 3, "successes": 3, "failed_to_download": 0, "failed_to_resize": 0, "duration": 1, "start_time": 0,
        "end_time": 1, "status_dict": {"success": 3},
    }  # fmt: skip
    table = pa.concat_tables([pq.read_table(io.BytesIO(target.get(f"{shard}.parquet"))) for shard in shards])
    keys = ["000000000", "000000001", "000000002", "000010000", "000010001", "000010002", "000020000"]
    assert table["key"].to_pylist() == keys
    for name, kind in (
        ("caption", "string"), ("url", "string"), ("status", "string"), ("error_message", "string"),
        ("width", "int32"), ("original_height", "int32"), ("sha256", "string"), ("seed", "uint64"),
    ):  # fmt: skip
        assert str(table.schema.field(name).type) == kind
    assert set(table["status"].to_pylist()) == {"success"}
    with tarfile.open(tmp_path / "export" / "00000.tar") as tar:
        assert tar.getnames()[:4] == ["000000000.webp", "000000000.json", "000000000.txt", "000000001.webp"]
    urls = [str(tmp_path / "export" / f"{shard}.tar") for shard in shards]
    samples = webdataset.WebDataset(urls, shardshuffle=False).decode("pil").to_tuple("__key__", "webp", "json", "txt")
    found = {}
    for key, picture, described, prompt in samples:
        found[described["task_id"]] = pixel_sha256(np.asarray(picture))
        assert (described["key"], described["caption"], prompt) == (key, prompt, described["prompt"])
        assert not described.keys() & {"created_at", "device", "error_message", "file_name"}
    assert found == DIGESTS
    loaded = datasets.load_dataset("webdataset", data_files=urls, split="train", cache_dir=tmp_path / "cache")
    assert {row["json"]["task_id"]: pixel_sha256(np.asarray(row["webp"])) for row in loaded} == DIGESTS
    side = datasets.load_dataset(
        "parquet", data_files=f"{tmp_path}/export/*.parquet", split="train", cache_dir=tmp_path / "cache"
    )
    assert side["key"][:] == keys


PUBLISHED = {
    "image_name": "string", "prompt": "string", "part_id": "uint16", "seed": "uint32", "step": "uint16",
    "cfg": "float", "sampler": "uint8", "width": "uint16", "height": "uint16", "user_name": "string",
    "timestamp": "timestamp[us, tz=UTC]", "image_nsfw": "float", "prompt_nsfw": "float",
}  # fmt: skip


def test_diffusiondb(tmp_path: Path, datasets: ModuleType) -> None:
    committed, target = Committed(write_output(tmp_path / "out")), LocalStore(tmp_path / "export")
    export_diffusiondb(committed, target, lambda _: None, part_images=3)
    assert {field.name: str(field.type) for field in SCHEMA} == PUBLISHED
    table = pq.read_table(tmp_path / "export" / "metadata.parquet")
    assert table.schema.equals(SCHEMA)
    assert table["part_id"].to_pylist() == [1, 1, 1, 2, 2, 2, 3]
    first = table.to_pylist()[0]
    name = f"{task(1).task_id}.png"
    assert (first["image_name"], first["seed"], first["step"], first["cfg"], first["sampler"]) == (name, 1, 5, 2.0, 1)
    assert (first["timestamp"].astimezone(UTC), first["user_name"], first["image_nsfw"]) == (START, None, None)
    recipes = json.loads(target.get("images/part-000001/part-000001.json"))
    assert recipes[name] == {"p": "p1", "se": 1, "c": 2.0, "st": 5, "sa": "ddim"}
    assert [len(json.loads(target.get(f"images/part-{n:06}/part-{n:06}.json"))) for n in (1, 2, 3)] == [3, 3, 1]
    for row in table.to_pylist():
        body = target.get(f"images/part-{row['part_id']:06}/{row['image_name']}")
        assert digest(body) == DIGESTS[row["image_name"].removesuffix(".png")]
    assert len(list(target.list())) == IMAGES + 3 + 1
    loaded = datasets.load_dataset(
        "parquet", data_files=str(tmp_path / "export" / "metadata.parquet"), split="train", cache_dir=tmp_path / "cache"
    )
    assert {name: feature.dtype for name, feature in loaded.features.items()} == {
        name: kind.replace("float", "float32") for name, kind in PUBLISHED.items()
    }


def test_samplers_have_diffusiondbs_numbers() -> None:
    numbers = {name: SAMPLERS.index(sampler_of(name)) + 1 for name in SCHEDULERS}
    assert {name: number for name, number in numbers.items() if number != 9} == {
        "ddim": 1, "pndm": 2, "euler": 3, "euler_ancestral": 4, "heun": 5, "kdpm2": 6, "kdpm2_ancestral": 7, "lms": 8,
    }  # fmt: skip
    assert sampler_of("lms:karras") == "k_lms"


@pytest.mark.parametrize("image_format", get_args(Format))
def test_geneval(image_format: Format, tmp_path: Path) -> None:
    quality = 90 if image_format == "jpeg" else None
    packing = Packing(format=image_format, jpeg_quality=quality, provenance="full")
    store, facts = LocalStore(tmp_path / "out"), replace(FACTS, packing=packing)
    write_run(store, replace(RUN, packing=packing))
    numbers = [1, 2, 3, 4]
    include = [{"class": "dog", "count": 1, "color": None}, {"class": "cup", "count": 1, "color": "red"}]
    shard = shard_of(*numbers).drop_columns(["theme", "manifest_row"])
    for name, values in {
        "manifest_row": pa.array([0, 0, 1, 1]),
        "tag": pa.array(["two_object"] * 4),
        "include": pa.array([include] * 4),
        "exclude": pa.array(['[{"class": "dog", "count": 2, "position": ["left of", 0]}]'] * 4),
    }.items():  # fmt: skip
        shard = shard.append_column(name, values)
    writer = PartWriter(store, shard, facts)
    for number in numbers:
        writer.put(replace(rendered(number), pixels=noise(number)[:8, :8]), START)
    writer.commit()
    finalize(store)
    target = LocalStore(tmp_path / "export")
    assert export(store, target, "geneval", lambda *_: None) == 4
    assert [info.key for info in target.list()] == [
        f"{folder}/{name}"
        for folder in ("00000", "00001")
        for name in ("metadata.jsonl", "samples/0000.png", "samples/0001.png")
    ]
    assert json.loads(target.get("00001/metadata.jsonl")) == {
        "tag": "two_object", "prompt": "p3",
        "include": [{"class": "dog", "count": 1}, {"class": "cup", "count": 1, "color": "red"}],
        "exclude": [{"class": "dog", "count": 2, "position": ["left of", 0]}],
    }  # fmt: skip
    body = target.get("00001/samples/0001.png")
    with Image.open(io.BytesIO(body)) as picture:
        assert picture.format == "PNG"
    assert (digest(body) == pixel_sha256(noise(4)[:8, :8])) is (image_format != "jpeg")
    assert (read_provenance(body)[1] or "").startswith("p4\nSteps: 5")


@pytest.mark.parametrize("form", ["imagefolder", "webdataset"])
def test_columns_of_any_type_come_along(form: str, tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "out")
    write_run(store, RUN)
    shard = shard_of(1, 2)
    half = pa.array(np.array([0.5, 1.5], np.float16))
    for name, values in {**EXTRAS, "half": half, "caption": pa.array(["theirs", None])}.items():
        shard = shard.append_column(name, values)
    writer = PartWriter(store, shard, FACTS)
    for number in (1, 2):
        writer.put(rendered(number), START)
    writer.commit()
    finalize(store)
    export(store, LocalStore(tmp_path / "export"), form, lambda *_: None)
    (path,) = (tmp_path / "export").glob("*.parquet")
    table = pq.read_table(path)
    for column, values in EXTRAS.items():
        assert table[column].combine_chunks().equals(values) or column == "ratio", column
    assert table["half"].combine_chunks().equals(half)


def test_only_into_an_empty_place(tmp_path: Path) -> None:
    store = write_output(tmp_path / "out")
    (tmp_path / "there").mkdir()
    (tmp_path / "there" / "notes.txt").write_text("mine")
    for form in FORMATS:
        with pytest.raises(OutputError, match=r"notes\.txt"):
            export(store, LocalStore(tmp_path / "there"), form, lambda *_: None)
    assert [path.name for path in (tmp_path / "there").iterdir()] == ["notes.txt"]


def test_what_is_not_as_committed_is_told(tmp_path: Path) -> None:
    store = write_output(tmp_path / "out")
    name = next(info.key for info in store.list("images/"))
    store.put(name, store.get(name) + b"x")
    with pytest.raises(JobBrokenError, match="not as it was committed"):
        export(store, LocalStore(tmp_path / "a"), "imagefolder", lambda *_: None)
    store.delete(name)
    with pytest.raises(JobBrokenError, match="cannot be read"):
        export(store, LocalStore(tmp_path / "b"), "imagefolder", lambda *_: None)


@pytest.mark.parametrize("layout", ["webdataset", "parquet"])
def test_few_archives_are_held(layout: Layout, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """However the rows lie in them."""
    monkeypatch.setattr(reading, "OPEN_ARCHIVES", 1)
    store = write_output(tmp_path / "out", layout)
    committed = Committed(store)
    rows = list(committed.rows())
    for row in [*rows, *reversed(rows), rows[0], rows[-1], rows[0]]:
        assert digest(committed.image(row)) == row["pixel_sha256"]
    committed.close()


Command = Callable[..., tuple[int, str]]


@pytest.fixture
def darkroom(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    def run(*words: str) -> tuple[int, str]:
        monkeypatch.setattr(sys, "argv", ["darkroom", *words])
        with pytest.raises(SystemExit) as ended:
            cli.main()
        said: Any = capsys.readouterr()
        return int(str(ended.value.code)), said.out + said.err

    return run


def test_the_command(tmp_path: Path, darkroom: Command) -> None:
    store, out = write_output(tmp_path / "out"), str(tmp_path / "out")
    code, said = darkroom("export", out, str(tmp_path / "new" / "folder"), "--to", "webdataset")
    assert (code, said) == (0, f"exported   {IMAGES} images to {tmp_path}/new/folder\n")
    code, said = darkroom("export", out, str(tmp_path / "again"), "--to", "geneval", "--json")
    assert (code, json.loads(said)) == (0, {"destination": f"{tmp_path}/again", "format": "geneval", "images": IMAGES})
    for words, says in [
        ([out, str(tmp_path / "new" / "folder"), "--to", "webdataset"], "there is something at this place"),
        ([out, out, "--to", "geneval"], "there is something at this place"),
        ([out, str(tmp_path / "x"), "--to", "zip"], "imagefolder, webdataset, diffusiondb, geneval"),
        ([out, "gs://x", "--to", "geneval"], "gs:// is not supported"),
        ([str(tmp_path / "none"), str(tmp_path / "x"), "--to", "geneval"], "no run at this output"),
    ]:
        code, said = darkroom("export", *words)
        assert (code, says in said) == (2, True), said
    commit(store, rendered(20))
    code, said = darkroom("export", out, str(tmp_path / "x"), "--to", "geneval")
    assert code == 2
    assert "darkroom finalize" in said
    assert not (tmp_path / "x").exists()


def test_to_and_from_s3(s3_bucket: str, s3_settings: S3Settings, tmp_path: Path) -> None:
    local = write_output(tmp_path / "out", "webdataset")
    source = open_store(f"s3://{s3_bucket}/run", s3_settings)
    for info in local.list():
        source.put(info.key, local.get(info.key))
    target = open_store(f"s3://{s3_bucket}/export", s3_settings)
    assert export(source, target, "imagefolder", lambda *_: None) == IMAGES
    table = pq.read_table(io.BytesIO(target.get("metadata.parquet")))
    assert {row["task_id"]: digest(target.get(row["file_name"])) for row in table.to_pylist()} == DIGESTS


def test_columns_named_like_img2datasets_fields(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "out")
    write_run(store, RUN)
    shard = shard_of(1).append_column("manifest_key", pa.array(["theirs"]))
    writer = PartWriter(store, shard.append_column("key", pa.array([2**64 - 1], pa.uint64())), FACTS)
    writer.put(rendered(1), START)
    writer.commit()
    finalize(store)
    export(store, LocalStore(tmp_path / "export"), "webdataset", lambda *_: None)
    with tarfile.open(tmp_path / "export" / "00000.tar") as tar:
        told = json.load(tar.extractfile("000000000.json"))  # type: ignore[arg-type]  # a file, not a folder
    assert (told["key"], told["manifest_key"]) == ("000000000", "theirs")
    assert told["manifest_manifest_key"] == str(2**64 - 1), "a text: datasets takes no such integer"
    (row,) = pq.read_table(tmp_path / "export" / "00000.parquet").to_pylist()
    assert (row["manifest_key"], row["manifest_manifest_key"]) == ("theirs", 2**64 - 1)
