"""GenEval's form: a folder per prompt with its line of the benchmark and its samples as PNG.

Ghosh et al., arXiv:2310.11513; https://github.com/djghosh13/geneval, "Image generation".
"""

import io
import json
from collections.abc import Iterator
from contextlib import suppress
from typing import Any

import numpy as np
from PIL import Image

from pipeline.export.committed import Committed, Row
from pipeline.export.writing import Progress, put_images
from pipeline.output.archives import plain_json
from pipeline.output.encode import encode
from pipeline.output.layout import PNG_FILES
from pipeline.output.provenance import provenance_of
from pipeline.output.schema import METADATA_SCHEMA
from pipeline.recipe import Recipe, RenderTask
from pipeline.storage.base import ObjectStore

_NESTED = ("include", "exclude")
"""Their columns of objects: a table cannot have lists of mixed types, so these may be JSON texts."""


def export_geneval(committed: Committed, destination: ObjectStore, on_progress: Progress) -> None:
    """``00000/metadata.jsonl`` and ``00000/samples/0000.png``: a folder for each manifest row, in order."""

    def png(row: Row, body: bytes) -> bytes:
        return body if row["format"] == "png" else _as_png(committed, row, body)

    folders = _Folders(destination)
    for _ in put_images(committed, destination, folders.placed(committed.rows()), on_progress, png):
        pass


class _Folders:
    """Which folder a manifest row has, and how many samples are in it."""

    def __init__(self, destination: ObjectStore) -> None:
        self._destination = destination
        self._known: dict[tuple[str, int], tuple[int, int]] = {}

    def placed(self, rows: Iterator[Row]) -> Iterator[tuple[Row, str]]:
        for row in rows:
            asked_by = row["manifest_file"], row["manifest_row"]
            folder, samples = self._known.get(asked_by, (len(self._known), 0))
            if not samples:
                line = json.dumps(_benchmark_line(row), ensure_ascii=False)
                self._destination.put(f"{folder:05}/metadata.jsonl", line.encode())
            self._known[asked_by] = folder, samples + 1
            yield row, f"{folder:05}/samples/{samples:04}.png"


def _benchmark_line(row: Row) -> dict[str, Any]:
    """The prompt and the manifest's own columns: ``tag``, ``include``, ``exclude`` where it is GenEval's."""
    own = {name: value for name, value in row.items() if name not in METADATA_SCHEMA.names}
    for name in _NESTED:
        if isinstance(own.get(name), str):
            with suppress(ValueError):
                own[name] = json.loads(own[name])
    line: dict[str, Any] = _without_nulls(plain_json({**own, "prompt": row["prompt"]}))
    return line


def _without_nulls(value: Any) -> Any:
    """Objects of a table have all keys of their column; the benchmark asks which keys there are."""
    if isinstance(value, dict):
        return {name: _without_nulls(inner) for name, inner in value.items() if inner is not None}
    return [_without_nulls(inner) for inner in value] if isinstance(value, list) else value


def _as_png(committed: Committed, row: Row, body: bytes) -> bytes:
    """The same pixels, and what the file said of its making."""
    pixels = np.asarray(Image.open(io.BytesIO(body)).convert("RGB"))
    recipe = Recipe(**{name: row[name] for name in Recipe.__dataclass_fields__})
    text = provenance_of(
        RenderTask(task_id=row["task_id"], recipe=recipe),
        committed.run.packing.provenance,
        model_id=row["model_id"],
        model_fingerprint=row["model_fingerprint"],
    )
    return encode(pixels, PNG_FILES, text).body
