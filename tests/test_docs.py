"""Docs that are held to: every key, column and command in them exists, and the other way round."""

import json
import re
import subprocess
import sys
from datetime import date
from itertools import takewhile
from pathlib import Path

from pydantic import BaseModel
from typer.main import get_group

from jobs.cli import app
from pipeline.config import Job, load_job
from pipeline.distributed.report import Report
from pipeline.output.finalize import Finalized
from pipeline.output.schema import METADATA_SCHEMA

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
    assert job.output.uri == "s3://bucket/renders/2026-01-02"
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


def test_options_of_submit_exist() -> None:
    options = {name for option in get_group(app).commands["submit"].params for name in option.opts}
    page = (ROOT / "docs" / "cluster.md").read_text()
    used = {
        word for line in page.splitlines() if "darkroom submit" in line for word in re.findall(r" (--[a-z-]+)", line)
    }
    named = {word for row in table("cluster.md", "| | |") for word in re.findall(r"`(--[a-z-]+)", row[0])}
    assert {"--address", "--no-wait", "--image"} <= named | used <= options


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"
