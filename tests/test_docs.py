"""Docs that are held to: every key, column and command in them exists, and the other way round."""

import json
import re
import shlex
import subprocess
import sys
from ast import literal_eval
from datetime import date
from functools import partial
from itertools import takewhile
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from pydantic import BaseModel
from typer.main import get_group

from jobs.cli import app
from pipeline.config import Job, load_job
from pipeline.distributed.report import Report
from pipeline.errors import InputError
from pipeline.output.finalize import Finalized, finalize
from pipeline.output.schema import METADATA_SCHEMA
from pipeline.schedulers import SCHEDULERS, SPACINGS, scheduler_of
from pipeline.storage.local import LocalStore
from tests.test_export import IMAGES, exported, write_output
from tests.test_output import commit, rendered
from tests.test_readers import datasets

__all__ = ["datasets"]

ROOT = Path(__file__).parent.parent


def keys(kind: type[BaseModel], prefix: str = "") -> set[str]:
    found = set()
    for name, field in kind.model_fields.items():
        inner = field.annotation
        if isinstance(inner, type) and issubclass(inner, BaseModel):
            found |= keys(inner, f"{name}.")
        else:
            found.add(prefix + name)
    return found


def test_every_key_of_the_job_file_is_documented_and_exists() -> None:
    table = (ROOT / "docs" / "job-file.md").read_text().split("### Schedulers")[0]
    named = {
        key
        for line in table.splitlines()
        if line.startswith("| `")
        for key in re.findall(r"`([\w.]+)`", line.split("|")[1])
    }
    assert named == keys(Job)


def test_every_metadata_column_is_documented() -> None:
    section = (ROOT / "docs" / "job-file.md").read_text().split("## Metadata")[1].split("\n\n")[2]
    assert re.findall(r"`(\w+)`", section) == METADATA_SCHEMA.names


