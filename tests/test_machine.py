"""What a machine gives: CPUs that may be used, folders that can be written."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.cache import cache_folder
from pipeline.distributed.cpus import cgroup_cpus, usable_cpus
from pipeline.distributed.session_folder import session_folder
from pipeline.errors import JobFileError

ROOT = Path(__file__).parent.parent


def write(folder: Path, **files: str) -> None:
    folder.mkdir(parents=True, exist_ok=True)
    for name, text in files.items():
        (folder / name.replace("__", ".")).write_text(text)


@pytest.fixture
def membership(tmp_path: Path) -> Path:
    return tmp_path / "cgroup"


def test_a_quota_of_control_groups_of_version_2(tmp_path: Path, membership: Path) -> None:
    membership.write_text("0::/system.slice/job\n")
    groups = tmp_path / "fs"
    write(groups / "system.slice" / "job", cpu__max="max 100000\n")
    assert cgroup_cpus(membership, groups) is None
    write(groups / "system.slice" / "job", cpu__max="350000 100000\n")
    assert cgroup_cpus(membership, groups) == 3.5
    write(groups / "system.slice", cpu__max="150000 100000\n")
    assert cgroup_cpus(membership, groups) == 1.5, "the group above is narrower"


def test_a_quota_in_a_container_that_does_not_see_its_group(tmp_path: Path, membership: Path) -> None:
    membership.write_text("0::/../kubepods/pod1\n")
    write(tmp_path / "fs", cpu__max="200000 100000\n")
    assert cgroup_cpus(membership, tmp_path / "fs") == 2.0


@pytest.mark.parametrize("mount", ["cpu,cpuacct", "cpu"])
def test_a_quota_of_control_groups_of_version_1(tmp_path: Path, membership: Path, mount: str) -> None:
    membership.write_text("5:memory:/docker/1\n4:cpu,cpuacct:/docker/1\n1:name=systemd:/docker/1\n")
    groups = tmp_path / "fs"
    write(groups / mount / "docker" / "1", cpu__cfs_quota_us="-1\n", cpu__cfs_period_us="100000\n")
    write(groups / "memory" / "docker" / "1", cpu__cfs_quota_us="1000\n", cpu__cfs_period_us="100000\n")
    assert cgroup_cpus(membership, groups) is None
    write(groups / mount, cpu__cfs_quota_us="250000\n")
    write(groups / mount, cpu__cfs_period_us="100000\n")
    assert cgroup_cpus(membership, groups) == 2.5


@pytest.mark.parametrize("text", ["", "max\n", "nonsense here\n", "100 0\n"])
def test_a_quota_that_cannot_be_read_limits_nothing(tmp_path: Path, membership: Path, text: str) -> None:
    membership.write_text("0::/\nnonsense\n")
    write(tmp_path / "fs", cpu__max=text)
    assert cgroup_cpus(membership, tmp_path / "fs") is None
    assert cgroup_cpus(tmp_path / "none", tmp_path / "fs") is None


def test_cpus_are_those_of_the_affinity() -> None:
    code = (
        "import os; os.sched_setaffinity(0, {min(os.sched_getaffinity(0))})\n"
        "from pipeline.distributed.cpus import usable_cpus; print(usable_cpus())"
    )
    said = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True)
    assert said.stdout.strip() == "1"
    assert 1 <= usable_cpus() <= len(os.sched_getaffinity(0))


@pytest.fixture
def nowhere(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    for name in ("RAY_TMPDIR", "TMPDIR"):
        monkeypatch.delenv(name, raising=False)
    return monkeypatch


@pytest.mark.parametrize("name", ["RAY_TMPDIR", "TMPDIR"])
def test_a_long_or_closed_temporary_folder_is_replaced(name: str, tmp_path: Path, nowhere: pytest.MonkeyPatch) -> None:
    assert session_folder() is None
    nowhere.setenv(name, f"/tmp/{'x' * 60}")
    assert session_folder() == Path("/tmp/ray")
    nowhere.setenv(name, f"/tmp/{'ü' * 20}")  # 40 bytes, not 20
    assert session_folder() == Path("/tmp/ray")
    nowhere.setenv(name, "/proc/no-such-folder")
    assert session_folder() == Path("/tmp/ray")


def test_no_folder_for_ray_is_bad_input(nowhere: pytest.MonkeyPatch) -> None:
    nowhere.setenv("TMPDIR", "/proc/none")
    nowhere.setattr("pipeline.distributed.session_folder._SHORT", (Path("/proc/none"),))
    with pytest.raises(JobFileError, match="RAY_TMPDIR"):
        session_folder()


def test_no_home_is_bad_input_that_names_what_to_set(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    code = (
        "import os; from pipeline.cache import cache_folder; os.setuid(54321)\n"
        "try:\n    cache_folder()\nexcept Exception as error:\n    print(type(error).__name__, error)"
    )
    if os.getuid() != 0:
        pytest.skip("only root can become a user who has no home")
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    environment.pop("HOME", None)
    said = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    ).stdout
    assert said.startswith("InputError")
    assert "XDG_CACHE_HOME" in said
    monkeypatch.setenv("XDG_CACHE_HOME", "/somewhere")
    assert cache_folder() == Path("/somewhere/darkroom")
