"""The walls of docs/architecture.md, from the import graph: what a room must never import, even through others."""

import ast
import re
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent

WALLS = {
    "pipeline.errors": {"torch", "diffusers", "ray", "boto3", "pyarrow"},
    "pipeline.config": {"torch", "diffusers", "ray", "boto3"},
    "pipeline.output_address": {"torch", "diffusers", "ray", "boto3"},
    "pipeline.strict_yaml": {"torch", "diffusers", "ray", "boto3"},
    "pipeline.strict_json": {"torch", "diffusers", "ray", "boto3"},
    "pipeline.sweep": {"torch", "diffusers", "ray", "boto3"},
    "pipeline.schedulers": {"torch", "diffusers", "ray", "boto3"},
    "pipeline.samplers": {"torch", "diffusers", "ray", "boto3"},
    "pipeline.scheduler_classes": {"torch", "diffusers", "ray", "boto3"},
    "pipeline.identity": {"torch", "diffusers", "ray", "boto3"},
    "pipeline.planning": {"torch", "diffusers", "ray", "boto3"},
    "pipeline.model": {"torch", "diffusers", "ray"},
    "pipeline.manifest": {"torch", "ray"},
    "pipeline.parquet": {"torch", "ray", "pipeline.errors", "pipeline.storage", "pipeline.output", "pipeline.manifest"},
    "pipeline.readable": {
        "torch",
        "ray",
        "pipeline.errors",
        "pipeline.storage",
        "pipeline.output",
        "pipeline.manifest",
    },
    "pipeline.storage": {"torch", "ray", "pyarrow", "pipeline.recipe", "pipeline.output", "pipeline.rendering"},
    "pipeline.rendering": {"ray", "boto3", "pyarrow", "pipeline.storage", "pipeline.output"},
    "pipeline.output": {"torch", "ray"},
    "pipeline.rejections": {"torch", "ray"},
    "pipeline.prepare": {"torch", "ray"},
    "pipeline.overview": {"torch", "ray"},
    "pipeline.export": {"torch", "ray"},
    "pipeline.report": {"torch", "ray"},
    "pipeline.distributed": {"argparse", "typer", "jobs"},
    "pipeline": {"jobs"},
}


def module_name(path: Path) -> str:
    parts = path.relative_to(ROOT).with_suffix("").parts
    return ".".join(parts[:-1] if parts[-1] == "__init__" else parts)


def imports(path: Path) -> Iterator[str]:
    """Everything a file imports, also inside functions: a late import is a door too."""
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.module:
            yield node.module
            yield from (f"{node.module}.{alias.name}" for alias in node.names)


FILES = {module_name(path): path for top in ("pipeline", "jobs") for path in (ROOT / top).rglob("*.py")}
GRAPH = {name: set(imports(path)) for name, path in FILES.items()}


def reachable(start: str) -> set[str]:
    """All modules a module imports, through our own modules too."""
    seen: set[str] = set()
    open_ = [start]
    while open_:
        for name in GRAPH.get(open_.pop(), ()):
            if name not in seen:
                seen.add(name)
                open_.append(name)
    return seen


@pytest.mark.parametrize("room", WALLS)
def test_no_room_reaches_what_it_must_not(room: str) -> None:
    inside = [name for name in FILES if name == room or name.startswith(f"{room}.")]
    assert inside
    for name in inside:
        for found in reachable(name):
            forbidden = {wall for wall in WALLS[room] if found == wall or found.startswith(f"{wall}.")}
            assert not forbidden, f"{name} reaches {found}"


@pytest.mark.parametrize("module", ["pipeline.planning.tasks", "jobs.plan", "pipeline.distributed.launch"])
def test_planning_loads_neither_torch_nor_ray(module: str) -> None:
    code = (
        f"import sys, {module}; print([m for m in ('torch', 'ray', 'diffusers', 'transformers') if m in sys.modules])"
    )
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert loaded.stdout.strip() == "[]"


def test_the_command_loads_no_pandas() -> None:
    """Arrow imports pandas, if there is one, for the first value that is made: a third of a second."""
    code = "import sys, jobs.cli; print('pyarrow' in sys.modules, 'pandas' in sys.modules)"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert loaded.stdout.strip() == "True False"


@pytest.mark.parametrize("module", ["pipeline.distributed.waves", "pipeline.distributed.worker"])
def test_a_launch_loads_no_torch_before_a_worker_loads_its_model(module: str) -> None:
    code = f"import sys, {module}; print([m for m in ('torch', 'diffusers', 'transformers') if m in sys.modules])"
    loaded = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True, cwd=ROOT)
    assert loaded.stdout.strip() == "[]"


def test_only_the_verbs_read_the_environment() -> None:
    """And one place that Python's door shares with them, and those that prepare the environment of libraries."""
    others = {"pipeline.import_path", "pipeline.distributed.connecting", "pipeline.distributed.session_folder"}
    others |= {"pipeline.rendering.determinism"}
    for name, path in FILES.items():
        if name.startswith("pipeline") and name not in {"pipeline.cache", *others}:
            # What is set for Ray's own processes is not read.
            assert not re.search(
                r"os\.environ(?!\[\"RAY_\w+\"\] = |\.setdefault\(\"RAY_)|os\.getenv", path.read_text()
            ), name


def test_package_files_are_empty() -> None:
    for path in FILES.values():
        if path.name == "__init__.py" and path.parent != ROOT / "pipeline":
            assert path.read_text() == "", path


def test_modules_stay_small() -> None:
    for name, path in FILES.items():
        assert len(path.read_text().splitlines()) <= 400, name


def test_parquet_is_read_in_one_place() -> None:
    """A read that reaches Arrow's thread pools can abort the process when it ends (pipeline/parquet.py)."""
    reads = re.compile(r"pq\.(ParquetFile|ParquetDataset|read_\w+)|pyarrow\.dataset|group_by\((?!.*use_threads=False)")
    for name, path in FILES.items():
        if name != "pipeline.parquet":
            assert not reads.search(path.read_text()), name
