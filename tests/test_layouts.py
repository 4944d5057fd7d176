"""The layouts: where the images of a part are, what else is there, and that nothing else decides a byte of it."""

import io
import json
import math
import re
import tarfile
import tempfile
from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from datetime import date, timedelta
from decimal import Decimal
from hashlib import sha256
from pathlib import Path
from typing import Any, BinaryIO, get_args

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
import pytest
import yaml
from PIL import Image

from pipeline.errors import StoreUnavailableError
from pipeline.output import archives
from pipeline.output.encode import encode, pixel_sha256
from pipeline.output.finalize import finalize
from pipeline.output.index import load_index
from pipeline.output.layout import Format, Layout, Packing, object_of
from pipeline.output.part import PartWriter, objects_of, read_part
from pipeline.output.run import note_license, read_run, write_run
from pipeline.rendering.results import Rendered
from pipeline.storage.base import ObjectStore
from pipeline.storage.local import LocalStore
from tests.noise import noise
from tests.test_end_to_end import Darkroom, write_manifest
from tests.test_output import FACTS, RUN, START, commit, failed, rendered, shard_of, task

LAYOUTS = get_args(Layout)
PACKED = ["webdataset", "parquet"]


def packing_of(layout: Layout, image_format: Format = "png") -> Packing:
    return Packing(layout=layout, format=image_format, jpeg_quality=90 if image_format == "jpeg" else None)


def image_of(store: ObjectStore, file_name: str) -> bytes:
    """The bytes of an image in any layout."""
    key, member = object_of(file_name)
    body = store.get(key)
    if member is None:
        return body
    if key.endswith(".tar"):
        with tarfile.open(fileobj=io.BytesIO(body)) as tar:
            found = tar.extractfile(member)
            assert found is not None
            return found.read()
    images = pq.read_table(io.BytesIO(body))["image"].to_pylist()
    (image,) = (image["bytes"] for image in images if image["path"] == member)
    assert isinstance(image, bytes)
    return image


def check_images(store: ObjectStore, rows: pa.Table, lossless: bool = True) -> None:
    """Every ok row's image is where it says, with the digests it says."""
    for row in rows.to_pylist():
        if row["status"] != "ok":
            assert row["file_name"] is None
            continue
        body = image_of(store, row["file_name"])
        assert (sha256(body).hexdigest(), len(body)) == (row["file_sha256"], row["file_bytes"])
        with Image.open(io.BytesIO(body)) as picture:
            assert picture.format == row["format"].upper()
            assert (pixel_sha256(np.asarray(picture)) == row["pixel_sha256"]) is lossless


def noisy(number: int) -> Rendered:
    return replace(rendered(number), pixels=noise(number)[:8, :8])


def payload_keys(store: ObjectStore) -> list[str]:
    return [info.key for info in store.list() if info.key.startswith(("images/", "shards/", "data/"))]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("image_format", get_args(Format))
def test_a_part_says_where_its_images_are(tmp_path: Path, layout: Layout, image_format: Format) -> None:
    store, facts = LocalStore(tmp_path), replace(FACTS, packing=packing_of(layout, image_format))
    rows = commit(store, noisy(3), failed(4), noisy(5), noisy(6), facts=facts)
    check_images(store, rows, lossless=image_format != "jpeg")
    names = rows["file_name"].drop_null().to_pylist()
    keys = {object_of(name)[0] for name in names}
    assert sorted(keys) == payload_keys(store)
    assert len(keys) == (3 if layout == "files" else 1)
    for key, stored in objects_of(rows).items():
        body = store.get(key)
        assert (sha256(body).hexdigest(), len(body)) == (stored.sha256, stored.bytes)
        assert key.startswith(("shards/", "data/"))
        assert stored.sha256[:8] in key
    assert objects_of(rows).keys() == (set() if layout == "files" else keys)
    (part,) = store.list("metadata/")
    assert objects_of(read_part(store, part.key, ["task_id"])) == objects_of(rows)
    finalize(store)
    final = pq.read_table(tmp_path / "metadata.parquet")
    assert final["file_name"].to_pylist() == names
    assert objects_of(final) == {}, "they are of the parts"


