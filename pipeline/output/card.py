"""The dataset card: ``README.md`` at the root of an output, so that ``load_dataset(OUTPUT)`` finds its images.

Without it ``datasets`` takes all Parquet files of an output for one table. It follows from ``run.json`` and the final
table alone: the same content is the same bytes.
"""

import re
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc
import yaml

from pipeline.output.features import json_features, table_features
from pipeline.output.layout import (
    CARD_KEY,
    DATA_PREFIX,
    EXTENSIONS,
    FAILURES_KEY,
    IMAGES_PREFIX,
    METADATA_KEY,
    SHARDS_PREFIX,
    Packing,
)
from pipeline.output.run import Run, read_run
from pipeline.output.schema import IMAGE, payload_columns
from pipeline.storage.base import ObjectStore

_MARK = "# Written by Darkroom, and again by every finalize until this line is taken out."
_LICENSE = "# license: yours to choose before you publish; it depends on the model's"
_SHOWN_VALUES = 12
_AXES = ("seed", "guidance_scale", "num_inference_steps", "scheduler", "width", "height")


def write_card(store: ObjectStore, images: pa.Table, failed: int) -> None:
    """Write the card of a run, unless somebody has put a README of their own there. ``images``: the final table."""
    run = read_run(store)
    if run is None or (store.head(CARD_KEY) and _MARK.encode() not in store.get(CARD_KEY)):
        return
    head = {"configs": [_config(store, run.packing, images)], **_dataset_info(run.packing, images)}
    store.put(CARD_KEY, _text(run, images, failed, head if images.num_rows else {}).encode())


def _config(store: ObjectStore, packing: Packing, images: pa.Table) -> dict[str, Any]:
    path: list[str] | str = [METADATA_KEY, f"{IMAGES_PREFIX}**"]
    if packing.layout == "webdataset":
        path = _objects(store, SHARDS_PREFIX, f"{SHARDS_PREFIX}*.tar", images)
    elif packing.layout == "parquet":
        path = _objects(store, DATA_PREFIX, f"{DATA_PREFIX}*.parquet", images)
    return {"config_name": "default", "data_files": [{"split": "train", "path": path}]}


def _objects(store: ObjectStore, prefix: str, pattern: str, images: pa.Table) -> list[str] | str:
    """The pattern, or a list where it would also take in what was never committed, or what better commits replaced."""
    named = pc.replace_substring_regex(images["file_name"], "/[^/]*$", "").unique().to_pylist()
    return pattern if {info.key for info in store.list(prefix)} <= set(named) else sorted(named)


def _dataset_info(packing: Packing, images: pa.Table) -> dict[str, Any]:
    """The types of all columns: ``datasets`` would take them from the first file, or even the first few images."""
    if packing.layout == "files":
        return {}  # one table, which says it
    described = payload_columns(images).schema
    if packing.layout == "parquet":
        features = [{"name": IMAGE.name, "dtype": "image"}, *table_features(described)]
    else:
        features = [
            {"name": "__key__", "dtype": "string"},
            {"name": "__url__", "dtype": "string"},
            {"name": EXTENSIONS[packing.format], "dtype": "image"},
            {"name": "json", "struct": json_features(described)},
            {"name": "txt", "dtype": "string"},
        ]
    return {"dataset_info": {"features": features}}


def _text(run: Run, images: pa.Table, failed: int, head: dict[str, Any]) -> str:
    column = EXTENSIONS[run.packing.format] if run.packing.layout == "webdataset" else IMAGE.name
    facts = {
        "images": images.num_rows,
        "failed": failed,
        "model": run.model_id,
        "revision": run.model_revision,
        "fingerprint": run.constants.model_fingerprint,
        "dtype": run.constants.dtype,
        "prompts": pc.count_distinct(images["prompt"]).as_py(),
        **{axis: _values(images[axis]) for axis in _AXES},
    }
    return f"""\
---
{_MARK}
{_LICENSE}
{_yaml({"task_categories": ["text-to-image"], "tags": ["synthetic"], **head}, flow=False)}\
---

# Rendered images

{_fenced("yaml", _yaml(facts))}

`{METADATA_KEY}` says what each image is: prompt, seed and all else that made it. `{FAILURES_KEY}`, where there is one,
lists what could not be rendered, and why.

## Load

```python
from datasets import load_dataset

images = load_dataset("path/to/this/folder", split="train")
images[0]["{column}"].show()
```

## Job

The job that began this run; later ones may have asked for more.

{_fenced("yaml", _yaml(run.job))}
"""


def _values(column: pa.ChunkedArray) -> Any:
    values = column.unique().sort().to_pylist()
    return values if len(values) <= _SHOWN_VALUES else f"{len(values)} values from {values[0]} to {values[-1]}"


def _yaml(tree: Any, *, flow: bool | None = None) -> str:
    """Text of users can stand in it: whatever it holds, it is a value. ``flow`` None: lists of values on a line."""
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=120, default_flow_style=flow)


def _fenced(kind: str, text: str) -> str:
    """Markdown that shows the text as it is, whatever it holds."""
    fence = "`" * (1 + max([2, *map(len, re.findall("`+", text))]))
    return f"{fence}{kind}\n{text}{fence}"
