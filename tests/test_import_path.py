"""Nothing that lies in the working directory or in a model folder is importable: canaries lie there in every test."""

import json
import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from pipeline.import_path import kept
from pipeline.model.resolve import BUILT_IN
from pipeline.output.launch_note import read_notes
from pipeline.storage.local import LocalStore
from tests import canaries
from tests.test_end_to_end import write_manifest

ROOT = Path(__file__).parent.parent
SCRIPT = """#!{python}
import sys
from jobs.__main__ import main
if __name__ == "__main__":
    sys.exit(main())
"""
"""The command as pip installs it."""
VERBS = """
import sys
from jobs.__main__ import main
for words in {verbs!r}:
    sys.argv = ["darkroom", *words]
    try:
        main()
    except SystemExit as ended:
        assert ended.code == 0, words
"""
JOB = ("--manifest", "m.parquet", "--model", ".", "--sizes", "32x32", "--steps", "1", "--output", "out")
NO_HOME = "/proc/no-such-folder"
"""Nobody can create it, not even root."""


class Folder:
    """A model folder with canaries in it, which is the working directory too."""

    def __init__(self, folder: Path) -> None:
        self.model, self.marks, self.above = folder / "model", folder / "marks", folder
        shutil.copytree(BUILT_IN["shapes"], self.model)
        write_manifest(self.model / "m.parquet", [{"prompt": f"a {name} circle"} for name in ("red", "blue")])
        canaries.lay(self.model, self.marks)
        self.command = folder / "bin" / "darkroom"
        self.command.parent.mkdir()
        self.command.write_text(SCRIPT.format(python=sys.executable))
        left_out = {"RAY_ADDRESS", "RAY_TMPDIR", "RAY_AUTH_TOKEN", "RAY_AUTH_TOKEN_PATH", "XDG_CACHE_HOME"}
        self.environment = {
            **{name: value for name, value in os.environ.items() if name not in left_out},
            "PYTHONPATH": str(ROOT),
        }

    def run(self, *words: str, prefix: tuple[str, ...] = (), **environment: str) -> "subprocess.CompletedProcess[str]":
        """Run Python in the folder."""
        done = subprocess.run(
            [*prefix, sys.executable, *words],
            cwd=self.model,
            env={**self.environment, **environment},
            capture_output=True,
            text=True,
            timeout=300,
        )
        assert done.returncode == 0, done.stderr + done.stdout
        return done

    @property
    def executed(self) -> list[str]:
        return canaries.executed(self.marks)


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Folder:
    return Folder(tmp_path_factory.mktemp("user"))


@pytest.fixture(scope="module")
def launched(folder: Folder) -> "subprocess.CompletedProcess[str]":
    """One launch on one CPU, without a home, with a temporary folder whose path is too long for sockets."""
    long = folder.above / ("long" * 30)
    return folder.run(
        str(folder.command), "render", *JOB, prefix=("taskset", "--cpu-list", str(min(os.sched_getaffinity(0)))),
        HOME=NO_HOME, TMPDIR=str(long),
    )  # fmt: skip


def test_canaries_are_heard(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    folder.run("-c", "import diffusers")
    assert [Path(path).name for path in folder.executed] == ["diffusers.py"]


def test_no_process_of_a_launch_imports_from_the_working_directory(
    folder: Folder, launched: "subprocess.CompletedProcess[str]"
) -> None:
    assert "rendered   2 images" in launched.stdout
    assert folder.executed == []


def test_a_launch_counts_the_cpus_that_it_may_use(folder: Folder, launched: "subprocess.CompletedProcess[str]") -> None:
    (note,) = read_notes(LocalStore(folder.model / "out"))
    assert note.room == 1


def test_rays_sockets_have_short_paths_whatever_the_temporary_folder(
    launched: "subprocess.CompletedProcess[str]",
) -> None:
    assert "Ray's files are in /tmp/ray: " in launched.stderr


def test_no_verb_imports_from_the_working_directory(
    folder: Folder, launched: "subprocess.CompletedProcess[str]"
) -> None:
    image = next((folder.model / "out" / "images").rglob("*.png"))
    verbs = [
        ("plan", *JOB), ("status", "out"), ("verify", "out"), ("explain", str(image)),
        ("export", "out", "exported", "--to", "imagefolder"), ("finalize", "out"), ("contact-sheet", "out"),
        ("manifest", "check", "m.parquet"),
    ]  # fmt: skip
    folder.run("-P", "-c", VERBS.format(verbs=verbs))
    assert folder.executed == []


def test_an_empty_entry_of_pythonpath_counts_for_nothing_once_darkroom_runs(tmp_path: Path) -> None:
    folder = Folder(tmp_path)
    for name in ("sitecustomize", "usercustomize", "jobs"):  # Python imports them before
        (folder.model / f"{name}.py").unlink()
    code = (
        "from jobs.__main__ import _leave_working_directory as leave; leave(); import json, os, pipeline, sys, typing; "
        "print(json.dumps([sys.path, os.environ['PYTHONPATH'], pipeline.__file__]))"
    )
    said = folder.run("-P", "-c", code, PYTHONPATH=f":.:{ROOT}:./").stdout
    path, pythonpath, imported = json.loads(said)
    assert str(folder.model) not in path
    assert (pythonpath, imported) == (str(ROOT), str(ROOT / "pipeline" / "__init__.py"))
    assert "darkroom" in folder.run("-m", "jobs", "--version", PYTHONPATH=f":{ROOT}").stdout
    assert folder.executed == []


@pytest.mark.parametrize(
    ("entries", "by_ray", "stay"),
    [
        (["", ".", "./", "../here", "lib", "/here", "/lib"], False, ["lib", "/here", "/lib"]),
        (["/here", "/tmp/ray/working_dir_files/_ray_pkg_0/darkroom-job", "/lib"], True, ["/lib"]),
    ],
)
def test_entries_that_name_the_working_directory_are_left_out(
    entries: list[str], by_ray: bool, stay: list[str]
) -> None:
    assert kept(entries, "/here", by_ray=by_ray) == stay
