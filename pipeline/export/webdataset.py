"""WebDataset shards with the side files that img2dataset writes.

``00000.tar``, ``00000.parquet`` and ``00000_stats.json``, and so on.

Format: https://github.com/rom1504/img2dataset, its README's "Output format" and "Stats".
"""

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from collections.abc import Set as AbstractSet
from itertools import islice
from typing import Any

import pyarrow as pa

from pipeline.export.committed import Committed, Row
from pipeline.export.writing import Progress, TableFile, TarFile, put_json
from pipeline.output.archives import plain_json
from pipeline.output.schema import METADATA_SCHEMA, payload_columns
from pipeline.storage.base import ObjectStore

SHARD_IMAGES = 10_000
SHARD_DIGITS, KEY_DIGITS = 5, 9
THEIR_FIELDS = [
    ("caption", pa.string()),
    ("url", pa.string()),
    ("key", pa.string()),
    ("status", pa.string()),
    ("error_message", pa.string()),
    ("width", pa.int32()),
    ("height", pa.int32()),
    ("original_width", pa.int32()),
    ("original_height", pa.int32()),
    ("sha256", pa.string()),
]
"""Columns of img2dataset. Nothing was resized; there is a url where the manifest has one."""
_THEIRS = {name for name, _ in THEIR_FIELDS}
_TAKEN = _THEIRS - {*METADATA_SCHEMA.names, "url"}
"""Names among these that a column of the manifest may have too, with another meaning."""


def export_webdataset(
    committed: Committed,
    destination: ObjectStore,
    on_progress: Progress,
    shard_images: int = SHARD_IMAGES,
    clock: Callable[[], float] = time.time,
) -> None:
    """Keys are the shard's number and the image's in it, as img2dataset has them."""
    described = payload_columns(committed.schema.empty_table()).schema
    names = own_names(committed.schema.names)
    large = frozenset(names[name] for name in committed.large)
    ours = [field.with_name(names[field.name]) for field in described if field.name not in _THEIRS - _TAKEN]
    schema = pa.schema([*THEIR_FIELDS, *ours, METADATA_SCHEMA.field("verdict")])
    rows, done = committed.rows(), 0
    for number, shard in enumerate(_shards(rows, shard_images)):
        began, name = clock(), f"{number:0{SHARD_DIGITS}}"
        with TarFile() as tar, TableFile(schema) as table:
            for index, row in enumerate(shard):
                sample = _sample(row, f"{number * SHARD_IMAGES + index:0{KEY_DIGITS}}", names)
                _add(tar, _told(sample, large), committed.image(row), committed.extension)
                table.add(sample)
                done += 1
                on_progress(done)
            tar.put(destination, f"{name}.tar")
            table.put(destination, f"{name}.parquet")
        put_json(destination, f"{name}_stats.json", _stats(index + 1, began, clock()), indent=4)


def _shards(rows: Iterator[Row], size: int) -> Iterator[Iterator[Row]]:
    """Each must be read to its end before the next."""
    for first in rows:
        yield _with(first, islice(rows, size - 1))


def _with(first: Row, others: Iterator[Row]) -> Iterator[Row]:
    yield first
    yield from others


def own_names(columns: Sequence[str]) -> dict[str, str]:
    """Return a name for each column of the metadata that neither img2dataset's fields nor other columns have."""
    names: dict[str, str] = {}
    for column in columns:
        name = column
        while name in _TAKEN or (name != column and name in columns):
            name = f"manifest_{name}"
        names[column] = name
    return names


def _sample(row: Row, key: str, names: Mapping[str, str]) -> dict[str, object]:
    return {
        **{names[name]: value for name, value in row.items()},
        "caption": row["prompt"],
        "url": url if isinstance(url := row.get("url"), str) else None,
        "key": key,
        "status": "success",
        "original_width": row["width"],
        "original_height": row["height"],
        "sha256": row["file_sha256"],
    }


def _told(sample: Mapping[str, object], large: AbstractSet[str]) -> dict[str, object]:
    """Return what the JSON says. Nulls are left out: readers take types from the first samples.

    A column with a whole number above 2**63 - 1 has texts instead, since ``datasets`` fails over it.
    """
    left_out = {"file_name", "part_id", "error", "created_at", "device", "attempt", "darkroom_version", "render_s",
                "encode_s", "rows"}  # fmt: skip
    told = {name: plain_json(value) for name, value in sample.items() if value is not None and name not in left_out}
    return {name: _as_text(value) if name in large else value for name, value in told.items()}


def _as_text(value: Any) -> Any:
    if isinstance(value, dict):
        return {name: _as_text(inner) for name, inner in value.items()}
    if isinstance(value, list):
        return [_as_text(inner) for inner in value]
    return str(value) if isinstance(value, int) and not isinstance(value, bool) else value


def _add(tar: TarFile, told: Mapping[str, object], body: bytes, extension: str) -> None:
    tar.add(f"{told['key']}.{extension}", body)
    tar.add(f"{told['key']}.json", json.dumps(told, ensure_ascii=False).encode())
    tar.add(f"{told['key']}.txt", str(told["caption"]).encode())


def _stats(images: int, began: float, ended: float) -> dict[str, object]:
    """Nothing was downloaded, so nothing failed at it."""
    return {
        "count": images,
        "successes": images,
        "failed_to_download": 0,
        "failed_to_resize": 0,
        "duration": ended - began,
        "start_time": began,
        "end_time": ended,
        "status_dict": {"success": images},
    }
