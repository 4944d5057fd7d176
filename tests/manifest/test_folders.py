"""Folders of prompts as tools leave them: hidden names, our own outputs, links, and names that are columns."""

import io
import os
import pickle
from decimal import Decimal
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.errors import ManifestError
from pipeline.export.writing import TableFile
from pipeline.manifest.find import find_files
from pipeline.manifest.read import read_rows
from pipeline.output.layout import (
    FAILURES_KEY,
    METADATA_KEY,
    REQUESTS_KEY,
    RUN_KEY,
    data_key,
    is_table,
    part_key,
    prompt_key,
)
from pipeline.storage.base import ObjectStore
from pipeline.storage.local import LocalStore
from pipeline.storage.location import open_store
from pipeline.storage.s3_settings import S3Settings
from tests.manifest.files import opened, rows, write

DIGEST = "0123456789abcdef" * 4


def prompts(uri: Path | str, columns: dict[str, str] | None = None) -> list[str]:
    return [row["prompt"] for row in rows(opened(uri, columns))]


def put(store: ObjectStore, key: str, table: dict[str, list[str]] | None = None) -> None:
    """Prompts that say where they lie, unless a table is given."""
    buffer = io.BytesIO()
    pq.write_table(pa.table(table or {"prompt": [key]}), buffer)
    store.put(key, buffer.getvalue())


@pytest.fixture
def store(tmp_path: Path) -> ObjectStore:
    return LocalStore(tmp_path / "in")


def test_hidden_names_are_left_out_of_folders_and_globs(store: ObjectStore) -> None:
    hidden = [
        "_old.parquet",
        ".a.parquet",
        "_temporary/0/part.parquet",
        "x/.ipynb_checkpoints/a.parquet",
        "x/_b.parquet",
    ]
    seen = ["a.parquet", "x/B.PARQUET", "x/_day=1/c.parquet"]
    for key in (*hidden, *seen):
        put(store, key)
    store.put("_SUCCESS", b"")
    for uri in ("", "/**/*.[pP]*", "/**"):
        assert prompts(store.uri + uri) == seen
    (warning,) = opened(store.uri).warnings
    assert warning.startswith("names that begin with _ or . are left out: ")
    assert "_old.parquet" in warning
    assert "_temporary/0/part.parquet" in warning or "and 2 more" in warning
    assert prompts(f"{store.uri}/_old.parquet") == ["_old.parquet"]
    assert prompts(f"{store.uri}/_temporary") == ["_temporary/0/part.parquet"]
    assert prompts(f"{store.uri}/_*.parquet") == ["_old.parquet"]
    assert prompts(f"{store.uri}/*/.ipynb*/*") == ["x/.ipynb_checkpoints/a.parquet"]


def test_nothing_but_hidden_names(tmp_path: Path) -> None:
    write(tmp_path / "_staging" / "a.parquet", {"prompt": ["a"]})
    with pytest.raises(ManifestError, match=r"nothing else is there: _staging/a\.parquet"):
        opened(tmp_path)


@pytest.mark.parametrize("place", ["renders", "deep/er/renders", ""])
def test_our_own_outputs_are_left_out_wherever_they_lie(store: ObjectStore, place: str) -> None:
    put(store, "a.parquet")
    put(store, "metadata/mine.parquet")
    at = f"{place}/" if place else ""
    ours = [part_key("1" * 32, DIGEST), data_key("1" * 32, DIGEST), METADATA_KEY, "metadata-00000.parquet"]
    ours += [FAILURES_KEY, REQUESTS_KEY, prompt_key(DIGEST), f"_darkroom/added/{DIGEST}.parquet"]
    for key in ours:
        assert is_table(key) != key.startswith("_darkroom/")
        put(store, at + key, {"task_id": ["x"]})
    store.put(f"{at}{RUN_KEY}", b"{}")
    for uri in ("", "/**/*.parquet"):
        assert prompts(store.uri + uri) == ["a.parquet", "metadata/mine.parquet"]
    assert opened(store.uri).warnings == ()


def test_an_output_whose_first_launch_was_killed_early_is_one(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"prompt": ["a"]})
    write(tmp_path / "out" / "data" / "b.parquet", {"prompt": ["b"]})
    (tmp_path / "out" / "_darkroom").mkdir()
    assert prompts(tmp_path) == ["a"]
    write(tmp_path / "out2" / METADATA_KEY, {"task_id": ["b"]})
    (tmp_path / "out2" / "_darkroom").mkdir()
    with pytest.raises(ManifestError, match="this is an output of Darkroom") as caught:
        opened(tmp_path / "out2")
    assert "named exactly" in str(caught.value.allowed)


