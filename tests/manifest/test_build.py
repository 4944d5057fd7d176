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
    lines = "".join(f'{{"prompt": "a", "prompt_id": {text}, "seed": " "}}\n' for text in ("5", "6.0", "true", "NaN"))
    read = built(tmp_path, "p.jsonl", lines)
    assert read["prompt_id"].to_pylist() == ["5", "6", "true", None]
    assert read["seed"].to_pylist() == [None] * 4


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
        ("p.csv", b"\xff\xfe" + "prompt\na\n".encode("utf-16-le")[:-1], "not UTF-8"),
        ("p.csv", "prompt\na\n".encode("utf-16-le"), "NUL character"),
        ("p.csv", b"prompt\na\0b\n", "line 2"),
        ("p.txt", b"a\0b\n", "NUL character"),
        ("p.csv", "prompt;seed\na;7\n", "separated by semicolons"),
        ("p.csv", "prompt\tseed\na\t7\n", "separated by tabs"),
        ("p.tsv", "prompt,seed\na,7\n", "separated by commas"),
        ("p.csv", 'prompt,seed\na,"1,000"\n', "without separators of thousands"),
        ("p.csv", 'prompt,seeds\na,"1,000"\n', "without separators of thousands"),
        ("p.csv", "prompt,seed\na,1.000\n", "without separators of thousands"),
        ("p.txt", "Prompt\tSeed\na\t7\n".encode("utf-16"), "a table with a header"),
        ("p.csv", 'prompt,guidance_scale\na,"7,5"\n', "with a decimal point"),
        ("p.csv", "prompt,prompt \n", "several columns have the same name"),
        ("p.jsonl", '{"prompt": "a", "seed": 1.5}\n', "line 1, column seed"),
        ("p.jsonl", '{"prompt": "a", "seed": true}\n', "line 1, column seed"),
        ("p.jsonl", '{"prompt": "a", "seed": 9007199254740993.0}\n', "line 1, column seed"),
        ("p.jsonl", '{"prompt": "a", "seeds": [1e17]}\n', "line 1, column seeds"),
        ("p.tsv", "prompt,seed\na,1\n", "commas in a .csv file"),
        ("p.jsonl", '{"prompt": 5}\n', "line 1, column prompt"),
        ("p.jsonl", '{"prompt": "\\ud800"}\n', "line 1"),
        ("p.jsonl", '{"prompt": "a", "guidance_scale": 1' + "0" * 400 + "}\n", "a finite number"),
        ("p.jsonl", '{"prompt": "a", "x": ' + "[" * 99_999 + "\n", "not JSON"),
        ("p.jsonl", '{"prompt": "a\\u0000"}\n', "without NUL"),
        ("p.jsonl", '{"prompt": "a", "prompt": "b"}\n', "'prompt' stands twice"),
        ("p.json", '[{"prompt": "a"},\n {"prompt": "b", "seed": -1}]', "line 2, column seed"),
        ("p.json", '[{"prompt": "a"},\n 7]', "line 2"),
        ("p.json", '[{"prompt": "a"}\n {"prompt": "b"}]', "line 1"),
        ("p.json", '[{"prompt": "a"}', "line 1"),
        ("p.txt", "--prompt a --steps 4 --tiling True\n", "invalid option --tiling"),
        ("p.txt", "a star\n--prompt a --seed 1 --seed 2\n", "line 2"),
        ("p.txt", "--prompt a --seed\n", "--seed has no value"),
        ("p.txt", "--prompt a dog's bone\n", "invalid line of options"),
        ("p.txt", "--seed 7\n", "no --prompt"),
        ("p.txt", "--prompt a --seed -1\n", "column seed"),
        ("p.txt", '--prompt a --sampler_name "DPM fast"\n', "no such sampler"),
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


def test_headers_as_people_write_them(tmp_path: Path) -> None:
    expected = {"prompt": ["a"], "seed": [7], "note": ["n"]}
    assert built(tmp_path, "p.csv", "prompt, seed, note\na,7,n\n").to_pydict() == expected
    assert built(tmp_path, "p.csv", b'\xef\xbb\xbf"prompt", "seed" ,note\ra,7,n\r').to_pydict() == expected
    assert built(tmp_path, "p.tsv", '"prompt"\t"seed"\tnote\na\t7\tn\n').to_pydict() == expected
    assert built(tmp_path, "p.csv", "prompt,seed,note\na,7,n\n".encode("utf-16")).to_pydict() == expected


def test_long_cells_and_every_end_of_line(tmp_path: Path) -> None:
    long = "x" * 300_000
    assert built(tmp_path, "p.csv", f"prompt\r{long}\rb\r")["prompt"].to_pylist() == [long, "b"]
    assert built(tmp_path, "p.txt", "a\rb\r\nc\nd\u2028e\n")["prompt"].to_pylist() == ["a", "b", "c", "d\u2028e"]


