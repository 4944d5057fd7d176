"""Text files to manifests: nothing rounded, nothing dropped, errors with their line."""

import csv
import json
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import InputError, ManifestError, OutputError
from pipeline.manifest.build import ROW_GROUP_ROWS, build_manifest
from pipeline.output.schema import RESERVED
from tests.manifest.files import opened, rows

TEXT = st.text(alphabet=st.characters(exclude_categories=["Cs"], exclude_characters="\0"), max_size=9)
PROMPT = TEXT.filter(str.strip)


def built(tmp_path: Path, name: str, text: str | bytes, **options: Any) -> pa.Table:
    (tmp_path / name).write_bytes(text.encode() if isinstance(text, str) else text)
    build_manifest(tmp_path / name, tmp_path / "m.parquet", **options)
    return pq.read_table(tmp_path / "m.parquet")


@given(st.lists(st.tuples(PROMPT, st.none() | st.integers(0, 2**64 - 1), TEXT), min_size=1, max_size=9))
def test_csv_comes_back_equal(
    tmp_path_factory: pytest.TempPathFactory, cells: list[tuple[str, int | None, str]]
) -> None:
    folder = tmp_path_factory.mktemp("csv")
    with (folder / "p.csv").open("w", encoding="utf-8", newline="") as file:
        csv.writer(file).writerows([("Prompt", "Seed", "Note"), *cells])
    build_manifest(folder / "p.csv", folder / "m.parquet")
    read = pq.read_table(folder / "m.parquet")
    assert read.schema == pa.schema([("prompt", pa.string()), ("seed", pa.uint64()), ("Note", pa.string())])
    assert list(zip(*read.to_pydict().values(), strict=True)) == [(p, seed, note or None) for p, seed, note in cells]


@given(st.lists(st.fixed_dictionaries({"prompt": PROMPT, "x": st.integers(-9, 9), "y": TEXT}), min_size=1, max_size=9))
def test_jsonl_comes_back_equal(tmp_path_factory: pytest.TempPathFactory, written: list[dict[str, Any]]) -> None:
    folder = tmp_path_factory.mktemp("jsonl")
    (folder / "p.jsonl").write_text("".join(json.dumps(row) + "\n" for row in written))
    build_manifest(folder / "p.jsonl", folder / "m.parquet")
    assert pq.read_table(folder / "m.parquet").to_pylist() == written


@pytest.mark.parametrize(
    ("late", "kind", "expected"),
    [
        ({"x": 1}, pa.int64(), [None, 1]),
        ({"x": 1.5}, pa.float64(), [None, 1.5]),
        ({"x": {"k": [1]}}, pa.struct([("k", pa.list_(pa.int64()))]), [None, {"k": [1]}]),
    ],
)
def test_jsonl_columns_may_appear_late(
    tmp_path: Path, late: dict[str, Any], kind: pa.DataType, expected: list[Any]
) -> None:
    lines = ['{"prompt": "a"}'] * ROW_GROUP_ROWS + [json.dumps({"prompt": "b", **late})]
    read = built(tmp_path, "p.jsonl", "\n".join(lines))
    assert read.schema.field("x").type == kind
    assert read["x"].to_pylist()[-2:] == expected


def test_jsonl_numbers_are_never_cut(tmp_path: Path) -> None:
    lines = ['{"prompt": "a", "x": 1}'] * ROW_GROUP_ROWS + ['{"prompt": "b", "x": 1.5}']
    assert built(tmp_path, "p.jsonl", "\n".join(lines))["x"].to_pylist()[-2:] == [1.0, 1.5]


def test_cells_as_programs_write_them(tmp_path: Path) -> None:
    text = 'Prompt,CFG,Steps,seed list\na, 7.5,10.0,"[1, 2]"\nb,,,3 4\n'
    read = built(tmp_path, "p.csv", text, columns={"CFG": "guidance_scale", "seed list": "seeds"})
    assert read.to_pydict() == {
        "prompt": ["a", "b"],
        "guidance_scale": [7.5, None],
        "num_inference_steps": [10, None],
        "seeds": [[1, 2], [3, 4]],
    }
    assert built(tmp_path, "p.jsonl", '{"prompt": "a", "prompt_id": 5}\n')["prompt_id"].to_pylist() == ["5"]


