"""Files that have the names of modules everybody imports, and leave a mark if anything imports them."""

from collections.abc import Iterable
from pathlib import Path

NAMES = (
    "diffusers", "torch", "PIL", "numpy", "pipeline", "jobs", "ray", "sitecustomize", "usercustomize",
    "transformers", "safetensors", "pyarrow", "typing", "json", "yaml",
)  # fmt: skip


def lay(folder: Path, marks: Path, *, packages: bool = False, names: Iterable[str] = NAMES) -> None:
    """Write canaries into the folder, as files or as packages; each adds its path to ``marks`` when it is imported."""
    code = f"with open({str(marks)!r}, 'a') as marks:\n    print(__file__, file=marks)\n"
    for name in names:
        path = folder / name / "__init__.py" if packages else folder / f"{name}.py"
        path.parent.mkdir(exist_ok=True)
        path.write_text(code)


def executed(marks: Path) -> list[str]:
    """Return the paths of the canaries that something has imported, once for each time."""
    return marks.read_text().splitlines() if marks.exists() else []