def test_tables_of_exports_are_left_out_unless_they_are_named(store: ObjectStore) -> None:
    put(store, "a.parquet")
    schema = pa.schema([("prompt", pa.string()), ("cfg", pa.float32())])
    with TableFile(schema) as table:
        table.add({"prompt": "exported"})
        table.put(store, "db/metadata.parquet")
    assert prompts(store.uri) == ["a.parquet"]
    assert prompts(f"{store.uri}/db/metadata.parquet") == ["exported"]
    with pytest.raises(ManifestError, match="every Parquet file here is a table of an export"):
        opened(f"{store.uri}/db")


def test_folders_of_key_and_value_are_columns_of_text(store: ObjectStore) -> None:
    put(store, "style=ink/day=01/a.parquet", {"prompt": ["1"]})
    put(store, "style=a%2Fb c%/day=__HIVE_DEFAULT_PARTITION__/a=b.parquet", {"prompt": ["2"]})
    put(store, "style=/a.parquet", {"prompt": ["3"]})
    put(store, "a.parquet", {"prompt": ["4"]})
    for uri in ("", "/**/*.parquet"):
        manifest = pickle.loads(pickle.dumps(opened(store.uri + uri)))  # noqa: S301  # made a word before
        assert manifest.extra_schema == pa.schema([("style", pa.string()), ("day", pa.string())])
        found = {row["prompt"]: (row["style"], row["day"]) for row in rows(manifest)}
        assert found == {"1": ("ink", "01"), "2": ("a/b c%", None), "3": ("", None), "4": (None, None)}
        assert manifest.warnings == ()


def test_a_folder_that_is_named_is_no_column(tmp_path: Path) -> None:
    write(tmp_path / "style=ink" / "a.parquet", {"prompt": ["a"]})
    assert "style" not in rows(opened(tmp_path / "style=ink"))[0]
    assert rows(opened(f"{tmp_path}/style=*/a.parquet"))[0]["style"] == "ink"


@pytest.mark.parametrize(("name", "ours"), [("seed", "seed"), ("Steps", "num_inference_steps"), ("SEEDS", "seeds")])
def test_a_folder_named_like_a_setting_counts_only_when_mapped(tmp_path: Path, name: str, ours: str) -> None:
    write(tmp_path / f"{name}=5" / "a.parquet", {"prompt": ["a"]})
    manifest = opened(tmp_path)
    (row,) = rows(manifest)
    assert (row["seeds"], row["num_inference_steps"]) == (None, None)
    assert name not in row
    (warning,) = manifest.warnings
    assert f"manifest_columns: {{{name}: {ours}}}" in warning
    assert f"({name}=5), which has no effect" in warning


def test_folders_that_are_mapped_replace_axes(tmp_path: Path) -> None:
    write(tmp_path / "seed=18446744073709551615" / "cfg=7.5" / "a.parquet", {"prompt": ["a"]})
    write(tmp_path / "seed=__HIVE_DEFAULT_PARTITION__" / "cfg=x" / "a.parquet", {"prompt": ["b"]})
    manifest = opened(tmp_path, {"seed": "seed", "cfg": "guidance_scale"})
    assert [(row["seeds"], row["guidance_scale"]) for row in rows(manifest)] == [([2**64 - 1], 7.5)]
    assert manifest.warnings == ()
    write(tmp_path / "text" / "caption=an old ship" / "a.parquet", {"id": [1]})
    assert prompts(tmp_path / "text", {"caption": "prompt"}) == ["an old ship"]


def test_folders_and_files_with_the_same_column(tmp_path: Path) -> None:
    write(tmp_path / "style=ink" / "a.parquet", {"prompt": ["a"], "style": ["oil"]})
    write(tmp_path / "status=ok" / "b.parquet", {"prompt": ["b"]})
    manifest = opened(tmp_path)
    assert [row["style"] for row in rows(manifest)] == [None, "oil"]
    reserved, both = manifest.warnings
    assert "named like status of Darkroom's own metadata (status=ok), which is left out" in reserved
    assert "the column style is in files and in the names of their folders (style=ink)" in both
    assert rows(opened(tmp_path, {"status": "state"}))[0]["state"] == "ok"


@pytest.mark.parametrize(
    ("folder", "says"), [("a=1/a=2", "two folders state the same column"), ("a=%ff", "not UTF-8 after decoding")]
)
def test_folders_that_cannot_be_columns(tmp_path: Path, folder: str, says: str) -> None:
    write(tmp_path / folder / "a.parquet", {"prompt": ["a"]})
    with pytest.raises(ManifestError, match=says):
        opened(tmp_path)