@pytest.mark.parametrize(
    ("values", "expected"),
    [
        ([7, "s"], ["7", '"s"']),
        ([{}, None], ["{}", None]),
        ([[{"class": "cup", "n": 1}, {"position": ["left of", 0]}]], None),
        ([2**70, 1], [str(2**70), "1"]),
        ([2**60 + 1, 1.5], [str(2**60 + 1), "1.5"]),
        ([[1], {"a": [{}]}], ["[1]", '{"a": [{}]}']),
        ([json.loads("[" * 60 + "1" + "]" * 60)], None),
        (["é", 1], ['"é"', "1"]),
        ([True, 1], ["true", "1"]),
    ],
)
def test_mixed_json_is_kept_as_text(tmp_path: Path, values: list[Any], expected: list[str | None] | None) -> None:
    (tmp_path / "p.jsonl").write_text("".join(json.dumps({"prompt": "a", "x": value}) + "\n" for value in values))
    report = build_manifest(tmp_path / "p.jsonl")
    read = pq.read_table(report.manifest)
    assert read["x"].to_pylist() == (expected or [json.dumps(value) for value in values])
    assert report.warnings == (
        "the values of the column 'x' have no Parquet type in common; it holds them as JSON text",
    )


def test_a_json_array_is_read_as_its_lines_are(tmp_path: Path) -> None:
    objects = [{"prompt": "a", "x": [1]}, {"prompt": "b", "x": None}]
    for text in (json.dumps(objects), json.dumps(objects, indent=1), "\n ".join(map(json.dumps, objects)), "[]"):
        read = built(tmp_path, "p.json", text) if text != "[]" else None
        assert read is None or read.to_pylist() == objects
    assert built(tmp_path, "p.jsonl", '{"prompt": "a", "guidance_scale": NaN}')["guidance_scale"].to_pylist() == [None]


def test_lines_of_options_become_columns(tmp_path: Path) -> None:
    lines = (
        '--prompt "a red star" --negative_prompt "blurry" --seed 7 --steps 4 --width 96 --height 96\n'
        "a plain line\n"
        "--prompt a blue ring --cfg_scale 3.5 --sampler_name 'DPM++ 2M Karras'\n"
    )
    (first, plain, third) = built(tmp_path, "p.txt", lines).to_pylist()
    given = {"negative_prompt": "blurry", "seed": 7, "num_inference_steps": 4, "width": 96, "height": 96}
    nothing = dict.fromkeys([*given, "guidance_scale", "scheduler"])
    assert first == {**nothing, "prompt": "a red star", **given}
    assert plain == {**nothing, "prompt": "a plain line"}
    assert third == {**nothing, "prompt": "a blue ring", "guidance_scale": 3.5, "scheduler": "dpmsolver++:karras"}


def test_what_may_not_be_meant_is_counted(tmp_path: Path) -> None:
    (tmp_path / "p.txt").write_text('# a comment\na (ring:1.3)\n"quoted"\n__color__ star\n')
    signs, quotes, hashes = build_manifest(tmp_path / "p.txt").warnings
    assert signs.startswith("2 prompts hold signs")
    assert "'(ring:1.3)'" in signs
    assert quotes.startswith("cells that begin and end with quotes: 1;")
    assert hashes.startswith("prompts that begin with #: 1;")
    (tmp_path / "p.csv").write_text('prompt,note\n"a ""b""", "c"\n')
    assert len(build_manifest(tmp_path / "p.csv", tmp_path / "m.parquet").warnings) == 1
    (tmp_path / "p.csv").write_text("prompt,note\n# a comment,'b'\n")
    quotes, hashes = build_manifest(tmp_path / "p.csv", tmp_path / "m.parquet").warnings
    assert quotes.startswith("cells that begin and end with quotes: 1;")
    assert hashes.startswith("prompts that begin with #: 1;")
    (tmp_path / "p.txt").write_text("Prompt\na\n")
    assert build_manifest(tmp_path / "p.txt").warnings == (
        "the first line, 'Prompt', is drawn as text; a table with a header ends in .csv or .tsv",
    )


def test_the_default_place_replaces_only_what_was_built_from_the_same_file(tmp_path: Path) -> None:
    (tmp_path / "p.csv").write_text("prompt\na\n")
    (tmp_path / "p.txt").write_text("b\n")
    for _ in range(2):
        assert build_manifest(tmp_path / "p.csv").manifest == tmp_path / "p.parquet"
    with pytest.raises(OutputError, match=r"not built from p\.txt"):
        build_manifest(tmp_path / "p.txt")
    assert pq.read_table(tmp_path / "p.parquet")["prompt"].to_pylist() == ["a"]
    build_manifest(tmp_path / "p.txt", tmp_path / "p.parquet")
    assert pq.read_table(tmp_path / "p.parquet")["prompt"].to_pylist() == ["b"]
    (tmp_path / "p.parquet").write_text("mine")
    with pytest.raises(OutputError, match=r"not built from p\.csv"):
        build_manifest(tmp_path / "p.csv")
    assert (tmp_path / "p.parquet").read_text() == "mine"


@pytest.mark.parametrize("out", ["p.csv", "other.csv", "folder", "p.csv/m.parquet"])
def test_places_a_manifest_cannot_go(tmp_path: Path, out: str) -> None:
    (tmp_path / "p.csv").write_text("prompt\na\n")
    (tmp_path / "folder").mkdir()
    with pytest.raises(OutputError) as caught:
        build_manifest(tmp_path / "p.csv", tmp_path / out)
    assert isinstance(caught.value, InputError)
    assert sorted(path.name for path in tmp_path.iterdir()) == ["folder", "p.csv"]
    assert (tmp_path / "p.csv").read_text() == "prompt\na\n"
