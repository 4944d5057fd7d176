"""Bad input of every class: jobs killed by it, good rows lost."""

import json
import os
import random
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping
from contextlib import chdir
from dataclasses import replace
from pathlib import Path
from typing import get_args
from zlib import crc32

from jobs import options
from pipeline.distributed.binding import find_model
from pipeline.distributed.launch import LaunchOptions, launch
from pipeline.errors import InputError, JobBrokenError
from pipeline.identity import IdSet
from pipeline.output.index import load_index
from pipeline.output.layout import Layout
from pipeline.planning.tasks import Space, plan_batch
from pipeline.prepare import Prepared, numbered_batches, prepare, select
from pipeline.storage.local import LocalStore
from tests.faults.bad_files import FILES
from tests.faults.bad_jobs import JOBS
from tests.faults.bad_rows import ROWS
from tests.faults.bad_tables import TABLES
from tests.faults.board import Line
from tests.faults.launched import ROOT
from tests.faults.trials import Make, Trial, Verdict
from tests.faults.without_ray import Painter, Plan, launch_here

CLASSES: Mapping[str, Make] = {**ROWS, **TABLES, **FILES, **JOBS}
SEEDS, SHORT_SEEDS = 50, 2
SHORT_SAMPLE = 3
"""Classes that the short form also renders and gives to the real command."""
MOST_IMAGES = 500
"""Larger jobs are planned, not rendered."""
NOWHERE = "nowhere"
"""No address of a Ray: a bad job that gets as far as asking for one has been accepted."""


def measure(seed: int, short: bool) -> Line:
    """Every class with many seeds in this process, up to the plan; one of each rendered, and given to the command."""
    began = time.monotonic()
    seeds = range(seed, seed + (SHORT_SEEDS if short else SEEDS))
    sample = random.Random(seed).sample([*CLASSES], SHORT_SAMPLE if short else len(CLASSES))
    tried = _Tried()
    for name, make in CLASSES.items():
        for number in seeds:
            with tempfile.TemporaryDirectory(prefix="darkroom-faults-") as folder, chdir(folder):
                trial = make(random.Random(crc32(name.encode()) + number), Path(folder))
                sampled = number == seed and name in sample
                tried.here(f"{name}, seed {number}", trial, rendering=sampled)
                if sampled:
                    tried.command(f"{name}, seed {number}, as a command", trial)
    figures = {"classes": len(CLASSES), "seeds": len(seeds)} | tried.figures
    return Line(name="bad input", figures=figures, broken=tuple(tried.broken), seconds=time.monotonic() - began)


class _Tried:
    """Tries jobs and notes what came of them."""

    def __init__(self) -> None:
        names = ("inputs tried", "rendered", "as a command", "jobs killed", "good rows", "good rows lost")
        self.figures = dict.fromkeys((*names, "bad rows kept", "bad jobs accepted"), 0)
        self.broken: list[str] = []

    def here(self, what: str, trial: Trial, *, rendering: bool) -> None:
        """Load the job, validate it and plan it; what must be refused is also launched."""
        self.figures["inputs tried"] += 1
        try:
            prepared = prepare(options.load(trial.job, [*trial.settings]), skip_bad_rows=True)
            found = _planned_rows(prepared)
            if trial.usable is Verdict.REFUSED:
                launch(prepared, LaunchOptions(address=NOWHERE, cache_folder=Path("cache")), _say_nothing, _say_nothing)
            elif rendering and prepared.count.amount.images <= MOST_IMAGES:
                self._render(what, prepared)
        except InputError as error:
            self._refused(what, trial, str(error))
        except JobBrokenError as error:
            self._count(what, "bad jobs accepted", 1, str(error))
        except Exception as error:  # noqa: BLE001  # whatever else it is, is what is looked for
            self._count(what, "jobs killed", 1, f"{type(error).__name__}: {error}"[:300])
        else:
            self._kept(what, trial, found)

    def _render(self, what: str, prepared: Prepared) -> None:
        """Painted instead of drawn by a network, but committed and finalized as ever, in every layout."""
        self.figures["rendered"] += 1
        model = find_model(prepared, None, Path("cache"), _say_nothing)
        render = prepared.job.render.model_copy(update={"shard_images": 100})
        for layout in get_args(Layout):
            output = prepared.job.output.model_copy(update={"layout": layout})
            job = prepared.job.model_copy(update={"output": output, "render": render})
            store = LocalStore(Path(f"rendered-{layout}"))
            launch_here(store, Plan(prepared=replace(prepared, job=job), model=model), Painter())
            missing = prepared.count.amount.images - len(load_index(store).ok)
            self._count(what, "good rows lost", missing, f"images are missing in layout {layout}")

    def command(self, what: str, trial: Trial) -> None:
        """Give it to the real command: to ``render`` what must be refused, to ``plan`` the rest."""
        if any("\0" in word for word in trial.words):
            return  # no command line can hold it
        self.figures["as a command"] += 1
        verb = ["render", "--address", NOWHERE] if trial.usable is Verdict.REFUSED else ["plan", "--json"]
        command = [sys.executable, "-m", "jobs", *verb, *trial.words, "--skip-bad-rows"]
        environment = {**os.environ, "PYTHONPATH": str(ROOT)}
        done = subprocess.run(command, env=environment, capture_output=True, text=True, errors="replace")
        if done.returncode not in (0, 2) or "Traceback" in done.stderr:
            self._count(what, "jobs killed", 1, f"exit code {done.returncode}: {done.stderr[-300:]}")
        elif done.returncode == 2:
            self._refused(what, trial, done.stderr)
        elif not isinstance(trial.usable, Verdict):
            rows = json.loads(done.stdout)["prompt_rows"]
            self._count(what, "good rows lost", abs(len(trial.usable) - rows), f"{rows} rows")

    def _refused(self, what: str, trial: Trial, said: str) -> None:
        if not isinstance(trial.usable, Verdict):
            self._count(what, "good rows lost", len(trial.usable), f"refused: {said}")

    def _kept(self, what: str, trial: Trial, found: set[int]) -> None:
        if not isinstance(trial.usable, Verdict):
            self.figures["good rows"] += len(trial.usable)
            lost, kept = trial.usable - found, found - trial.usable
            self._count(what, "good rows lost", len(lost), f"rows {sorted(lost)}")
            self._count(what, "bad rows kept", len(kept), f"rows {sorted(kept)}")

    def _count(self, what: str, figure: str, number: int, said: str) -> None:
        self.figures[figure] += number
        if number:
            self.broken.append(f"{what}: {number} {figure}, {said}")


def _planned_rows(prepared: Prepared) -> set[int]:
    """The rows whose images are planned, by number over the manifest; repeated ones are answered by earlier ones."""
    space = Space(axes=prepared.axes, family=prepared.model.family, run_digest=b"\0" * 16)
    selection = select(prepared, limit=None, sample=None)
    first_rows = {file.name: file.first_row for file in prepared.manifest.files}
    found = set(prepared.count.repeated.tolist())
    for batch in numbered_batches(prepared.manifest):
        for tasks in plan_batch(batch, space, selection, IdSet()):
            places = zip(tasks["manifest_file"].to_pylist(), tasks["manifest_row"].to_pylist(), strict=True)
            found |= {first_rows[file] + row for file, row in set(places)}
    return found


def _say_nothing(_: object) -> None:
    """What a launch says is for people."""