def test_links_are_followed_as_the_hub_keeps_its_cache(tmp_path: Path) -> None:
    blob = write(tmp_path / "hub" / "blobs" / "0f" / "abc", {"prompt": ["a"]})
    snapshot = tmp_path / "hub" / "snapshots" / "abc"
    (snapshot / "data").mkdir(parents=True)
    (snapshot / "train.parquet").symlink_to("../../blobs/0f/abc")
    (snapshot / "data" / "test.parquet").symlink_to(write(tmp_path / "other" / "x", {"prompt": ["b"]}))
    (tmp_path / "link").symlink_to(snapshot)
    for uri in (snapshot, tmp_path / "link", f"{snapshot}/**/*.parquet"):
        manifest = pickle.loads(pickle.dumps(opened(uri)))  # noqa: S301  # made a word before
        assert [(row["manifest_file"], row["prompt"]) for row in rows(manifest)] == [
            ("data/test.parquet", "b"),
            ("train.parquet", "a"),
        ]
    assert prompts(snapshot / "train.parquet") == ["a"]
    blob.unlink()
    with pytest.raises(ManifestError, match="this symbolic link leads nowhere") as caught:
        opened(snapshot)
    assert (caught.value.where, caught.value.value) == (str(snapshot / "train.parquet"), "'../../blobs/0f/abc'")


def test_folders_behind_links_are_read_and_every_file_once(tmp_path: Path) -> None:
    write(tmp_path / "out" / "part" / "a.parquet", {"prompt": ["a"]})
    root = tmp_path / "in"
    write(root / "2026" / "b.parquet", {"prompt": ["b"]})
    (root / "part").symlink_to("../out/part")
    (root / "latest").symlink_to("2026")
    (root / "2026" / "again").symlink_to("../../in")
    manifest = opened(root)
    assert [row["manifest_file"] for row in rows(manifest)] == ["2026/b.parquet", "part/a.parquet"]
    (warning,) = manifest.warnings
    assert "read once; left out: latest/b.parquet" in warning


def test_a_file_behind_two_links_is_read_for_each_value_that_their_folders_state(tmp_path: Path) -> None:
    blob = write(tmp_path / "blobs" / "abc", {"prompt": ["a"]})
    for folder in ("seed=1", "seed=2", "seed=2/more"):
        (tmp_path / "in" / folder).mkdir(parents=True)
        (tmp_path / "in" / folder / "x.parquet").symlink_to(blob)
    manifest = opened(tmp_path / "in", {"seed": "seed"})
    assert [row["seeds"] for row in rows(manifest)] == [[1], [2]]
    (warning,) = manifest.warnings
    assert warning.endswith("left out: seed=2/x.parquet")


@pytest.mark.parametrize("name", ["loop.parquet", "loop"])
def test_links_that_go_in_a_circle(tmp_path: Path, name: str) -> None:
    write(tmp_path / "a.parquet", {"prompt": ["a"]})
    (tmp_path / name).symlink_to(name)
    (tmp_path / ".#lock").symlink_to("user@host")
    (tmp_path / "notes.txt").symlink_to("gone.txt")
    with pytest.raises(ManifestError, match="leads nowhere") as caught:
        opened(tmp_path)
    assert name in str(caught.value.value)
    with pytest.raises(ManifestError):
        opened(tmp_path / name)


@pytest.mark.parametrize("name", [b"caf\xe9.parquet", b"a\nb.parquet"])
def test_names_that_no_store_can_hold_are_refused(tmp_path: Path, name: bytes) -> None:
    path = write(tmp_path / "a.parquet", {"prompt": ["a"]})
    os.rename(os.fsencode(path), os.fsencode(tmp_path) + b"/" + name)
    with pytest.raises(ManifestError, match="invalid file name"):
        opened(tmp_path)


def test_names_as_windows_writes_them(tmp_path: Path) -> None:
    names = ["A.PARQUET", "sub\\b.parquet", "c (1).Parquet", "style=x\\y/d.parquet"]
    for name in names:
        write(tmp_path / name, {"prompt": [name]})
    (tmp_path / "A.PARQUET:Zone.Identifier").write_text("[ZoneTransfer]\n")
    (tmp_path / "desktop.ini").write_text("")
    assert sorted(prompts(tmp_path)) == sorted(names)