def test_the_readmes_job_file_loads(tmp_path: Path) -> None:
    (block,) = re.findall(r"```yaml\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    (tmp_path / "job.yaml").write_text(block)
    job = load_job(tmp_path / "job.yaml", [], date(2026, 1, 2))
    assert job.output.uri == "s3://bucket/renders"
    assert job.manifest_columns == {"caption": "prompt"}


def test_the_readmes_commands_run(tmp_path: Path) -> None:
    """All but the rendering itself, which the end-to-end tests do at length."""
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    elsewhere = (". ", "make", "darkroom render", "darkroom status", "darkroom contact-sheet")
    lines = [line for block in blocks for line in block.splitlines() if not line.startswith(elsewhere)]
    script = "\n".join(line.replace("darkroom", f"{sys.executable} -m jobs") for line in lines)
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    command = ["bash", "-euc", script]
    done = subprocess.run(command, cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert "mine.parquet: 2 prompt rows" in done.stdout
    assert "planned    32 images" in done.stdout


def table(page: str, head: str) -> list[list[str]]:
    """The rows of the table with this header line, in a page of ``docs``."""
    lines = (ROOT / "docs" / page).read_text().partition(head)[2].splitlines()[2:]
    rows = [line.split("|")[1:-1] for line in takewhile(lambda line: line.startswith("|"), lines)]
    return [[cell.strip() for cell in row] for row in rows]


def test_every_key_of_a_launchs_summary_is_documented() -> None:
    report = Report(output_uri="x", finalized=Finalized(ok=0, failed=0, parts=0))
    named = {key for row in table("cluster.md", "| key | is |") for key in re.findall(r"`(\w+)`", row[0])}
    assert named == set(json.loads(report.as_json()))


def test_what_is_said_of_wrong_addresses_is_documented() -> None:
    code = (ROOT / "pipeline" / "distributed" / "address.py").read_text()
    rows = table("cluster.md", "| it says | because |")
    assert len(rows) == 11
    for said, _ in rows:
        assert said in code


def names(option: Any) -> list[str]:
    """Return what an option is called, its negation included."""
    return [*option.opts, *option.secondary_opts]


def test_options_of_submit_exist() -> None:
    options = {name for option in get_group(app).commands["submit"].params for name in names(option)}
    page = (ROOT / "docs" / "cluster.md").read_text()
    used = {
        word for line in page.splitlines() if "darkroom submit" in line for word in re.findall(r" (--[a-z-]+)", line)
    }
    named = {word for row in table("cluster.md", "| | |") for word in re.findall(r"`(--[a-z-]+)", row[0])}
    assert {"--address", "--no-wait", "--image"} <= named | used <= options


PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")), ROOT / "cluster" / "README.md"]
COMMAND = re.compile(r"(?:.*(?:&&|\||--) |(?:\w+=\S+ )+)?darkroom (.*)")
"""At the beginning of a line of shell, or after what a shell takes for the end of something else."""


def command_lines(page: Path) -> list[str]:
    """What follows ``darkroom`` in the fenced and indented blocks of a page."""
    text = page.read_text().replace("\\\n", "")
    lines = [line for block in re.findall(r"^```\w*\n(.*?)^```", text, re.M | re.S) for line in block.splitlines()]
    lines += re.findall(r"^    (.*)", text, re.M)
    return [found[1] for line in lines if (found := COMMAND.fullmatch(line.strip()))]


COMMAND_LINES = list(dict.fromkeys(line for page in PAGES for line in command_lines(page)))


def verb_of(words: list[str]) -> tuple[Any, list[str]]:
    """The command that these words name, and what it is given."""
    command: Any = get_group(app)
    while hasattr(command, "commands"):
        assert words[0] in command.commands
        command = command.commands[words[0]]
        words = words[1:]
    return command, words


def test_command_lines_are_found() -> None:
    assert len(COMMAND_LINES) > 25


@pytest.mark.parametrize("line", COMMAND_LINES)
def test_every_command_line_can_be_parsed(line: str) -> None:
    """Verbs, options and the kinds of their values; nothing is run."""
    alone = re.split(r" >>? ", line)[0]
    command, words = verb_of(shlex.split(alone, comments=True))
    command.make_context(line, words)


@pytest.mark.parametrize("page", PAGES, ids=lambda page: str(page.relative_to(ROOT)))
def test_verbs_and_options_in_texts_exist(page: Path) -> None:
    """In texts, words such as N stand for values, so that only names can be looked at."""
    for text in re.findall(r"`darkroom\s([a-z][^`]*)`", page.read_text()):
        command, words = verb_of(text.split())
        options = {name for option in command.params for name in option.opts}
        assert {word for word in words if word.startswith("-")} <= options, text


def test_the_readmes_python_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (block,) = re.findall(r"```python\n(.*?)```", (ROOT / "README.md").read_text(), re.S)
    store = LocalStore(tmp_path / "renders" / "mine")
    commit(store, rendered(1), rendered(2))
    finalize(store)
    monkeypatch.chdir(tmp_path)
    exec(block, {})
    assert [row["prompt"] for row in literal_eval(capsys.readouterr().out)] == ["p1", "p2"]


@pytest.mark.parametrize("form", ["imagefolder", "webdataset"])
def test_exports_load_by_the_line_in_their_table(
    form: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, datasets: ModuleType
) -> None:
    (cell,) = [
        row[2] for row in table("exports.md", "| `--to` | what there is | read it with |") if row[0] == f"`{form}`"
    ]
    (line,) = re.findall(r"`(load_dataset\(.*?\))`", cell)
    exported(write_output(tmp_path / "out"), tmp_path / "DEST", form)
    monkeypatch.chdir(tmp_path)
    load_dataset = partial(datasets.load_dataset, split="train", cache_dir=str(tmp_path / "cache"))
    assert len(eval(line, {"load_dataset": load_dataset, "DEST": "DEST"})) == IMAGES


def takes(scheduler: str) -> bool:
    try:
        scheduler_of(scheduler)
    except InputError:
        return False
    return True


def test_the_table_of_scheduler_options_is_what_is_accepted() -> None:
    rows = table("job-file.md", "| option | means | for |")
    named: dict[str, set[str]] = {}
    for options, _, those in rows:
        names = set(those.removeprefix("all but ").split(", "))
        assert names <= SCHEDULERS.keys()
        for option in options.split(", "):
            named[option] = SCHEDULERS.keys() - names if those.startswith("all but ") else names
    for option, names in named.items():
        assert names == {name for name in SCHEDULERS if takes(f"{name}:{option}")}, option
    kinds = SCHEDULERS.values()
    words = {word for kind in kinds for word in (*kind.sigma_schedules, *kind.lists)} | {*SPACINGS}
    assert {option.partition("=")[0] for option in named} == words


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"
