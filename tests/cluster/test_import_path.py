"""Nothing that a submitted job takes along is importable, on any process of the cluster."""

import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.model.resolve import BUILT_IN
from tests import canaries
from tests.cluster.nodes import LocalCluster
from tests.test_end_to_end import write_manifest

JOB = ("--manifest", "m.parquet", "--model", "model", "--sizes", "32x32", "--steps", "1")
LATE = ("diffusers", "torch", "PIL", "transformers", "safetensors")
"""Names that neither Python nor Ray imports before Darkroom begins."""


@pytest.fixture
def cluster() -> Iterator[LocalCluster]:
    folder = Path(tempfile.mkdtemp(prefix="dk-"))
    cluster = LocalCluster(folder)
    try:
        cluster.start(nodes=0)
        yield cluster
    finally:
        cluster.stop()
        shutil.rmtree(folder)


def run(cluster: LocalCluster, folder: Path, *words: str) -> str:
    done = subprocess.run(
        [sys.executable, "-P", "-m", *words],
        cwd=folder,
        env=cluster.user(),
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr + done.stdout
    return done.stdout


def test_nothing_that_is_shipped_is_imported(cluster: LocalCluster) -> None:
    folder, marks = cluster.folder / "user", cluster.folder / "marks"
    shutil.copytree(BUILT_IN["shapes"], folder / "model")
    write_manifest(folder / "m.parquet", [{"prompt": "a red circle"}])
    canaries.lay(folder / "model", marks, packages=True)
    canaries.lay(folder, marks)
    out = str(cluster.folder / "out")
    said = run(cluster, folder, "jobs", "submit", *JOB, "--output", out, "--address", cluster.address)
    assert "rendered   1 image " in said
    assert canaries.executed(marks) == []
    # Ray's own command puts the whole directory on the path before Darkroom begins.
    for path in (*folder.glob("*.py"), *(folder / "model").glob("*/__init__.py")):
        path.unlink()
    canaries.lay(folder, marks, names=LATE)
    said = run(
        cluster, folder, "ray.scripts.scripts", "job", "submit", "--address", cluster.address, "--working-dir", ".",
        "--", "darkroom", "render", *JOB, "--seeds", "7", "--output", out,
    )  # fmt: skip
    assert "rendered   1 image " in said
    assert canaries.executed(marks) == []
