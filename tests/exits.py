"""``python -m tests.exits [TIMES]``: runs each verb that reads Parquet so often and counts exit codes other than 0.

A process that Arrow's threads abort ends with 134 in a few runs of a hundred, after it has printed everything.
"""

import shutil
import subprocess
import sys
import tempfile
from collections import Counter
from pathlib import Path

from pipeline.storage.local import LocalStore
from tests.faults.without_ray import Painter, launch_here, plan_of

VERBS = ("check", "plan", "render", "status", "verify", "explain", "explain id", "export", "finalize", "contact-sheet")
_SWEEP = ("--model", "shapes", "--seeds", "0-3", "--steps", "2")


class Exits:
    """A finished run, and the verbs over it."""

    def __init__(self, folder: Path) -> None:
        prompts = ["a red circle", "a blue star"]
        for layout in ("parquet", "files"):
            plan = plan_of(folder, prompts, layout, "0-3")
            launch_here(LocalStore(folder / layout), plan, Painter())
        self._folder, self._exported = folder, folder / "exported"
        self._image = next((folder / "files").glob("images/*/*.png"))

    def codes(self, verb: str, times: int) -> list[int]:
        """Return the exit codes of as many runs of a verb."""
        return [self._run(verb) for _ in range(times)]

    def _run(self, verb: str) -> int:
        shutil.rmtree(self._exported, ignore_errors=True)
        command = [str(Path(sys.executable).with_name("darkroom")), *self._words(verb)]
        done = subprocess.run(command, cwd=self._folder, capture_output=True, text=True, timeout=120, check=False)
        if done.returncode:
            sys.stderr.write(f"{verb}: exit code {done.returncode}\n{done.stderr}\n")
        return done.returncode

    def _words(self, verb: str) -> tuple[str, ...]:
        job = ("--manifest", "m.parquet", "--output", "files", *_SWEEP)
        return {
            "check": ("manifest", "check", "m.parquet"),
            "plan": ("plan", *job),
            "render": ("render", *job),
            "status": ("status", "parquet"),
            "verify": ("verify", "parquet"),
            "explain": ("explain", str(self._image)),
            "explain id": ("explain", self._image.stem.partition("-")[0], "--output", "files"),
            "export": ("export", "parquet", str(self._exported), "--to", "imagefolder"),
            "finalize": ("finalize", "parquet"),
            "contact-sheet": ("contact-sheet", "parquet"),
        }[verb]


def main() -> None:
    times = int(sys.argv[1]) if len(sys.argv) > 1 else 100
    with tempfile.TemporaryDirectory(prefix="darkroom-exits-") as folder:
        exits = Exits(Path(folder))
        counts = {verb: Counter(exits.codes(verb, times)) for verb in VERBS}
    for verb, codes in counts.items():
        print(f"{verb:<14} {', '.join(f'{number} × exit code {code}' for code, number in sorted(codes.items()))}")
    sys.exit(any(set(codes) != {0} for codes in counts.values()))


if __name__ == "__main__":
    main()
