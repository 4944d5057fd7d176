"""Refusals, k of k: pickles, code, weights, paths, tags, credentials, strangers."""

import tempfile
import time
from collections.abc import Mapping
from contextlib import chdir
from functools import partial
from pathlib import Path

from tests.faults import nasty_models as models
from tests.faults import refusals
from tests.faults.board import Line
from tests.faults.leaks import watched_job
from tests.faults.refusals import Check

AREAS: Mapping[str, Mapping[str, Check]] = {
    "pickles": {
        **{name: partial(models.refuses, harm) for name, harm in models.PICKLES.items()},
        **{f"LoRA as {suffix}": partial(models.refuses_lora, suffix) for suffix in (".bin", ".pt", ".safetensors")},
    },
    "code": {name: partial(models.refuses, harm) for name, harm in models.CODE.items()},
    "left alone": {name: partial(models.ignores, harm) for name, harm in models.IGNORED.items()},
    "weights": {name: partial(models.refuses, harm) for name, harm in models.WEIGHTS.items()},
    "binding": refusals.BINDING,
    "paths": refusals.PATHS,
    "tags": refusals.TAGS,
    "credentials": refusals.CREDENTIALS,
    "sizes": refusals.SIZES,
}


def measure(seed: int, short: bool) -> Line:
    """Everything in this process; in full also a job that is watched while it runs."""
    began = time.monotonic()
    figures, broken = {}, []
    for area, checks in AREAS.items():
        found = {name: _held(check) for name, check in checks.items()}
        broken += [f"{area}: {name}: {said}" for name, said in found.items() if said]
        figures[area] = f"{sum(said is None for said in found.values())} of {len(found)}"
    if not short:
        found = watched_job()
        broken += [f"a running job: {name}: {said}" for name, said in found.items() if said]
        figures["a running job"] = f"{sum(said is None for said in found.values())} of {len(found)}"
    return Line(name="security", figures=figures, broken=tuple(broken), seconds=time.monotonic() - began)


def _held(check: Check) -> str | None:
    with tempfile.TemporaryDirectory(prefix="darkroom-faults-") as folder, chdir(folder):
        try:
            return check(Path(folder))
        except Exception as error:  # noqa: BLE001  # whatever else it is, it is no refusal
            return f"{type(error).__name__}: {error}"[:300]
