"""How the command ends: one block and an exit code, whatever happens."""

import json
import os
import subprocess
import sys
from datetime import date
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from jobs import cli, options
from jobs.prompt import with_prompt
from pipeline.config import load_job
from pipeline.errors import InputError, JobBrokenError

TODAY = date(2026, 1, 1)


def darkroom(monkeypatch: pytest.MonkeyPatch, *words: str) -> int:
    monkeypatch.setattr(sys, "argv", ["darkroom", *words])
    with pytest.raises(SystemExit) as ended:
        cli.main()
    assert isinstance(ended.value.code, int)
    return ended.value.code


BAD = [
    ["plan", "--manifest", "none.parquet"],
    ["plan", "--manifest", "a", "--set", "foo.bar=1"],
    ["plan", "--manifest", "a", "--seeds", f"0-{'9' * 400}"],
    ["plan", "--manifest", "a", "-o", ""],
    ["plan", "--manifest", "a", "--set", "output.uri=0x_"],
    ["plan", "--manifest", "~nosuchuser/x"],
    ["plan", "--manifest", "loop"],
    ["plan", "none.yaml"],
    ["plan", "--manifest", "a", "--date", "2026-11-31"],
    ["plan", "--manifest", "a", "--date", "20261130", "--output", "out/{date}"],
    ["plan", "--manifest", "a", "--date", "2026-11-30"],
    ["plan", "."],
    ["plan", "--no-such-option"],
    ["status", "~nosuchuser/x"],
    ["status", "gs://x/y"],
    ["status", "nothing"],
    ["finalize", "nothing"],
    ["contact-sheet", "nothing"],
    ["status", "s3://bucket/x", "--endpoint-url", "localhost"],
    ["manifest", "check", "loop"],
    ["manifest", "build", "s3://bucket/a.csv", "a.parquet"],
    ["manifest", "build", "none.csv", "s3://bucket/a.parquet"],
    ["manifest", "build", "none.csv", "a.parquet", "--column", "=prompt"],
    ["manifest", "build", "none.csv", "--column", "a=prompt", "--column", "a=seed"],
]


@pytest.mark.parametrize("words", BAD, ids=lambda words: " ".join(words)[:40])
def test_bad_input_is_one_block_and_exit_code_2(
    words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "loop").symlink_to("loop")
    assert darkroom(monkeypatch, *words) == 2
    said = capsys.readouterr()
    assert said.err.startswith("error: ")
    assert "Traceback" not in said.err
    assert darkroom(monkeypatch, *words, "--debug") == 2, "--debug shows more and changes nothing"
    debugged = capsys.readouterr().err
    assert "Traceback" in debugged
    assert debugged.endswith(said.err)
    assert [path.name for path in tmp_path.iterdir()] == ["loop"]


