"""Planning in the plainest way to say it, loops over rows and points, one id at a time: what tests hold it against."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from itertools import product
from typing import Any

import numpy as np
import pyarrow as pa
from hypothesis import strategies as st

from pipeline.identity import IdSet, RunConstants, ids_from_bytes, pack_point, task_id
from pipeline.manifest.columns import BATCH_SCHEMA
from pipeline.model.family import FAMILIES, Family, Guidance
from pipeline.planning.count import Count, count
from pipeline.planning.grids import Axes
from pipeline.planning.rows import Numbered
from pipeline.planning.selection import Selection
from pipeline.planning.tasks import Space, plan_batch
from pipeline.schedulers import evaluations

Cells = list[dict[str, Any]]

FAMILY = FAMILIES["StableDiffusionPipeline"]
FAMILIES_DRAWN = [
    FAMILY,
    FAMILIES["FluxPipeline"],
    replace(FAMILIES["FluxPipeline"], guidance=Guidance.NONE),
    FAMILIES["SanaPipeline"],
]
DIGEST = RunConstants(model_fingerprint="0" * 32, dtype="float32", scheduler_config={}).digest()
NOTHING = IdSet()

axes_strategy = st.builds(
    Axes,
    seeds=st.lists(st.integers(0, 3) | st.integers(0, 2**64 - 1), min_size=1, max_size=3).map(tuple),
    guidance_scales=st.lists(st.sampled_from([0.0, 0.5, 1.0, 2.0, 7.5]), min_size=1, max_size=4).map(tuple),
    num_inference_steps=st.lists(st.integers(1, 4) | st.integers(1, 60), min_size=1, max_size=2).map(tuple),
    schedulers=st.lists(st.sampled_from(["ddim", "heun", "euler:karras"]), min_size=1, max_size=2).map(tuple),
    sizes=st.lists(st.sampled_from([(64, 64), (128, 64)]), min_size=1, max_size=2).map(tuple),
)
row_strategy = st.fixed_dictionaries(
    {
        "prompt": st.sampled_from(["a", "a", "b", "ü", "a red circle"]),
        "negative_prompt": st.sampled_from([None, "blurry", "ugly"]),
        "seeds": st.none() | st.lists(st.integers(0, 3), min_size=1, max_size=3, unique=True),
        "guidance_scale": st.none() | st.sampled_from([0.0, 1.0, 2.0, 3.0]),
        "num_inference_steps": st.none() | st.integers(1, 4),
        "scheduler": st.none() | st.sampled_from(["euler", "pndm"]),
        "width": st.none() | st.just(64),
    }
)
"""Few values of each, so that rows overlap in some points and not in others."""
rows_strategy = st.lists(row_strategy, min_size=1, max_size=8)
single_strategy = st.lists(
    st.fixed_dictionaries(
        {
            "prompt": st.sampled_from(["a", "b", "ü"]),
            "negative_prompt": st.sampled_from([None, "blurry"]),
            "seeds": st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=1),
            "guidance_scale": st.floats(0, 1000),
            "num_inference_steps": st.integers(1, 1000),
            "scheduler": st.sampled_from(["euler", "dpmsolver++:karras", "heun"]),
            "width": st.sampled_from([64, 8192]),
        }
    ),
    min_size=1,
    max_size=8,
)
"""The shape of a log of pictures: every row is one."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Plain:
    """One task as the loops find it."""

    row: int
    task_id: str
    work: tuple[int, int, int]
    """Pixels, steps, evaluations."""


def numbered(rows: Cells) -> Numbered:
    cells = [{**row, "height": row.get("width"), "manifest_file": "m", "manifest_row": n} for n, row in enumerate(rows)]
    return pa.Table.from_pylist(cells, schema=BATCH_SCHEMA), np.arange(len(rows))


def plain_tasks(rows: Cells, axes: Axes, family: Family = FAMILY) -> Iterator[Plain]:
    """Every distinct picture of each row, as anyone would write it; pictures of several rows come again."""
    for number, row in enumerate(rows):
        sizes = [(row["width"], row["width"])] if row.get("width") else axes.sizes
        schedulers = [row["scheduler"]] if row.get("scheduler") else axes.schedulers
        seeds = row.get("seeds") or axes.seeds
        scales = axes.guidance_scales if row.get("guidance_scale") is None else [row["guidance_scale"]]
        counts = [row["num_inference_steps"]] if row.get("num_inference_steps") else axes.num_inference_steps
        seen = set()
        for (width, height), scheduler, seed, scale, steps in product(sizes, schedulers, seeds, scales, counts):
            effective = family.effective_guidance(scale)
            negative = row.get("negative_prompt") if family.uses_negative_prompt(effective) else None
            point = pack_point(
                seed=seed,
                guidance_scale=effective,
                num_inference_steps=steps,
                scheduler=scheduler,
                width=width,
                height=height,
            )
            calls = evaluations(scheduler, steps) * family.rows(effective)
            found = task_id(DIGEST, row["prompt"], negative, point)
            if found not in seen:
                yield Plain(row=number, task_id=found, work=(width * height, steps, calls))
            seen.add(found)


def plain_ids(rows: Cells, axes: Axes, family: Family = FAMILY) -> list[str]:
    """With those of several rows as often."""
    return [task.task_id for task in plain_tasks(rows, axes, family)]


def distinct(rows: Cells, axes: Axes, family: Family = FAMILY) -> list[Plain]:
    """Each picture once, in the first row that asks for it."""
    first: dict[str, Plain] = {}
    for task in plain_tasks(rows, axes, family):
        first.setdefault(task.task_id, task)
    return list(first.values())


def space(axes: Axes, family: Family = FAMILY) -> Space:
    return Space(axes=axes, family=family, run_digest=DIGEST)


def counted(rows: Cells, axes: Axes, family: Family = FAMILY) -> Count:
    """In batches of three rows."""
    return count(lambda: batches(rows), axes, family)


def batches(rows: Cells) -> Iterator[Numbered]:
    table, numbers = numbered(rows)
    for start in range(0, len(rows), 3):
        yield table.slice(start, 3), numbers[start : start + 3]


def once(rows: Cells, axes: Axes, family: Family = FAMILY) -> Selection:
    """Everything, without repeats."""
    found = counted(rows, axes, family)
    return Selection(skipped=found.repeated, repeats=found.repeats)


def planned(
    rows: Cells,
    axes: Axes,
    selection: Selection | None = None,
    committed: IdSet = NOTHING,
    family: Family = FAMILY,
) -> list[tuple[int, str]]:
    """(row, id) of what is planned, in order."""
    selection = selection or Selection()
    tables = [t for batch in batches(rows) for t in plan_batch(batch, space(axes, family), selection, committed)]
    numbers = [row for table in tables for row in table["manifest_row"].to_pylist()]
    ids = [item.hex() for table in tables for item in table["task_id"].to_pylist()]
    return list(zip(numbers, ids, strict=True))


def planned_ids(
    rows: Cells, axes: Axes, selection: Selection | None = None, committed: IdSet = NOTHING, family: Family = FAMILY
) -> list[str]:
    return [item for _, item in planned(rows, axes, selection, committed, family)]


def id_set(ids: set[str]) -> IdSet:
    return IdSet(ids_from_bytes(bytes.fromhex("".join(ids))))


def axes_of(seeds: int) -> Axes:
    return Axes(
        seeds=tuple(range(seeds)),
        guidance_scales=(4.0,),
        num_inference_steps=(10,),
        schedulers=("ddim",),
        sizes=((64, 64),),
    )