@pytest.mark.parametrize("image_format", get_args(Format))
def test_formats(image_format: Format) -> None:
    pixels = noise(0)
    images = [encode(pixels, packing_of("files", image_format)) for _ in range(2)]
    assert images[0].body == images[1].body
    assert images[0].pixel_sha256 == pixel_sha256(pixels)
    with Image.open(io.BytesIO(images[0].body)) as picture:
        assert (picture.format, picture.mode, picture.size) == (image_format.upper(), "RGB", (128, 128))
        assert not picture.getexif()
        assert np.array_equal(np.asarray(picture), pixels) is (image_format != "jpeg")


def test_jpeg_keeps_its_colours_whole_and_obeys_its_quality() -> None:
    bodies = [encode(noise(0), Packing(format="jpeg", jpeg_quality=quality)).body for quality in (1, 50, 95, 100)]
    assert sorted(bodies, key=len) == bodies
    with Image.open(io.BytesIO(bodies[-1])) as picture:
        assert [layer[1:3] for layer in picture.layer] == [(1, 1)] * 3  # type: ignore[attr-defined]  # of JPEG


@pytest.mark.parametrize("layout", LAYOUTS)
def test_payloads_follow_from_tasks_and_pixels_alone(tmp_path: Path, layout: Layout) -> None:
    stores = [LocalStore(tmp_path / name) for name in "ab"]
    facts = replace(FACTS, packing=packing_of(layout))
    commit(stores[0], rendered(1), failed(2), rendered(3), facts=facts)
    slow = [replace(rendered(number), device="another", rows=2, render_s=9.0) for number in (1, 3)]
    later = replace(facts, attempt=3, darkroom_version="later")
    commit(stores[1], slow[0], failed(2), slow[1], at=START + timedelta(days=1), facts=later)
    assert payload_keys(stores[0]) == payload_keys(stores[1])
    for key in payload_keys(stores[0]):
        assert stores[0].get(key) == stores[1].get(key)
    parts = [[info.key for info in store.list("metadata/")] for store in stores]
    assert parts[0] != parts[1]


@pytest.mark.parametrize("layout", LAYOUTS)
def test_without_an_image_there_is_no_payload(tmp_path: Path, layout: Layout) -> None:
    store, facts = LocalStore(tmp_path), replace(FACTS, packing=packing_of(layout))
    rows = commit(store, failed(1), failed(2), facts=facts)
    assert (rows["file_name"].null_count, payload_keys(store), objects_of(rows)) == (2, [], {})
    assert finalize(store).failed == 2


@pytest.mark.parametrize("layout", LAYOUTS)
def test_nothing_is_committed_before_the_part_is_there(tmp_path: Path, layout: Layout) -> None:
    class Dying(LocalStore):
        """Fails at its n-th put."""

        left = 0

        def put_file(self, key: str, file: BinaryIO) -> None:
            self.left -= 1
            if self.left < 0:
                raise StoreUnavailableError("gone")
            super().put_file(key, file)

    facts = replace(FACTS, packing=packing_of(layout))
    for survived in range(3 if layout == "files" else 2):
        store = Dying(tmp_path / str(survived))
        store.left = survived
        with pytest.raises(StoreUnavailableError):
            commit(store, rendered(1), rendered(2), facts=facts)
        assert len(load_index(store).all()) == 0
        again = LocalStore(tmp_path / str(survived))
        check_images(again, commit(again, rendered(1), rendered(2), facts=facts))
        assert len(load_index(store).ok) == 2
        assert len(payload_keys(store)) == (2 if layout == "files" else 1), "the same bytes have the same name"


