"""Which files a manifest is, and what is refused before a row is read."""

import pickle
from pathlib import Path
from typing import Any

import pyarrow as pa
import pytest

from pipeline.errors import ManifestError
from pipeline.manifest.columns import check_storable
from pipeline.manifest.read import read_rows
from tests.manifest.files import opened, rows, write


def test_a_name_with_brackets_is_that_name_before_it_is_a_glob(tmp_path: Path) -> None:
    write(tmp_path / "prompts [v2].parquet", {"prompt": ["file"]})
    write(tmp_path / "set [a]" / "m.parquet", {"prompt": ["directory"]})
    assert rows(opened(tmp_path / "prompts [v2].parquet"))[0]["prompt"] == "file"
    assert rows(opened(tmp_path / "set [a]"))[0]["prompt"] == "directory"


@pytest.mark.parametrize("uri", ["sub/*/", "sub/./*/", ".//*.parquet", "?.parquet", "**/m*.parquet"])
def test_globs_that_are_written_carelessly(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    write(tmp_path / "m.parquet", {"prompt": ["a"]})
    write(tmp_path / "sub" / "m.parquet", {"prompt": ["a"]})
    monkeypatch.chdir(tmp_path)
    assert {row["prompt"] for row in rows(opened(uri))} == {"a"}


@pytest.mark.parametrize("uri", ["..", ".", "none\n", "no\0ne", "", " ", "*.parquet/", "s3://", "ftp://a/b"])
def test_names_that_lead_nowhere(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    (tmp_path / "a" / "b").mkdir(parents=True)
    monkeypatch.chdir(tmp_path / "a" / "b")
    with pytest.raises(ManifestError) as caught:
        opened(uri)
    assert caught.value.where == "manifest"


@pytest.mark.parametrize("body", [b"", b"PAR1", b"PAR1" + b"x" * 100, b"PAR1" + b"\xff" * 8 + b"PAR1", b"prompt\na\n"])
def test_bytes_that_are_no_parquet(tmp_path: Path, body: bytes) -> None:
    (tmp_path / "m.parquet").write_bytes(body)
    with pytest.raises(ManifestError, match="not a Parquet file") as caught:
        opened(tmp_path / "m.parquet")
    assert "manifest build" in str(caught.value.allowed)


@pytest.mark.parametrize(
    ("one", "other"),
    [
        (pa.array(["x"]), pa.array(["x"], pa.large_string())),
        (pa.array(["x"]), pa.array(["x"]).dictionary_encode()),
        (pa.array(["x"]), pa.nulls(1)),
        (pa.array([["x"]]), pa.array([["x"]], pa.large_list(pa.large_string()))),
        (pa.array([["x"]]), pa.array([[]], pa.list_(pa.null()))),
        (pa.array([{"k": 1}]), pa.array([{"k": None}], pa.struct([("k", pa.null())]))),
    ],
)
def test_files_may_lay_out_the_same_type_differently(tmp_path: Path, one: pa.Array, other: pa.Array) -> None:
    for columns in ((one, other), (other, one)):
        for name, column in zip("ab", columns, strict=True):
            write(tmp_path / f"{name}.parquet", {"prompt": ["p"], "x": column})
        manifest = opened(tmp_path)
        assert manifest.extra_schema == pa.schema([("x", one.type)])
        assert [row["x"] for row in rows(manifest)] == [column.to_pylist()[0] for column in columns]


def test_an_extra_column_that_parquet_cannot_hold(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="span") as caught:
        check_storable("span", pa.month_day_nano_interval(), "m.parquet")
    assert (caught.value.where, caught.value.value) == ("m.parquet", "'month_day_nano_interval'")


@pytest.mark.parametrize("name", ["evaluations", "task_id", "manifest_row", "part_id"])
def test_an_extra_column_with_a_name_of_our_own(tmp_path: Path, name: str) -> None:
    path = write(tmp_path / "m.parquet", {"prompt": ["a"], name: ["x"]})
    with pytest.raises(ManifestError, match=name):
        opened(path)


@pytest.mark.parametrize(
    "column", [pa.array([[1], None], pa.list_view(pa.int8())), pa.array([1, None], pa.duration("s"))]
)
def test_extra_columns_of_rare_types_travel(tmp_path: Path, column: pa.Array) -> None:
    read = rows(opened(write(tmp_path / "m.parquet", {"prompt": ["a", "b"], "x": column})))
    assert [row["x"] for row in read] == column.to_pylist()


@pytest.mark.parametrize("uri", ["loop", "~nosuchuser/x", "~nosuchuser/*.parquet"])
def test_paths_that_cannot_be_followed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, uri: str) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    with pytest.raises(ManifestError) as caught:
        opened(uri)
    assert caught.value.where == "manifest"


@pytest.mark.parametrize("columns", [{"a": "prompt", "b": "prompt"}, {"a": "steps", "b": "num_inference_steps"}])
def test_two_columns_mapped_to_one(tmp_path: Path, columns: dict[str, str]) -> None:
    path = write(tmp_path / "m.parquet", {"prompt": ["a"], "a": ["a"], "b": ["b"]})
    with pytest.raises(ManifestError, match="2 columns are mapped to"):
        opened(path, columns)


def test_columns_of_one_name(tmp_path: Path) -> None:
    path = write(tmp_path / "m.parquet", pa.table([["a"], ["b"], ["c"]], names=["prompt", "x", "x"]))
    with pytest.raises(ManifestError, match="several columns have the same name"):
        opened(path)


def test_one_file_of_many_without_a_prompt_is_named(tmp_path: Path) -> None:
    write(tmp_path / "a.parquet", {"prompt": ["p"]})
    write(tmp_path / "b.parquet", {"text": ["p"]})
    with pytest.raises(ManifestError, match="no prompt column") as caught:
        opened(tmp_path)
    assert caught.value.where == "b.parquet"


@pytest.mark.parametrize("name", ["Prompt", "PROMPT"])
def test_the_prompt_column_is_found_without_case(tmp_path: Path, name: str) -> None:
    assert rows(opened(write(tmp_path / "m.parquet", {name: ["a"]})))[0]["prompt"] == "a"


def test_splits_cover_every_row_once_also_after_a_journey(tmp_path: Path) -> None:
    for name, count in (("a", 25), ("b", 0), ("c", 7)):
        prompts = pa.array([f"{name}{number}" for number in range(count)], pa.string())
        write(tmp_path / f"{name}.parquet", {"prompt": prompts}, row_group_size=10)
    manifest = pickle.loads(pickle.dumps(opened(tmp_path)))  # noqa: S301  # made two words before
    for size in (1, 12, 20, 1000):
        batches = [batch for split in manifest.splits(size) for batch in read_rows(manifest, split)]
        prompts = [row["prompt"] for batch in batches for row in batch.table.to_pylist()]
        assert prompts == [row["prompt"] for row in rows(manifest)]
        numbers = [batch.first_row + row for batch in batches for row in batch.table["manifest_row"].to_pylist()]
        assert numbers == list(range(32)) == list(range(manifest.rows))


def test_a_manifest_without_rows_is_one(tmp_path: Path) -> None:
    manifest = opened(write(tmp_path / "m.parquet", {"prompt": pa.array([], pa.string())}))
    assert (manifest.rows, rows(manifest)) == (0, [])


@pytest.mark.parametrize("table", [{"prompt": ["a"]}, {"text": ["a", "b"]}])
def test_a_file_that_changes_on_the_way(tmp_path: Path, table: dict[str, Any]) -> None:
    manifest = opened(write(tmp_path / "m.parquet", {"prompt": ["a", "b", "c"]}))
    write(tmp_path / "m.parquet", table)
    with pytest.raises(ManifestError, match="changed"):
        rows(manifest)


def test_damage_inside_a_file(tmp_path: Path) -> None:
    path = tmp_path / "m.parquet"
    write(path, {"prompt": [f"p{n}" for n in range(3000)]}, row_group_size=1000, write_page_checksum=True)
    body = bytearray(path.read_bytes())
    body[len(body) // 2] ^= 1
    path.write_bytes(body)
    with pytest.raises(ManifestError, match="breaks off") as caught:
        rows(opened(path))
    assert "m.parquet, from row" in str(caught.value.where)
