"""The cookbook's commands, one after the other, as somebody types them."""

import os
import re
import subprocess
import sys
from collections.abc import Mapping
from pathlib import Path

import pyarrow.parquet as pq

ROOT = Path(__file__).parent.parent


def test_every_recipe_runs(tmp_path: Path, shared_ray: Mapping[str, str]) -> None:
    blocks = re.findall(r"```sh\n(.*?)```", (ROOT / "docs" / "cookbook.md").read_text(), re.S)
    (tmp_path / "darkroom").write_text(f'#!/bin/sh\nexec "{sys.executable}" -m jobs "$@"\n')
    (tmp_path / "darkroom").chmod(0o755)
    environment = {
        **{name: value for name, value in os.environ.items() if not name.startswith("RAY_")},
        "PATH": f"{tmp_path}{os.pathsep}{os.environ['PATH']}",
        "PYTHONPATH": str(ROOT),
        "XDG_CACHE_HOME": str(tmp_path / "cache"),
        **shared_ray,
    }
    script = "set -eux\n" + "\n".join(blocks)
    done = subprocess.run(["bash", "-c", script], cwd=tmp_path, env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr[-3000:]
    renders = tmp_path / "renders"
    rows = {path.name: pq.read_metadata(path / "metadata.parquet").num_rows for path in renders.glob("[!.]*[!t]")}
    assert rows == {"sweep": 4 * 2 * 4 * 2, "schedulers": 4 * 4, "large": 4 * 10, "training": 4 * 4}
    assert (renders / "sweep" / "contact-sheet" / "index.html").exists()
    assert "darkroom render --prompt" in done.stdout.rpartition("renders/sweep")[0] + done.stdout
    assert "measured" in done.stdout, "the plan after the preview has its rate"


def test_every_page_is_in_the_index() -> None:
    index = (ROOT / "docs" / "README.md").read_text()
    for page in (ROOT / "docs").glob("*.md"):
        assert page.name == "README.md" or f"({page.name}" in index, page.name
    for link in re.findall(r"\]\(([^)#]+)[^)]*\)", index):
        assert (ROOT / "docs" / link).exists(), link
