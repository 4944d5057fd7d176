"""What a run must hold whatever befell it: every planned image once, with the bytes that it should have."""

import io
from collections import Counter
from collections.abc import Mapping
from dataclasses import dataclass
from hashlib import sha256
from typing import Any

import numpy as np
import pyarrow.parquet as pq
from PIL import Image

from pipeline.errors import ObjectMissingError
from pipeline.output.layout import FAILURES_KEY, METADATA_KEY
from pipeline.storage.base import ObjectStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Held:
    """A finished run against what was planned. Tasks, but for ``corrupt``."""

    images: int
    """Planned ones that are there."""
    duplicated: tuple[str, ...]
    corrupt: tuple[str, ...]
    """Files with other bytes or pixels than the table says, or than a launch without faults made."""
    unplanned: tuple[str, ...]
    failed: tuple[str, ...]

    def broken(self) -> list[str]:
        """A sentence for each kind of fault."""
        named = {name: getattr(self, name) for name in ("duplicated", "corrupt", "unplanned", "failed")}
        return [f"{len(found)} {name}, {found[0]} the first" for name, found in named.items() if found]


def pixels_of(store: ObjectStore, seeds: int) -> dict[str, str]:
    """Pixel digest by task, from a run's table; of the tasks with the first so many seeds."""
    return {row["task_id"]: row["pixel_sha256"] for row in _rows(store, METADATA_KEY) if row["seed"] < seeds}


def examine(store: ObjectStore, planned: Mapping[str, str]) -> Held:
    """Read a run's table and every image in it; ``planned`` has the pixel digest of each task."""
    rows = _rows(store, METADATA_KEY)
    times = Counter(row["task_id"] for row in rows)
    bodies = {row["file_name"]: _get(store, row["file_name"]) for row in rows}
    there = {row["task_id"] for row in rows if bodies[row["file_name"]] is not None}
    return Held(
        images=len(there & planned.keys()),
        duplicated=tuple(task for task, number in times.items() if number > 1),
        corrupt=tuple(
            row["file_name"]
            for row in rows
            if (body := bodies[row["file_name"]]) is not None and not _is_sound(body, row, planned)
        ),
        unplanned=tuple(sorted(times.keys() - planned.keys())),
        failed=tuple(row["task_id"] for row in _rows(store, FAILURES_KEY)),
    )


def _is_sound(body: bytes, row: Mapping[str, Any], planned: Mapping[str, str]) -> bool:
    if (sha256(body).hexdigest(), len(body)) != (row["file_sha256"], row["file_bytes"]):
        return False
    pixels = sha256(np.asarray(Image.open(io.BytesIO(body))).tobytes()).hexdigest()
    return {row["pixel_sha256"], planned.get(row["task_id"], pixels)} == {pixels}


def _rows(store: ObjectStore, key: str) -> list[dict[str, Any]]:
    """Of a table, none where there is none."""
    body = _get(store, key)
    return [] if body is None else pq.read_table(io.BytesIO(body)).to_pylist()


def _get(store: ObjectStore, key: str) -> bytes | None:
    try:
        return store.get(key)
    except ObjectMissingError:
        return None
