"""Death at every operation of a launch on its store, one by one: what is lost, duplicated or corrupt afterwards."""

import io
import shutil
import tempfile
import time
from collections import Counter
from collections.abc import Callable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from hashlib import sha256
from itertools import count
from pathlib import Path
from typing import Any, get_args
from unittest.mock import patch

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

import pipeline.output.index
from pipeline.errors import JobBrokenError, ObjectMissingError, StoreUnavailableError
from pipeline.output.checks import Fault
from pipeline.output.encode import pixel_sha256
from pipeline.output.index import part_keys
from pipeline.output.layout import CARD_KEY, FAILURES_KEY, METADATA_KEY, REQUESTS_KEY, Layout
from pipeline.output.part import read_part
from pipeline.output.pictures import read_image
from pipeline.output.verify import verify
from pipeline.planning.requests import REQUEST_COLUMNS
from pipeline.rendering.renderer import Renderer, load_renderer
from pipeline.storage.base import ObjectStore
from pipeline.storage.local import LocalStore
from tests import tiny_models
from tests.faults.board import Line
from tests.faults.mortal import HOWS, WRITES, GoneError, How, MortalStore
from tests.faults.without_ray import Painter, Plan, launch_here, plan_of

FAILS = "what fails"
PROMPTS = ["a red ring", "a blue star", "a red ring", FAILS, "a green disc"]
BAD = ("lost", "duplicated", "corrupt", "rendered again", "requests wrong", "false alarms")
SHORT_STRIDE = 9
"""In short, so many operations from one death to the next."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Act:
    """One launch of an output's life."""

    seeds: str
    retry_failed: bool = False
    """And then nothing fails any more."""


