"""How the command ends: one block and an exit code, whatever happens."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from jobs import cli
from pipeline.errors import JobBrokenError


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


@pytest.mark.parametrize(
    ("typed", "offered"),
    [("darkroom con", "contact-sheet"), ("darkroom render --max", "--max-cost"), ("darkroom manifest b", "build")],
)
def test_the_shell_completes(typed: str, offered: str) -> None:
    """As bash asks, which `darkroom --install-completion` teaches it."""
    asked = {"_DARKROOM_COMPLETE": "complete_bash", "COMP_WORDS": typed, "COMP_CWORD": str(typed.count(" "))}
    darkroom = Path(sys.executable).with_name("darkroom")
    said = subprocess.run([darkroom], env=os.environ | asked, capture_output=True, text=True, check=False)
    assert offered in said.stdout.split()
