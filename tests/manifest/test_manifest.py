"""Manifests: what is read, what is refused and how it is said, and that it streams."""

import io
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import ManifestError
from pipeline.manifest.build import build_manifest
from pipeline.manifest.check import check_manifest, rejection_error
from pipeline.manifest.read import read_rows
from pipeline.storage.location import open_store
from tests.manifest.files import opened, rows, write

PARTI = Path(__file__).parents[2].parent / "shared" / "data" / "partiprompts.tsv"


def test_defaults_mapping_and_extra_columns(tmp_path: Path) -> None:
    table = {"Caption": ["a", "b"], "cfg": [7, None], "neg": ["", " "], "theme": ["x", "y"]}
    path = write(tmp_path / "m.parquet", table)
    read = rows(opened(path, {"Caption": "prompt", "cfg": "guidance_scale", "neg": "negative_prompt"}))
    assert [row["prompt_id"] for row in read] == ["m:0", "m:1"]
    assert [row["guidance_scale"] for row in read] == [7.0, None]
    assert [row["negative_prompt"] for row in read] == [None, None]
    assert [row["theme"] for row in read] == ["x", "y"]


@pytest.mark.parametrize(
    ("cells", "reason"),
    [
        ({"prompt": None}, "null prompt"),
        ({"prompt": " \t"}, "blank prompt"),
        ({"prompt": "a\0b"}, "NUL character"),
        ({"negative_prompt": "\0"}, "NUL character"),
        ({"guidance_scale": float("inf")}, "not finite"),
        ({"guidance_scale": -1.0}, "out of range"),
        ({"num_inference_steps": 0}, "out of range"),
        ({"num_inference_steps": 2.5}, "not a whole number"),
        ({"seed": -1}, "out of range"),
        ({"width": 60, "height": 64}, "does not divide"),
        ({"width": 100_000, "height": 64}, "out of range"),
        ({"width": 64, "height": None}, "width or height alone"),
        ({"scheduler": "magic"}, "no such scheduler"),
        ({"seeds": []}, "unusable seeds"),
        ({"seeds": [1, None]}, "unusable seeds"),
    ],
)
def test_bad_rows_are_named_and_good_ones_kept(tmp_path: Path, cells: dict[str, Any], reason: str) -> None:
    good = {"prompt": "good", **({"width": 64, "height": 64} if "width" in cells else {})}
    bad = {**good, **cells}
    table = pa.Table.from_pylist([good, bad, good], schema=pa.Table.from_pylist([bad, good]).schema)
    if "prompt" in cells and cells["prompt"] is None:
        table = pa.table({"prompt": pa.array(["good", None, "good"], pa.string())})
    (batch,) = read_rows(opened(write(tmp_path / "m.parquet", table)))
    (rejected,) = batch.rejected
    assert (rejected.file, rejected.row, rejected.reason) == ("m.parquet", 1, reason)
    assert rejected.column in cells
    assert rejected.allowed
    assert batch.table["manifest_row"].to_pylist() == [0, 2]


def test_broken_utf8_is_one_rejected_row(tmp_path: Path) -> None:
    raw = pa.array([b"good", b"\xff\xfe", b"too"], pa.binary())
    broken = pa.Array.from_buffers(pa.string(), 3, raw.buffers())
    (batch,) = read_rows(opened(write(tmp_path / "m.parquet", {"prompt": broken})))
    assert [row.reason for row in batch.rejected] == ["not UTF-8"]
    assert batch.table["prompt"].to_pylist() == ["good", "too"]


@pytest.mark.parametrize(
    ("table", "columns", "says"),
    [
        ({"text": ["a"]}, {}, "no prompt column"),
        ({"prompt": ["a"], "Prompt": ["b"]}, {}, "two columns are both prompt"),
        ({"prompt": [1]}, {}, "wrong type"),
        ({"prompt": ["a"], "guidance_scale": [True]}, {}, "wrong type"),
        ({"prompt": ["a"], "task_id": ["x"]}, {}, "a name of Darkroom's own metadata"),
        ({"prompt": ["a"], "width": [64]}, {}, "without a height column"),
        ({"prompt": ["a"], "seed": [1], "seeds": [[1]]}, {}, "both a seed and a seeds column"),
        ({"prompt": ["a"]}, {"caption": "prompt"}, "does not exist"),
        ({"caption": ["a"]}, {"caption": "promt"}, "invalid name for the column caption"),
    ],
)
def test_schema_errors(tmp_path: Path, table: dict[str, Any], columns: dict[str, str], says: str) -> None:
    with pytest.raises(ManifestError, match=says) as caught:
        opened(write(tmp_path / "m.parquet", table), columns)
    assert caught.value.allowed