LIFE = (Act(seeds="0-0"), Act(seeds="0-1"), Act(seeds="0-1", retry_failed=True))
"""Begun, widened, its failures tried again; the index segment of the third launch takes in the others."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Said:
    """What the tables of an output say."""

    images: tuple[Mapping[str, Any], ...]
    failures: tuple[Mapping[str, Any], ...]
    requests: tuple[tuple[Any, ...], ...]

    @property
    def outcomes(self) -> dict[str, str | None]:
        """Of each task the digest of its pixels, None where it failed."""
        return {row["task_id"]: row["pixel_sha256"] for row in (*self.failures, *self.images)}


@dataclass(frozen=True, slots=True, kw_only=True)
class Stage:
    """One launch of a life, which can be tried again on copies of the output as it was before."""

    before: Path
    launch: Callable[[ObjectStore], int]
    retry_failed: bool
    undisturbed: Said


def measure(seed: int, short: bool) -> Line:
    """All operations of three launches in three layouts, then those of one with a real model; in short some of them."""
    began, figures, broken, struck = time.monotonic(), Counter[str](), list[str](), Counter[str]()
    with tempfile.TemporaryDirectory(prefix="darkroom-faults-") as folder, patch_segments():
        for stage, stride in _stages(Path(folder)):
            stride *= SHORT_STRIDE if short else 1
            for at in count(1 + seed % stride, stride):
                if not _struck_at(stage, at, figures, broken, struck):
                    break
    figures["kinds of operation"] = len(struck)
    seen = {name: figures[name] for name in ("operations", "deaths", "answers lost", "kinds of operation", *BAD)}
    name = "death at every operation of a launch"
    return Line(name=name, figures=seen, broken=tuple(broken), seconds=time.monotonic() - began)


def patch_segments() -> Any:
    """Two index segments are many, so that the third is written together with a merge."""
    return patch.object(pipeline.output.index, "MAX_SEGMENTS", 2)


def _stages(folder: Path) -> Iterator[tuple[Stage, int]]:
    """Each with the stride from one operation to the next."""
    for layout in get_args(Layout):
        for stage in _life(folder / layout, layout, "shapes", lambda act: Painter(() if act.retry_failed else {FAILS})):
            yield stage, 1
    model = tiny_models.save(tiny_models.stable_diffusion(), folder / "model")
    engine = load_renderer(model, dtype="float32", device="cpu", rows=4)
    yield next(_life(folder / "tiny", "files", str(model), lambda _: engine)), 3


def _life(folder: Path, layout: Layout, model: str, renderer_of: Callable[[Act], Renderer]) -> Iterator[Stage]:
    for number, act in enumerate(LIFE):
        before, after = (folder / str(number + later) for later in (0, 1))
        before.mkdir(parents=True, exist_ok=True)
        plan = plan_of(folder, PROMPTS, layout, act.seeds, model)

        def launch(store: ObjectStore, plan: Plan = plan, act: Act = act) -> int:
            return launch_here(store, plan, renderer_of(act), retry_failed=act.retry_failed)

        shutil.copytree(before, after)
        launch(LocalStore(after))
        yield Stage(before=before, launch=launch, retry_failed=act.retry_failed, undisturbed=said(LocalStore(after)))


def _struck_at(stage: Stage, at: int, figures: Counter[str], broken: list[str], struck: Counter[str]) -> bool:
    """Try an operation in every way that can differ; false when the launch has no such operation."""
    for how in HOWS:
        operation, bad = _trial(stage, at, how)
        if operation is None:
            return False
        struck[operation] += 1
        figures["operations"] += how == "before"
        figures["answers lost" if how == "unanswered" else "deaths"] += 1
        figures.update(bad)
        broken += [f"{operation} ({at}, {how}): {number} {name}" for name, number in bad.items() if number]
        if not operation.startswith(WRITES):
            break
    return True


def _trial(stage: Stage, at: int, how: How) -> tuple[str | None, Counter[str]]:
    """The operation that was struck, None if there was none, and what is bad after the next start."""
    with tempfile.TemporaryDirectory(dir=stage.before.parent) as folder:
        store = LocalStore(Path(shutil.copytree(stage.before, folder, dirs_exist_ok=True)))
        mortal = MortalStore(store, at, how)
        with suppress(GoneError, StoreUnavailableError):
            stage.launch(mortal)
        if mortal.struck is None:
            return None, Counter()
        done, alarms = committed(store, ok_only=stage.retry_failed), false_alarms(store)
        missing = stage.launch(store)
        bad = judged(store, stage.undisturbed)
        bad["rendered again"] = missing - (len(stage.undisturbed.outcomes) - len(done))
        bad["false alarms"] = len(alarms)
        return mortal.struck, bad


def false_alarms(store: ObjectStore) -> list[Fault]:
    """What ``verify`` says of an output that nobody damaged, but that tables are behind or not there yet."""
    faults = verify(store).faults
    return [one for one in faults if one.what != "outdated" and (one.key, one.what) != (METADATA_KEY, "missing")]


def committed(store: ObjectStore, *, ok_only: bool) -> set[str]:
    """Ids in the parts themselves, past the index."""
    rows = [row for key in part_keys(store) for row in read_part(store, key, ["task_id", "status"]).to_pylist()]
    return {row["task_id"] for row in rows if row["status"] == "ok" or not ok_only}


def said(store: ObjectStore) -> Said:
    requests = (tuple(row[name] for name in (*REQUEST_COLUMNS, "status")) for row in _rows(store, REQUESTS_KEY))
    return Said(
        images=tuple(_rows(store, METADATA_KEY)),
        failures=tuple(_rows(store, FAILURES_KEY)),
        requests=tuple(requests),
    )


def _rows(store: ObjectStore, key: str) -> list[dict[str, Any]]:
    try:
        rows: list[dict[str, Any]] = pq.read_table(io.BytesIO(store.get(key))).to_pylist()
    except ObjectMissingError:
        return []
    return rows


def judged(store: ObjectStore, wanted: Said) -> Counter[str]:
    """What is bad about a finalized output, against one that nothing happened to."""
    now = said(store)
    found, expected = now.outcomes, wanted.outcomes
    listed = len(now.images) + len(now.failures)
    sound = [image_is_sound(store, row) for row in now.images]
    different = sum(found[task] != expected.get(task) for task in found)
    return Counter(
        {
            "lost": len(expected.keys() - found.keys()),
            "duplicated": listed - len(found),
            "corrupt": different + sound.count(False) + len(verify(store).faults) + (store.head(CARD_KEY) is None),
            "requests wrong": int(now.requests != wanted.requests),
        }
    )


def image_is_sound(store: ObjectStore, row: Mapping[str, Any]) -> bool:
    """Whether a row of metadata has its image, with the bytes and pixels it says."""
    try:
        body = read_image(store, row["file_name"])
    except (ObjectMissingError, JobBrokenError):
        return False
    with Image.open(io.BytesIO(body)) as picture:
        pixels = pixel_sha256(np.asarray(picture))
    return (sha256(body).hexdigest(), len(body), pixels) == (row["file_sha256"], row["file_bytes"], row["pixel_sha256"])