@pytest.mark.parametrize("layout", PACKED)
def test_images_come_from_many_threads_and_lie_in_the_order_of_the_shard(tmp_path: Path, layout: Layout) -> None:
    store, numbers = LocalStore(tmp_path), range(1, 251)
    writer = PartWriter(store, shard_of(*numbers), replace(FACTS, packing=packing_of(layout)))
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda number: writer.put(rendered(number), START), reversed(numbers)))
    rows = writer.commit()
    ids = [task(number).task_id for number in numbers]
    assert rows["task_id"].to_pylist() == ids
    (key,) = objects_of(rows)
    body = io.BytesIO(store.get(key))
    if layout == "parquet":
        parquet = pq.ParquetFile(body)
        assert parquet.read(["task_id"])["task_id"].to_pylist() == ids
        assert [parquet.metadata.row_group(n).num_rows for n in range(parquet.num_row_groups)] == [100, 100, 50]
    else:
        with tarfile.open(fileobj=body) as tar:
            assert [name.removesuffix(".png") for name in tar.getnames() if name.endswith(".png")] == ids
    check_images(store, rows.slice(100, 5))


def test_a_row_group_ends_at_so_many_bytes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    store, facts = LocalStore(tmp_path), replace(FACTS, packing=packing_of("parquet"))
    size = len(encode(rendered(1).pixels, facts.packing).body)
    monkeypatch.setattr(archives, "GROUP_BYTES", 2 * size + 1)
    (key,) = objects_of(commit(store, *map(rendered, range(1, 6)), facts=facts))
    parquet = pq.ParquetFile(io.BytesIO(store.get(key)))
    assert [parquet.metadata.row_group(n).num_rows for n in range(parquet.num_row_groups)] == [2, 2, 1]


EXTRAS: dict[str, pa.Array] = {
    "when": pa.array([START, None]),
    "day": pa.array([date(2026, 1, 2), None]),
    "price": pa.array([Decimal("1.50"), None]),
    "raw": pa.array([b"\xff\0", None]),
    "ratio": pa.array([math.nan, math.inf]),
    "tags": pa.array([["a", None], []]),
    "nested": pa.array([{"x": 1.5, "at": START}, None]),
    "word": pa.array(['quoted "…"\n🎈', ""]),
    "none": pa.array([None, None]),
}


def committed_with_extras(store: LocalStore, layout: Layout) -> pa.Table:
    shard = shard_of(1, 2)
    for name, values in EXTRAS.items():
        shard = shard.append_column(name, values)
    writer = PartWriter(store, shard, replace(FACTS, packing=packing_of(layout)))
    writer.put(rendered(1), START)
    writer.put(rendered(2), START)
    return writer.commit()


def refuse(constant: str) -> None:
    raise AssertionError(f"{constant} is not JSON")


