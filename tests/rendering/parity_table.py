"""Every family, scheduler, option and setting against stock diffusers: ``python -m tests.rendering.parity_table``.

Takes a while. Results are kept one by one in ``--kept``; a second start goes on where the first one was cut off, as
long as the renderer's code and the libraries are the same. The summary goes to ``docs/parity.md``. Exits with 1 if a
case is outside the rule.
"""

import argparse
import json
import platform
import sys
from collections.abc import Iterator
from concurrent.futures import ProcessPoolExecutor
from hashlib import sha256
from importlib.metadata import version
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch

from pipeline.schedulers import scheduler_of
from tests.rendering.test_parity import (
    KINDS,
    LARGEST_LATENT_DIFFERENCE,
    LARGEST_PIXEL_DIFFERENCE,
    LARGEST_WHERE_BITS_GROW,
    load_kind,
)

ROOT = Path(__file__).parents[2]
SUMMARY = ROOT / "docs" / "parity.md"
CODE = (
    "pipeline/rendering",
    "pipeline/model",
    "pipeline/schedulers.py",
    "pipeline/scheduler_classes.py",
    "tests/rendering/parity_table.py",
    "tests/rendering/test_parity.py",
    "tests/tiny_models.py",
)
LIBRARIES = ("torch", "diffusers", "transformers")
PAGE = """# Parity with diffusers

Every image of Darkroom is compared with the one that the family's own diffusers pipeline makes of the same recipe, in
float32 on a CPU. No pixel may be more than {pixels} of 255 apart, and no latent more than {latents:g} of a standard
deviation; {clips:g} where the scheduler clips, and for `heun:beta` and `kdpm2_ancestral:beta`, where diffusers
itself rounds more (see `tests/rendering/test_parity.py`). Where diffusers gives NaN, so must Darkroom.

Models are tiny ones of the real classes. Each scheduler is taken without options, with each spacing, schedule of sigmas
and list, and with two options; each of these unguided, guided, with one step and with many. `make test` renders a part.

```
make parity
```

It continues where it was stopped.

{cases:,} cases, {machine}, {libraries}.

| model | scheduler | cases | largest of pixels (of 255) | largest of latents |
|---|---|---|---|---|
{lines}
"""
CHUNK = 12
"""Cases that are rendered in one backlog, and kept together."""


def digest() -> str:
    """Of everything that results depend on."""
    made = sha256(" ".join(version(name) for name in LIBRARIES).encode())
    for place in CODE:
        found = ROOT / place
        for path in sorted(found.rglob("*.py")) if found.is_dir() else [found]:
            made.update(path.read_bytes())
    return made.hexdigest()[:16]


def run_kind(name: str, file: Path) -> int:
    """Render what the file does not have yet of one kind, and append it; returns how many cases there are."""
    torch.set_num_threads(1)
    done = {tuple(one["case"]) for one in read(file)}
    with TemporaryDirectory() as folder:
        kind = load_kind(name, Path(folder))
        every = kind.every_case()
        missing = [case for case in every if (name, repr(case.recipe)) not in done]
        for start in range(0, len(missing), CHUNK):
            for case, pixels, latents in kind.differences(missing[start : start + CHUNK]):
                found = {"case": [name, repr(case.recipe)], "scheduler": case.recipe.scheduler,
                         "pixels": pixels, "latents": latents,
                         "within": kind.within(case.recipe, pixels, latents)}  # fmt: skip
                with file.open("a") as kept:
                    kept.write(json.dumps(found) + "\n")
    return len(every)


def read(file: Path) -> Iterator[dict[str, Any]]:
    """The results that are there; a line that was cut off is none."""
    for line in file.read_text().splitlines() if file.exists() else ():
        try:
            yield json.loads(line)
        except ValueError:
            continue


def summary(results: list[dict[str, Any]]) -> str:
    """The page, a row for each kind and scheduler."""
    worst: dict[tuple[str, str], list[Any]] = {}
    for one in results:
        key = one["case"][0], scheduler_of(one["scheduler"]).name
        row = worst.setdefault(key, [0, 0, 0.0])
        row[0] += 1
        row[1], row[2] = max(row[1], one["pixels"]), max(row[2], one["latents"])
    lines = "\n".join(
        f"| {kind} | {name} | {count} | {pixels} | {latents:.1e} |"
        for (kind, name), (count, pixels, latents) in sorted(worst.items())
    )
    libraries = ", ".join(f"{name} {version(name)}" for name in LIBRARIES)
    return PAGE.format(
        pixels=LARGEST_PIXEL_DIFFERENCE, latents=LARGEST_LATENT_DIFFERENCE, clips=LARGEST_WHERE_BITS_GROW,
        cases=len(results), machine=platform.machine(), libraries=libraries, lines=lines,
    )  # fmt: skip


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--kinds", nargs="+", choices=list(KINDS), default=list(KINDS))
    parser.add_argument("--jobs", type=int, default=2, help="processes")
    parser.add_argument("--kept", type=Path, default=ROOT / ".work" / "parity", help="folder of the results")
    given = parser.parse_args()
    folder = given.kept / digest()
    folder.mkdir(parents=True, exist_ok=True)
    files = {name: folder / f"{name}.jsonl" for name in given.kinds}
    with ProcessPoolExecutor(given.jobs) as pool:
        for name, count in zip(files, pool.map(run_kind, files, files.values()), strict=True):
            print(f"{name}: {count:,} cases", flush=True)
    results = [one for file in files.values() for one in read(file)]
    wrong = [one for one in results if not one["within"]]
    for one in wrong:
        print(f"outside the rule: {one}")
    if set(given.kinds) == set(KINDS):
        SUMMARY.write_text(summary(results))
    print(f"{len(results):,} cases, {len(wrong)} outside the rule")
    sys.exit(1 if wrong else 0)


if __name__ == "__main__":
    main()
