"""The files of ``cluster/`` against the README and the code; those for Kubernetes in ``test_kubernetes.py``."""

import json
import os
import re
import shlex
import shutil
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from fnmatch import fnmatchcase
from pathlib import Path
from typing import BinaryIO
from unittest.mock import patch

import pytest

import pipeline.output.tables
from pipeline.storage.local import LocalStore
from tests.faults.commit import patch_segments
from tests.faults.without_ray import Painter, launch_here, plan_of

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
README = CLUSTER / "README.md"


def test_nothing_in_the_files_is_left_unexplained() -> None:
    """What has to be filled in is named in the README, and the README names every file, or its directory."""
    readme = README.read_text()
    text = "".join(path.read_text() for path in CLUSTER.rglob("*.yaml")) + (CLUSTER / "iam" / "render.json").read_text()
    assert set(re.findall(r"\b(?:BUCKET|REGISTRY|ACCOUNT)\b", text)) <= set(re.findall(r"`([A-Z]+)`", readme))
    for path in CLUSTER.rglob("*"):
        if path.suffix in (".yaml", ".yml", ".json"):
            named = path.parent if path.name == "kustomization.yaml" and path.parent.name != "base" else path
            assert f"`{named.relative_to(CLUSTER).as_posix()}`" in readme


def statements(policy: str) -> Iterator[tuple[list[str], list[str]]]:
    """Actions and resources."""
    for statement in json.loads((CLUSTER / "iam" / f"{policy}.json").read_text())["Statement"]:
        actions, resources = (
            [one] if isinstance(one, str) else one for one in (statement["Action"], statement["Resource"])
        )
        yield actions, resources


def may(action: str, key: str, policy: str = "render") -> bool:
    for actions, resources in statements(policy):
        if action in actions and any(fnmatchcase(f"arn:aws:s3:::BUCKET/{key}", resource) for resource in resources):
            return True
    return False


def test_a_job_may_write_its_run_and_delete_no_image() -> None:
    run = "renders/nightly"
    for key in ("images/ab/x.png", "metadata/ab/x.parquet", "metadata.parquet", "_darkroom/run.json"):
        assert may("s3:PutObject", f"{run}/{key}")
    for key in (
        "_darkroom/probe-1",
        "_darkroom/attempts/l/p/x.json",
        "_darkroom/finalized.json",
        "metadata-00001.parquet",
    ):
        assert may("s3:DeleteObject", f"{run}/{key}")
    for key in ("images/ab/x.png", "shards/x.tar", "data/x.parquet", "metadata/ab/x.parquet"):
        assert not may("s3:DeleteObject", f"{run}/{key}")
        assert may("s3:DeleteObject", f"{run}/{key}", "mend")
    assert not may("s3:PutObject", "manifests/a.parquet")
    assert may("s3:GetObject", "manifests/a.parquet")


ACTIONS = {
    "abort_multipart_upload": "s3:AbortMultipartUpload",
    "delete_object": "s3:DeleteObject",
    "get_object": "s3:GetObject",
    "head_object": "s3:GetObject",
    "list_multipart_uploads": "s3:ListBucketMultipartUploads",
    "list_objects_v2": "s3:ListBucket",
    "put_object": "s3:PutObject",
    "upload_fileobj": "s3:PutObject",
}
"""What S3 asks for, by the calls of boto3."""
OF_BUCKETS = {"s3:ListBucket", "s3:ListBucketMultipartUploads"}


def test_every_call_of_the_store_is_in_a_policy() -> None:
    called = set(re.findall(r"\bclient\.(\w+)\(", (ROOT / "pipeline" / "storage" / "s3.py").read_text()))
    assert called == set(ACTIONS)
    allowed = [*statements("render"), *statements("mend")]
    for action in ACTIONS.values():
        found = {resource for actions, resources in allowed for resource in resources if action in actions}
        assert found, action
        assert (found == {"arn:aws:s3:::BUCKET"}) == (action in OF_BUCKETS), action


class Watched(LocalStore):
    """Notes what is done to it, in the words of S3."""

    def __init__(self, root: Path) -> None:
        super().__init__(root)
        self.done: set[tuple[str, str]] = set()

    def put_file(self, key: str, file: BinaryIO) -> None:
        self.done.add(("s3:PutObject", key))
        super().put_file(key, file)

    def delete(self, key: str) -> None:
        self.done.add(("s3:DeleteObject", key))
        super().delete(key)


def test_launches_do_nothing_that_they_may_not(tmp_path: Path) -> None:
    store = Watched(tmp_path / "out")
    with patch_segments(), patch.object(pipeline.output.tables, "TABLE_ROWS", 4):
        for seeds in ("0-0", "0-1", "0-3", "0-5"):
            plan = plan_of(tmp_path, ["a", "b", "a", "c"], "files", seeds)
            launch_here(store, plan, Painter())
    assert {action for action, _ in store.done} == {"s3:PutObject", "s3:DeleteObject"}
    assert any(key.startswith("metadata-") for action, key in store.done if action == "s3:DeleteObject")
    assert not [key for action, key in store.done if not may(action, f"renders/nightly/{key}")]


def test_the_image_is_pinned_and_not_root() -> None:
    lines = (CLUSTER / "Dockerfile").read_text().splitlines()
    installs = [line for line in lines if "pip install" in line]
    assert all("-c constraints.txt" in line or "--no-deps" in line for line in installs)
    assert all("--no-deps" in line for line in installs if "--index-url" in line)
    targets = [line.split()[-1] for line in lines if line.startswith("FROM ")]
    assert {"cpu", "gpu"} <= set(targets)
    assert sum(line == "USER 1000:1000" for line in lines) == 2
    assert not any(line.startswith("FROM ") and ":latest" in line for line in lines)


@pytest.mark.parametrize(("extras", "more"), [("", set()), ("fp8", {"torchao"})])
def test_the_image_installs_the_extras_that_are_asked_for(extras: str, more: set[str], tmp_path: Path) -> None:
    """The line of the Dockerfile that lists what to install, run by a shell as a build runs it."""
    (line,) = [line for line in (CLUSTER / "Dockerfile").read_text().splitlines() if "tomllib" in line]
    shutil.copy(ROOT / "pyproject.toml", tmp_path)
    command = line.removeprefix("RUN ").replace("python", shlex.quote(sys.executable), 1)
    subprocess.run(["sh", "-c", command], cwd=tmp_path, env={**os.environ, "EXTRAS": extras}, check=True)
    listed = set((tmp_path / "requirements.txt").read_text().splitlines())
    assert {"ray[data,default]", "torch"} <= listed
    assert listed - {*tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["dependencies"]} == more
    pinned = {line.partition("==")[0] for line in (ROOT / "constraints.txt").read_text().splitlines()}
    assert more <= pinned
    assert "ARG EXTRAS=" in (CLUSTER / "Dockerfile").read_text()
    assert not extras or f"--build-arg EXTRAS={extras}" in README.read_text()