def test_a_tar_has_whole_samples_with_plain_json(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    rows = committed_with_extras(store, "webdataset")
    (key,) = objects_of(rows)
    with tarfile.open(fileobj=io.BytesIO(store.get(key))) as tar:
        members = tar.getmembers()
        described, text = (tar.extractfile(member) for member in members[1:3])
        assert described is not None
        assert text is not None
        found = json.loads(described.read(), parse_constant=refuse)
        assert text.read() == b"p1"
    first, second = (task(number).task_id for number in (1, 2))
    assert [member.name for member in members] == [
        f"{i}.{kind}" for i in (first, second) for kind in ("png", "json", "txt")
    ]
    assert {(m.mtime, m.uid, m.gid, m.uname, m.gname, m.mode) for m in members} == {(0, 0, 0, "", "", 0o644)}
    row = rows.to_pylist()[0]
    for name in ("task_id", "prompt", "seed", "guidance_scale", "pixel_sha256", "file_bytes", "theme"):
        assert found[name] == row[name]
    assert not found.keys() & {"created_at", "device", "attempt", "darkroom_version", "render_s", "rows", "file_name"}
    assert {name: found.get(name) for name in EXTRAS} == {
        "when": "2026-01-01T00:00:00+00:00", "day": "2026-01-02", "price": "1.50", "raw": "/wA=", "ratio": None,
        "tags": ["a", None], "nested": {"x": 1.5, "at": "2026-01-01T00:00:00+00:00"}, "word": 'quoted "…"\n🎈',
        "none": None,
    }  # fmt: skip


def test_a_data_file_has_the_columns_as_they_are(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    rows = committed_with_extras(store, "parquet")
    (key,) = objects_of(rows)
    data = pq.read_table(io.BytesIO(store.get(key)))
    for name, values in EXTRAS.items():
        assert data[name].combine_chunks().equals(values) or name == "ratio", name
    assert [path["path"] for path in data["image"].to_pylist()] == [f"{i}.png" for i in rows["task_id"].to_pylist()]
    assert json.loads(data.schema.metadata[b"huggingface"])["info"]["features"] == {"image": {"_type": "Image"}}
    assert not set(data.column_names) & {"created_at", "device", "attempt", "darkroom_version", "render_s", "rows"}


EXTREMES: dict[str, tuple[pa.Array, list[Any]]] = {
    "day": (pa.array([2**31 - 1, 0], pa.int32()).view(pa.date32()), ["5881580-07-11", "1970-01-01"]),
    "at": (
        pa.array([-(2**62), 1], pa.int64()).view(pa.timestamp("us")),
        ["-144169-06-28 09:59:32.612096", "1970-01-01T00:00:00.000001"],
    ),
    "ms": (
        pa.array([2**62, None], pa.int64()).view(pa.timestamp("ms", tz="UTC")),
        ["146140482-04-24 15:36:27.904+00:00", None],
    ),
    "zone": (
        pa.array([0, 2**62], pa.int64()).view(pa.timestamp("us", tz="Mars/Phobos")),
        ["1970-01-01T00:00:00+00:00", "148108-07-06 14:00:27.387904+00:00"],
    ),
    "long": (
        pa.array([2**62, 90_000], pa.int64()).view(pa.duration("ms")),
        ["53375995583 days, 15:36:27.904", "0:01:30"],
    ),
    "clock": (pa.array([2**62, 3], pa.int64()).view(pa.time64("us")), ["14:00:27.387904", "00:00:00.000003"]),
}
NESTED = pa.StructArray.from_arrays(
    [
        pa.array([[0], [2**62]], pa.list_(pa.int64())).cast(pa.list_(pa.timestamp("us"))),
        pa.array([[("a", 2**62)], []], pa.map_(pa.string(), pa.duration("s"))),
    ],
    names=["list", "map"],
)


@pytest.mark.parametrize("layout", LAYOUTS)
def test_times_that_python_has_no_place_for(tmp_path: Path, layout: Layout) -> None:
    """In a second part the same columns are numbers, so that the tables hold both as text."""
    store, facts = LocalStore(tmp_path), replace(FACTS, packing=packing_of(layout))
    for numbers, others in (((1, 2), False), ((3, 4), True)):
        shard = shard_of(*numbers)
        for name, (values, _) in EXTREMES.items():
            shard = shard.append_column(name, pa.array([True, False]) if others else values)
        writer = PartWriter(store, shard.append_column("nested", NESTED), facts)
        for number in numbers:
            writer.put(rendered(number), START)
        writer.commit()
    assert finalize(store).ok == 4
    table = pq.read_table(tmp_path / "metadata.parquet")
    for name, (_, texts) in EXTREMES.items():
        words = [text and text.replace("T", " ") for text in texts]
        assert table[name].to_pylist() == [*words, "True", "False"], name
    assert table["nested"].combine_chunks().slice(0, 2).equals(NESTED)
    if layout == "webdataset":
        found = [described_in(store, key) for key in payload_keys(store)]
        lines = sorted((line for lines in found for line in lines), key=lambda line: line["task_id"])[:2]
        for name, (_, texts) in EXTREMES.items():
            assert [line.get(name) for line in lines] == texts, name
        assert lines[0]["nested"] == {"list": ["1970-01-01T00:00:00"], "map": {"a": "53375995583650 days, 07:45:04"}}
        assert lines[1]["nested"] == {"list": ["148108-07-06 14:00:27.387904"], "map": {}}


def described_in(store: ObjectStore, key: str) -> list[dict[str, Any]]:
    """What a tar says of its images."""
    with tarfile.open(fileobj=io.BytesIO(store.get(key))) as tar:
        members = [tar.extractfile(member) for member in tar.getmembers() if member.name.endswith(".json")]
        return [json.loads(member.read(), parse_constant=refuse) for member in members if member is not None]


def test_a_full_local_disk_says_which_and_what_to_do(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path / "not-there"))
    with pytest.raises(StoreUnavailableError, match=r"gathered in .*not-there.*TMPDIR"):
        commit(LocalStore(tmp_path / "out"), rendered(1), facts=replace(FACTS, packing=packing_of("webdataset")))


def card_of(store: ObjectStore) -> dict[str, Any]:
    """The front matter of the dataset card."""
    text = store.get("README.md").decode()
    assert text.startswith("---\n")
    read: dict[str, Any] = yaml.safe_load(text.split("\n---\n")[0])
    return read


def paths_of(store: ObjectStore) -> Any:
    return card_of(store)["configs"][0]["data_files"][0]["path"]


def test_the_card_is_the_same_for_the_same_content_and_leaves_others_alone(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    write_run(store, RUN)
    commit(store, rendered(1), failed(2))
    finalize(store)
    first = store.get("README.md")
    finalize(store)
    assert store.get("README.md") == first
    assert b"images: 1\nfailed: 1\n" in first
    commit(store, rendered(3))
    finalize(store)
    assert b"images: 2\n" in store.get("README.md")
    store.put("README.md", b"my own")
    finalize(store)
    assert store.get("README.md") == b"my own"


def test_a_few_pictures_are_in_the_card(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    write_run(store, RUN)
    names = commit(store, *map(rendered, range(1, 9)))["file_name"].to_pylist()
    finalize(store)
    shown = re.findall(r"!\[([^]\n]*)\]\(([^)]+)\)", store.get("README.md").decode())
    assert len(shown) == 4
    assert {name for _, name in shown} < set(names)
    assert all(store.head(name) for _, name in shown)
    store = LocalStore(tmp_path / "packed")
    write_run(store, replace(RUN, packing=packing_of("parquet")))
    commit(store, rendered(1), facts=replace(FACTS, packing=packing_of("parquet")))
    finalize(store)
    assert b"![" not in store.get("README.md")


def test_text_of_users_stays_text_in_the_card(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    evil = "x`\n```\n---\nconfigs: []\n````\n<script> ${{}} 🎈 \x07"
    write_run(store, replace(RUN, model_id=evil, job={"m": evil, "c": {evil: evil}}, packing=packing_of("parquet")))
    shard = shard_of(1).append_column(evil.replace("\n", " "), pa.array(["x"]))
    writer = PartWriter(store, shard, replace(FACTS, packing=packing_of("parquet")))
    writer.put(rendered(1), START)
    writer.commit()
    finalize(store)
    assert paths_of(store) == "data/*.parquet"
    text = store.get("README.md").decode()
    blocks = text.split("`````yaml\n")[1:]
    facts, job = (yaml.safe_load(block.split("\n`````\n")[0]) for block in blocks)
    assert (facts["model"], job) == (evil, {"m": evil, "c": {evil: evil}})
    assert card_of(store)["dataset_info"]["features"][-1] == {"name": evil.replace("\n", " "), "dtype": "string"}


def test_the_card_tells_nobodys_folders(tmp_path: Path) -> None:
    store, home = LocalStore(tmp_path), "/home/me/secret"
    job = {
        "manifest": f"{home}/p/*.parquet",
        "model": {"id": f"file://{home}/tiny", "loras": [{"id": "~me/secret/x.safetensors", "weight": 1.0}]},
        "output": {"uri": "s3://bucket/secret/out", "layout": "files"},
        "prompts": {"blocklist": "lists/words.txt"},
    }
    write_run(store, replace(RUN, model_id=f"{home}/tiny/", job=job))
    commit(store, rendered(1))
    finalize(store)
    text = store.get("README.md").decode()
    facts, shown = (yaml.safe_load(block.split("\n```\n")[0]) for block in text.split("```yaml\n")[1:])
    assert facts["model"] == "tiny"
    assert shown == {
        "manifest": "*.parquet",
        "model": {"id": "tiny", "loras": [{"id": "x.safetensors", "weight": 1.0}]},
        "output": {"uri": "s3://bucket/secret/out", "layout": "files"},
        "prompts": {"blocklist": "lists/words.txt"},
    }
    assert "/me" not in text


def test_the_card_states_the_license_that_was_named_last(tmp_path: Path) -> None:
    store = LocalStore(tmp_path)
    write_run(store, RUN)
    commit(store, rendered(1))
    for named, stated in ((None, None), ("cc-by-4.0", "cc-by-4.0"), (None, "cc-by-4.0"), ("mit", "mit")):
        note_license(store, named)
        finalize(store)
        assert card_of(store).get("license") == stated
        assert (b"# license: yours to choose" in store.get("README.md")) is (stated is None)
    assert read_run(store) == replace(RUN, license="mit")


@pytest.mark.parametrize("layout", PACKED)
def test_the_card_lists_objects_where_others_lie_beside_them(tmp_path: Path, layout: Layout) -> None:
    store, facts = LocalStore(tmp_path), replace(FACTS, packing=packing_of(layout))
    write_run(store, replace(RUN, packing=facts.packing))
    keys = [*objects_of(commit(store, rendered(1), facts=facts)), *objects_of(commit(store, rendered(2), facts=facts))]
    finalize(store)
    assert paths_of(store) == f"{keys[0].split('/')[0]}/*.{keys[0].rpartition('.')[2]}"
    commit(store, rendered(1, shade=7), facts=facts, at=START - timedelta(days=1))
    finalize(store)
    assert paths_of(store) == sorted(keys), "a commit that another one replaces is left out"
    empty = LocalStore(tmp_path / "empty")
    write_run(empty, replace(RUN, packing=facts.packing))
    commit(empty, failed(1), facts=facts)
    finalize(empty)
    assert "configs" not in card_of(empty)


@pytest.mark.parametrize(
    ("layout", "image_format", "wider"), [("webdataset", "webp", "0-3"), ("parquet", "jpeg", "0-2")]
)
def test_as_a_user_renders(
    tmp_path: Path, shared_ray: Mapping[str, str], layout: Layout, image_format: Format, wider: str
) -> None:
    darkroom, store = Darkroom(tmp_path, shared_ray), LocalStore(tmp_path / "out")
    write_manifest(tmp_path / "m.parquet", [{"prompt": f"a red {shape}", "shape": shape} for shape in ("star", "ring")])
    words = (
        "render", "--manifest", "m.parquet", "--steps", "2", "-o", "out", "--set", f"output.layout={layout}",
        "--set", f"output.format={image_format}", "--set", "workers.count=1", "--set", "render.shard_images=4",
    )  # fmt: skip
    more = 2 if wider == "0-3" else 0
    for seeds, images, objects in (("0-2", 6, 2), (wider, more, 3 if more else 2)):
        said = f"rendered   {images} images" if images else "Nothing to render: all 6 images are there"
        assert said in darkroom.run(*words, "--seeds", seeds)
        assert len(payload_keys(store)) == objects
    rows = pq.read_table(tmp_path / "out" / "metadata.parquet")
    assert rows.num_rows == 6 + more
    check_images(store, rows, lossless=image_format != "jpeg")
    assert json.loads(darkroom.run("status", "out", "--json"))["ok"] == 6 + more
    said = darkroom.run(*words, "--set", "output.layout=files", code=2)
    assert f"output.layout: the run has '{layout}', this job 'files'" in said
    assert paths_of(store) == ("shards/*.tar" if layout == "webdataset" else "data/*.parquet")