def test_files_that_are_no_manifest(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="no such manifest"):
        opened(tmp_path / "none.parquet")
    (tmp_path / "empty").mkdir()
    with pytest.raises(ManifestError, match="holds no Parquet"):
        opened(tmp_path / "empty")
    with pytest.raises(ManifestError, match="no file matches"):
        opened(tmp_path / "*.parquet")
    (tmp_path / "text.parquet").write_text("prompt\na\n")
    with pytest.raises(ManifestError, match="not a Parquet file"):
        opened(tmp_path / "text.parquet")
    whole = write(tmp_path / "w.parquet", {"prompt": ["a"] * 1000}).read_bytes()
    (tmp_path / "cut.parquet").write_bytes(whole[: len(whole) // 2])
    with pytest.raises(ManifestError, match="not a Parquet file"):
        opened(tmp_path / "cut.parquet")


def test_directory_glob_and_differing_files(tmp_path: Path) -> None:
    write(tmp_path / "d" / "2026-01" / "b.parquet", {"prompt": ["3"], "tag": ["t"]})
    write(tmp_path / "d" / "a.parquet", {"prompt": ["4", "5"]})
    for uri in (tmp_path / "d", f"{tmp_path}/d/**/*.parquet", f"{tmp_path}/d/**"):
        read = rows(opened(uri))
        assert [(row["manifest_file"], row["manifest_row"], row["tag"]) for row in read] == [
            ("2026-01/b.parquet", 0, "t"),
            ("a.parquet", 0, None),
            ("a.parquet", 1, None),
        ]
    assert len(rows(opened(f"{tmp_path}/d/2026-*/?.parquet"))) == 1
    write(tmp_path / "d" / "c.parquet", {"prompt": ["6"], "tag": [1]})
    assert [row["tag"] for row in rows(opened(tmp_path / "d"))] == ["t", None, None, "1"]


def test_s3(s3_bucket: str) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"prompt": ["a", "b"]}), buffer)
    store = open_store(f"s3://{s3_bucket}")
    store.put("in/m.parquet", buffer.getvalue())
    for uri in ("in", "in/m.parquet", "in/*.parquet"):
        assert [row["prompt"] for row in rows(opened(f"s3://{s3_bucket}/{uri}"))] == ["a", "b"]


@given(
    st.lists(
        st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=9), max_size=20
    )
)
def test_prompts_come_back_as_written(tmp_path_factory: pytest.TempPathFactory, prompts: list[str]) -> None:
    path = write(
        tmp_path_factory.mktemp("m") / "m.parquet", {"prompt": pa.array(prompts, pa.string())}, row_group_size=3
    )
    assert [row["prompt"] for row in rows(opened(path))] == [text for text in prompts if text.strip()]


def test_memory_does_not_grow_with_the_file(tmp_path: Path) -> None:
    peaks = []
    for number in (20_000, 200_000):
        path = write(
            tmp_path / f"{number}.parquet", {"prompt": [f"prompt {n}" * 5 for n in range(number)]}, row_group_size=5000
        )
        before, peak = pa.total_allocated_bytes(), 0
        for batch in read_rows(opened(path)):
            assert batch.table.num_rows
            peak = max(peak, pa.total_allocated_bytes() - before)
        peaks.append(peak)
    assert peaks[1] < 2 * peaks[0]


def test_three_bad_rows_in_a_thousand(tmp_path: Path) -> None:
    prompts = [None if n in (10, 500) else "" if n == 999 else f"p{n}" for n in range(1000)]
    manifest = opened(write(tmp_path / "m.parquet", {"prompt": prompts}))
    result = check_manifest(manifest)
    assert (result.rows, result.good, result.rejected_count) == (1000, 997, 3)
    text = str(rejection_error(result, manifest))
    assert f"where:   {tmp_path}/m.parquet, row 10 (from 0), column prompt" in text
    assert "3 of 1000" in text
    assert "m.parquet, row 500 (from 0), column prompt: null prompt" in text
    assert "--skip-bad-rows" in text
    none_good = opened(write(tmp_path / "n.parquet", {"prompt": [None]}))
    assert "--skip-bad-rows" not in str(rejection_error(check_manifest(none_good), none_good))


@pytest.mark.parametrize(
    ("name", "text", "expected"),
    [
        ("p.txt", "\ufeffa cat\n\n  a dog \n", [{"prompt": "a cat"}, {"prompt": "a dog"}]),
        ("p.csv", 'Prompt,seed\n"a, ""b""\nc",3\n', [{"prompt": 'a, "b"\nc', "seed": 3}]),
        ("p.tsv", 'Prompt\tnote\nsay "hi\tx\n', [{"prompt": 'say "hi', "note": "x"}]),
        (
            "p.jsonl",
            '{"prompt": "a", "score": 1.5}\n\n{"prompt": "b"}\n',
            [{"prompt": "a", "score": 1.5}, {"prompt": "b", "score": None}],
        ),
    ],
)
def test_build(tmp_path: Path, name: str, text: str, expected: list[dict[str, Any]]) -> None:
    (tmp_path / name).write_text(text, "utf-8")
    build_manifest(tmp_path / name, tmp_path / "m.parquet")
    assert pq.read_table(tmp_path / "m.parquet").to_pylist() == expected
    assert len(rows(opened(tmp_path / "m.parquet"))) == len(expected)


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("p.csv", "prompt,seed\na,x\n", "line 2, column seed"),
        ("p.csv", "prompt,seed\na\n", "another number of cells"),
        ("p.csv", "text\na\n", "no prompt column"),
        ("p.jsonl", "{\n", "not JSON"),
        ("p.jsonl", "[1]\n", "not a JSON object"),
        ("p.xlsx", "", "unknown kind of file"),
    ],
)
def test_build_errors_leave_nothing(tmp_path: Path, name: str, text: str, says: str) -> None:
    (tmp_path / name).write_text(text)
    with pytest.raises(ManifestError) as caught:
        build_manifest(tmp_path / name, tmp_path / "m.parquet")
    assert says in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]


@pytest.mark.skipif(not PARTI.exists(), reason="the PartiPrompts file is not part of the project")
def test_parti_prompts_import_as_they_are(tmp_path: Path) -> None:
    assert build_manifest(PARTI, tmp_path / "parti.parquet").rows == 1632
    result = check_manifest(opened(tmp_path / "parti.parquet"))
    assert (result.good, result.rejected_count) == (1632, 0)
    assert rows(opened(tmp_path / "parti.parquet"))[0]["Category"] == "Abstract"
