"""Docs that are held to: every key, column and command in them exists, and the other way round."""

import re
import subprocess
import sys
from datetime import date
from pathlib import Path

from pydantic import BaseModel

from pipeline.config import Job, load_job
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


def test_links_lead_somewhere() -> None:
    for page in [ROOT / "README.md", ROOT / "CONTRIBUTING.md", *(ROOT / "docs").rglob("*.md")]:
        for target in re.findall(r"\]\(([^)#]+)\)", page.read_text()):
            assert "://" in target or (page.parent / target).exists(), f"{page.name}: {target}"