def test_a_header_alone_is_a_manifest_without_rows(tmp_path: Path) -> None:
    assert built(tmp_path, "p.csv", "Prompt,note\n").schema.names == ["prompt", "note"]
    assert rows(opened(tmp_path / "m.parquet")) == []


def test_blank_lines_are_left_out_and_counted(tmp_path: Path) -> None:
    for name, text in (("p.csv", "prompt\n\na\n\n"), ("p.txt", "\na\r\n \n"), ("p.jsonl", '\n{"prompt": "a"}\n\n')):
        (tmp_path / name).write_bytes(text.encode())
        report = build_manifest(tmp_path / name, tmp_path / "m.parquet")
        assert (report.rows, report.blank_lines, report.columns) == (1, 2, ("prompt",))


@pytest.mark.parametrize(
    ("name", "text", "says"),
    [
        ("p.csv", "prompt,seed\na,1\nb,-1\n", "line 3, column seed"),
        ("p.csv", "prompt,seed\na,1_0\n", "'1_0'"),
        ("p.csv", "prompt,seed\na,1.5\n", "'1.5'"),
        ("p.csv", "prompt,guidance_scale\na,nan\n", "a finite number"),
        ("p.csv", "prompt,guidance_scale\na,1e999\n", "a finite number"),
        ("p.csv", "prompt,width,height\na,4294967296,64\n", "line 2, column width"),
        ("p.csv", 'prompt,seed\n"a\nb",x\n', "line 2, column seed"),
        ("p.csv", 'prompt,x\n"a,7\nb,8\n', "this line cannot be read"),
        ("p.csv", "prompt,x,x\n", "several columns have the same name"),
        ("p.csv", "prompt,task_id\n", "Darkroom's own metadata"),
        ("p.csv", b"prompt\n" + b"a\n" * 9000 + b"caf\xe9\n", "line 9002"),
        ("p.csv", "prompt\na\n".encode("utf-16"), "not UTF-8"),
        ("p.jsonl", '{"prompt": "a", "seed": 1.5}\n', "line 1, column seed"),
        ("p.jsonl", '{"prompt": "a", "seed": true}\n', "line 1, column seed"),
        ("p.jsonl", '{"prompt": 5}\n', "line 1, column prompt"),
        ("p.jsonl", '{"prompt": "\\ud800"}\n', "line 1"),
        ("p.jsonl", '{"prompt": "a", "guidance_scale": 1' + "0" * 400 + "}\n", "a finite number"),
        ("p.jsonl", '{"prompt": "a", "x": ' + "[" * 99_999 + "\n", "not JSON"),
        ("p.jsonl", '{"prompt": "a", "x": {}}\n', "objects without keys"),
        ("p.jsonl", '{"prompt": "a", "x": 7}\n\n{"prompt": "a", "x": "s"}\n', "line 3, column x"),
        ("p.jsonl", '{"prompt": "a", "seed": 1}\n{"prompt": "b", "seeds": [1]}\n', "both a seed and a seeds"),
    ],
)
def test_what_cannot_be_read_is_named(tmp_path: Path, name: str, text: str | bytes, says: str) -> None:
    with pytest.raises(ManifestError) as caught:
        built(tmp_path, name, text, reserved=RESERVED)
    assert says in str(caught.value)
    assert [path.name for path in tmp_path.iterdir()] == [name]


def test_a_mapping_that_names_no_column(tmp_path: Path) -> None:
    with pytest.raises(ManifestError, match="does not exist: cgf"):
        built(tmp_path, "p.csv", "prompt,cfg\na,7\n", columns={"cgf": "guidance_scale"})


@pytest.mark.parametrize("out", ["p.csv", "other.csv", "folder", "p.csv/m.parquet"])
def test_places_a_manifest_cannot_go(tmp_path: Path, out: str) -> None:
    (tmp_path / "p.csv").write_text("prompt\na\n")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError) as caught:
        build_manifest(tmp_path / "p.csv", tmp_path / out)
    assert isinstance(caught.value, InputError)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "p.csv"]
    assert (tmp_path / "p.csv").read_text() == "prompt\na\n"
