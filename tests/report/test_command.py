"""``darkroom contact-sheet``: where the page goes, what is said, what is refused."""

import json
from pathlib import Path

import pytest

from benchmarks.committed import write_run_of
from pipeline.output.run import write_run
from pipeline.storage.local import LocalStore
from pipeline.storage.location import open_store
from pipeline.storage.s3_settings import S3Settings
from tests.report.reading import catalogue_of, cells_of
from tests.test_cli import darkroom
from tests.test_output import RUN, commit, failed, rendered

Said = pytest.CaptureFixture[str]


@pytest.fixture
def output(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A small run in the working directory."""
    monkeypatch.chdir(tmp_path)
    write_run_of(LocalStore(tmp_path / "out"), tmp_path, [{"prompt": "a"}], sweep__seeds="0-2", sweep__sizes=[[32, 32]])
    return tmp_path / "out"


def test_it_names_the_page_last(output: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    assert darkroom(monkeypatch, "contact-sheet", "out") == 0
    said = capsys.readouterr().out.splitlines()
    assert said[0] == "images     3 of 1 prompt"
    assert said[1] == "new        3 since the last time"
    assert said[-1] == "Open out/contact-sheet/index.html"
    assert darkroom(monkeypatch, "contact-sheet", "out", "--json") == 0
    told = json.loads(capsys.readouterr().out)
    assert (told["page"], told["images"], told["new"]) == ("out/contact-sheet/index.html", 3, 0)
    assert catalogue_of(output / "contact-sheet")["pictures"] == "../"
    assert all(cell["preview"] is None for cell in cells_of(output / "contact-sheet"))


def test_another_folder_links_to_the_same_images(output: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert darkroom(monkeypatch, "contact-sheet", "out", "--to", "a b/c", "--previews") == 0
    folder = output.parent / "a b" / "c"
    assert catalogue_of(folder)["pictures"] == "../../out/"
    assert all(cell["preview"] is not None for cell in cells_of(folder))
    for cell in cells_of(folder):
        assert (folder / "../../out" / cell["metadata"]["file_name"]).exists()


def test_a_lost_image_is_warned_about(output: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said) -> None:
    (lost, *_) = output.glob("images/*/*.png")
    lost.unlink()
    assert darkroom(monkeypatch, "contact-sheet", "out") == 0
    assert "warning: 1 images cannot be read; `darkroom verify out` names them" in capsys.readouterr().err


REFUSED = [
    (["out", "--to", "out/images/x"], "this folder is for files of the run"),
    (["out", "--to", "out/metadata.parquet.txt"], "this is a file"),
    (["out", "--to", "s3://bucket/x"], "the page is written to a local folder"),
    (["out", "--to", ""], "the page is written to a local folder"),
    (["empty"], "nothing is committed at this output yet"),
    (["nothing"], "there is no run at this output"),
    (["out/images"], "there is no run at this output"),
]


@pytest.mark.parametrize(("words", "said"), REFUSED, ids=[" ".join(words) for words, _ in REFUSED])
def test_what_cannot_be_made_is_said(
    output: Path, words: list[str], said: str, monkeypatch: pytest.MonkeyPatch, capsys: Said
) -> None:
    (output / "metadata.parquet.txt").write_text("")
    write_run(LocalStore(output.parent / "empty"), RUN)
    assert darkroom(monkeypatch, "contact-sheet", *words) == 2
    assert said in capsys.readouterr().err
    assert not list(output.parent.rglob("index.html"))


def test_a_run_in_s3_needs_a_folder(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: Said, s3_bucket: str, s3_settings: S3Settings
) -> None:
    uri = f"s3://{s3_bucket}/run"
    store = open_store(uri, s3_settings)
    write_run(store, RUN)
    commit(store, rendered(1), failed(2))
    assert darkroom(monkeypatch, "contact-sheet", uri) == 2
    assert "where:   --to" in capsys.readouterr().err
    assert darkroom(monkeypatch, "contact-sheet", uri, "--to", str(tmp_path / "sheet")) == 0
    assert "images     1 of 2 prompts, 1 failed" in capsys.readouterr().out
    assert [cell["preview"] is None for cell in cells_of(tmp_path / "sheet")] == [False, True]