def test_files_without_rows_have_no_types(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"prompt": ["a"], "n": [1]})
    write(tmp_path / "b.parquet", {"prompt": pa.array([], pa.float64()), "n": pa.array([], pa.string())})
    write(tmp_path / "c.parquet", pa.table({}))
    write(tmp_path / "d.parquet", {"prompt": ["d"]})
    manifest = opened(tmp_path)
    assert manifest.extra_schema == pa.schema([("n", pa.int64())])
    assert [(row["manifest_file"], row["n"]) for row in rows(manifest)] == [("a.parquet", 1), ("d.parquet", None)]
    assert [file.first_row for file in manifest.files] == [0, 1, 1, 1]


BIG = 2**53 + 1


@pytest.mark.parametrize(
    ("one", "other", "kind", "values"),
    [
        (pa.array([1]), pa.array([1.5]), pa.float64(), [1.0, 1.5]),
        (pa.array([1], pa.int8()), pa.array([2**40]), pa.int64(), [1, 2**40]),
        (pa.array([1]), pa.array([None], pa.float64()), pa.float64(), [1.0, None]),
        (pa.array([BIG]), pa.array([1.5]), pa.string(), [str(BIG), "1.5"]),
        (pa.array([2**64 - 1], pa.uint64()), pa.array([-1]), pa.string(), [str(2**64 - 1), "-1"]),
        (pa.array(["a"]), pa.array([None], pa.float64()), pa.string(), ["a", None]),
        (pa.array(["a"]), pa.array([1]), pa.string(), ["a", "1"]),
        (pa.array([True]), pa.array([1]), pa.string(), ["True", "1"]),
        (pa.array([Decimal("29.99")]), pa.array([1.5]), pa.float64(), [29.99, 1.5]),
        (pa.array([[1]]), pa.array([[1.5]]), pa.list_(pa.float64()), [[1.0], [1.5]]),
        (pa.array([10**11], pa.timestamp("s")), pa.array([5], pa.timestamp("ns")), pa.string(), None),
    ],
)
def test_types_that_differ_between_files_are_united_as_between_launches(
    tmp_path: Path, one: pa.Array, other: pa.Array, kind: pa.DataType, values: list[object] | None
) -> None:
    for names in ("ab", "ba"):
        for name, column in zip(names, (one, other), strict=True):
            write(tmp_path / names / f"{name}.parquet", {"prompt": ["p"], "x": column})
        manifest = opened(tmp_path / names)
        assert manifest.extra_schema == pa.schema([("x", kind)])
        read = [row["x"] for row in rows(manifest)]
        assert values is None or read == (values if names == "ab" else values[::-1])


@pytest.mark.parametrize("values", [pa.array([b"0" * 16], pa.uuid()), pa.array(["1"], pa.json_())])
def test_extension_types_inside_others_travel(tmp_path: Path, values: pa.Array) -> None:
    columns = {
        "list": pa.ListArray.from_arrays(pa.array([0, 1], pa.int32()), values),
        "box": pa.StructArray.from_arrays([values], ["k"]),
    }
    for name in "ab":
        write(tmp_path / f"{name}.parquet", {"prompt": ["p"], **columns})
    for batch in read_rows(opened(tmp_path)):
        assert [batch.table[name].combine_chunks() for name in columns] == list(columns.values())


def test_a_name_with_a_dot_is_united_by_its_own_values(tmp_path: Path) -> None:
    for name, value in (("a", 1), ("b", 0.5)):
        write(tmp_path / f"{name}.parquet", {"x": [{"y": "text"}], "x.y": [value], "prompt": ["p"]})
    assert opened(tmp_path).extra_schema.field("x.y").type == pa.float64()


def test_a_bucket_is_read_as_a_folder_is(tmp_path: Path, s3_bucket: str) -> None:
    keys = [
        "a!.parquet",
        "a-b.parquet",
        "a.parquet",
        "a/style=ink/b.PARQUET",
        "a0.parquet",
        "ä/ö.parquet",
        "😀.parquet",
    ]
    hidden = ["_old.parquet", "a/_temporary/0/b.parquet"]
    ours = [f"out/{RUN_KEY}", f"out/{part_key('1' * 32, DIGEST)}", "out/more.parquet"]
    both = LocalStore(tmp_path / "in"), open_store(f"s3://{s3_bucket}/in")
    for key in (*keys, *hidden, *ours):
        for store in both:
            store.put(key, b"")
    for glob in ("", "/a*", "/**/*.parquet", "/**/_*.parquet", "/*/s*=*/*"):
        local, remote = (find_files(store.uri + glob, S3Settings()) for store in both)
        assert local.keys == remote.keys
        assert glob or local.keys == tuple(keys)
        assert local.warnings == remote.warnings
    put(both[1], RUN_KEY, {})
    put(both[1], METADATA_KEY, {})
    assert find_files(both[1].uri, S3Settings()).keys == tuple(keys)