def test_where_is_the_option(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    darkroom(monkeypatch, "status", "gs://x/y")
    assert "where:   OUTPUT" in capsys.readouterr().err
    darkroom(monkeypatch, "status", "s3://bucket/x", "--endpoint-url", "localhost")
    assert "where:   --endpoint-url" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "where"),
    [
        (["--steps", "0"], "--steps"),
        (["--set", "sweep.steps=0"], "--set sweep.steps"),
        (["--sizes", "8"], "--sizes"),
        (["--schedulers", "eular"], "--schedulers"),
        (["--seeds", "{random: 2"], "--seeds"),
        (["--steps", "3", "--set", "model.dtype=int8"], "--set model.dtype"),
    ],
)
def test_an_error_names_the_option_that_was_typed(
    words: list[str], where: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert darkroom(monkeypatch, "plan", "--manifest", "a.parquet", *words) == 2
    assert f"\n  where:   {where}\n" in capsys.readouterr().err


def test_axes_take_what_their_error_offers(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    keys = {
        "sweep__seeds": "{start: 0, stop: 10, step: 5}",
        "sweep__guidance_scales": "{start: 1, stop: 2, num: 3}",
        "sweep__num_inference_steps": "[2, 4]",
        "sweep__sizes": "[[96, 64]]",
        "sweep__schedulers": "[ddim, euler]",
    }
    sweep = options.load(None, None, manifest="a.parquet", **keys).sweep
    assert (sweep.seeds, sweep.guidance_scales) == ((0, 5, 10), (1, 1.5, 2))
    assert (sweep.num_inference_steps, sweep.sizes, sweep.schedulers) == ((2, 4), ((96, 64),), ("ddim", "euler"))
    drawn = options.load(None, None, manifest="a.parquet", sweep__seeds="{random: 2, from: 1}").sweep.seeds
    assert drawn == load_job(None, [("manifest", "a"), ("sweep.seeds", {"random": 2, "from": 1})], TODAY).sweep.seeds


def test_the_error_of_seeds_offers_random_ones(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    darkroom(monkeypatch, "plan", "--manifest", "a.parquet", "--seeds", "many")
    assert "{random: how many, from: a whole number}" in capsys.readouterr().err


def test_what_comes_from_columns_is_said(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("p.csv").write_text("caption,status,WIDTH,HEIGHT,cfg\na (ring:1.3),x,64,96,3\nb,y,96,96,3\n")
    columns = ["--column", "caption=prompt", "--column", "status="]
    assert darkroom(monkeypatch, "manifest", "build", "p.csv", *columns, "--json") == 0
    built = capsys.readouterr()
    assert json.loads(built.out)["manifest"] == "p.parquet"
    assert json.loads(built.out)["columns"] == ["prompt", "width", "height", "cfg"]
    signs, near = "1 prompt holds signs", "the column 'cfg' sets nothing"
    own = "sizes come from the manifest's columns width and height: 2 sizes"
    for words in (["manifest", "check", "p.parquet"], ["plan", "--manifest", "p.parquet"]):
        assert darkroom(monkeypatch, *words) == 0
        said = capsys.readouterr()
        assert signs in said.err
        assert near in said.err
        assert own in said.out + said.err
        assert darkroom(monkeypatch, *words, "--json") == 0
        facts = json.loads(capsys.readouterr().out)
        assert len(facts["warnings"]) == 2
        assert facts.get("sweep", facts)["own_values"] == {"sizes": 2}
    kept = "manifest_columns={cfg: cfg, width: source_width, height: null}"
    assert darkroom(monkeypatch, "plan", "--manifest", "p.parquet", "--set", kept) == 0
    said = capsys.readouterr()
    assert near not in said.err
    assert own not in said.out + said.err


@pytest.mark.parametrize(
    ("manifest", "output"),
    [
        ("prompts.parquet", "renders/prompts"),
        ("data/captions/", "renders/captions"),
        ("data/*/part-*.parquet", "renders/data"),
        ("s3://bucket/sets/night 1.parquet", "renders/night-1"),
        ("../x.y.parquet", "renders/x.y"),
        ("prompts/v1.5", "renders/v1.5"),
        ("prompts/v1.5/*.parquet", "renders/v1.5"),
        ("*.parquet", "renders/cats"),
        ("--prompt", "renders/prompt"),
    ],
)
def test_each_manifest_has_a_default_output_of_its_own(
    manifest: str, output: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    (tmp_path / "cats").mkdir()
    monkeypatch.chdir(tmp_path / "cats")
    assert options.load(None, None, manifest=manifest).output.uri == output


@pytest.mark.parametrize("negative", [None, "blurry"])
def test_a_prompt_alone_has_no_column_without_effect(
    negative: str | None, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    manifest = with_prompt(options.load(None, None, manifest="--prompt"), "a star", negative).manifest
    assert darkroom(monkeypatch, "plan", "--manifest", manifest, "--output", "out") == 0
    assert "no effect" not in capsys.readouterr().err
    (row,) = pq.read_table(manifest).to_pylist()
    assert row == {"prompt": "a star"} | ({"negative_prompt": negative} if negative else {})


def test_a_run_at_the_former_default_output_is_not_passed_by(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "renders/command-line/_darkroom").mkdir(parents=True)
    (tmp_path / "renders/command-line/_darkroom/run.json").touch()
    with pytest.raises(InputError, match="former default output") as refused:
        options.load(None, None, manifest="prompts.parquet")
    assert "--output renders/command-line" in str(refused.value)
    named = options.load(None, None, manifest="prompts.parquet", output__uri="renders/command-line")
    assert named.output.uri == "renders/command-line"


def test_a_new_output_every_day_is_warned_about(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    pq.write_table(pa.table({"prompt": ["a"]}), "a.parquet")
    words = ["plan", "--json", "--manifest", "a.parquet", "--output", "out/{date}"]
    assert darkroom(monkeypatch, *words) == 0
    said, today = capsys.readouterr(), date.today().isoformat()
    assert "warning: output.uri contains {date}" in said.err
    assert f"give --date {today}" in said.err
    assert json.loads(said.out)["warnings"] == [said.err.removeprefix("warning: ").strip()]
    assert darkroom(monkeypatch, *words, "--date", "2026-01-01") == 0
    said = capsys.readouterr()
    assert said.err == ""
    assert json.loads(said.out)["output"].endswith("out/2026-01-01")


@pytest.mark.parametrize("words", [[], ["manifest"]])
def test_without_a_verb_the_help_is_all_that_is_printed(
    words: list[str], monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    assert darkroom(monkeypatch, *words) == 2
    said = capsys.readouterr()
    assert said.err == ""
    assert "Usage:" in said.out


@pytest.mark.parametrize("debug", [False, True])
def test_a_bug_is_one_block_too(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], debug: bool
) -> None:
    def broken(*_: object, **__: object) -> None:
        raise KeyError("seeds\n of nobody")

    monkeypatch.setattr(cli, "app", broken)
    assert darkroom(monkeypatch, "plan", *(["--debug"] if debug else [])) == 1
    said = capsys.readouterr().err
    assert said.startswith("Traceback" if debug else "error: this is a bug in Darkroom: KeyError:")
    assert said.splitlines()[-1].endswith("run again with --debug to see where")


@pytest.mark.parametrize("debug", [False, True])
def test_what_breaks_is_exit_code_1(monkeypatch: pytest.MonkeyPatch, debug: bool) -> None:
    def broken(*_: object, **__: object) -> None:
        raise JobBrokenError("Ray has gone")

    monkeypatch.setattr(cli, "app", broken)
    assert darkroom(monkeypatch, "plan", *(["--debug"] if debug else [])) == 1


def test_a_reader_who_has_seen_enough() -> None:
    command = f"{sys.executable} -m jobs --help | true"
    said = subprocess.run(["bash", "-c", command], capture_output=True, text=True, cwd=Path(__file__).parent.parent)
    assert said.stderr == ""


def completing(typed: str) -> dict[str, str]:
    """Return the variables with which bash asks for completions, once `darkroom --install-completion` has run."""
    return {"_DARKROOM_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}


def test_the_shell_completes_verbs() -> None:
    darkroom = Path(sys.executable).with_name("darkroom")
    asked = completing("darkroom con")
    said = subprocess.run([darkroom], env=os.environ | asked, capture_output=True, text=True, check=False)
    assert "contact-sheet" in said.stdout.split()


@pytest.mark.parametrize(
    ("typed", "offered"),
    [
        ("darkroom render --max", "--max-cost"),
        ("darkroom manifest b", "build"),
        ("darkroom jobs st", "stop"),
        ("darkroom export --to im", "imagefolder"),
        ("darkroom plan --schedulers ddim,euler_a", "ddim,euler_ancestral"),
        ("darkroom plan --set sweep.se", "sweep.seeds="),
    ],
)
def test_the_shell_completes_options_and_values(
    typed: str, offered: str, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    for name, value in completing(typed).items():
        monkeypatch.setenv(name, value)
    with pytest.raises(SystemExit):
        cli.app([], prog_name="darkroom")
    assert offered in capsys.readouterr().out.split()


def test_a_working_directory_that_has_been_deleted_is_no_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "gone").mkdir()
    monkeypatch.chdir(tmp_path / "gone")
    (tmp_path / "gone").rmdir()
    assert darkroom(monkeypatch, "status", "out") == 2
    assert capsys.readouterr().err.startswith("error: the working directory has been deleted\n  allowed: ")
    monkeypatch.chdir(tmp_path)
