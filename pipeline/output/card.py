"""The dataset card: ``README.md`` at the root of an output, so that ``load_dataset(OUTPUT)`` finds its images.

Without it ``datasets`` takes all Parquet files of an output for one table. It follows from ``run.json`` and the final
tables alone: the same content is the same bytes.
"""

import re
from collections.abc import Mapping
from itertools import chain
from typing import Any

import yaml

from pipeline.output.features import json_features, large_columns, names_paths, table_features
from pipeline.output.finalized import Table
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
from pipeline.output.tables import AXES, FEW, few, schema_of
from pipeline.parquet import ParquetReader
from pipeline.storage.base import ObjectStore
from pipeline.storage.location import without_folders

_MARK = "# Written by Darkroom, and again by every finalize until this line is taken out."
SHOWN_IMAGES = 4
_NO_LICENSE = "# license: yours to choose before you publish; it depends on the model's"


def write_card(store: ObjectStore, images: Mapping[str, Table], failures: Table | None) -> None:
    """Write the card of a run, unless it is there or somebody has put a README of their own there.

    ``images``: the files that hold the metadata of images, by key.
    """
    run = read_run(store)
    there = store.get(CARD_KEY) if store.head(CARD_KEY) else None
    if run is None or (there is not None and _MARK.encode() not in there):
        return
    head: dict[str, Any] = {}
    if any(table.rows for table in images.values()):
        head = {"configs": [_config(store, run.packing, images)], **_dataset_info(store, run.packing, images)}
    look = _look(store, run.packing, images)
    card = _text(run, images, failures.rows if failures else 0, head, look).encode()
    if card != there:
        store.put(CARD_KEY, card)


def _config(store: ObjectStore, packing: Packing, images: Mapping[str, Table]) -> dict[str, Any]:
    path: list[str] | str = [*images, f"{IMAGES_PREFIX}**"]
    if packing.layout == "webdataset":
        path = _objects(store, SHARDS_PREFIX, f"{SHARDS_PREFIX}*.tar", images)
    elif packing.layout == "parquet":
        path = _objects(store, DATA_PREFIX, f"{DATA_PREFIX}*.parquet", images)
    config = {"config_name": "default", "data_files": [{"split": "train", "path": path}]}
    if packing.layout != "files":
        return config
    named_otherwise = {} if METADATA_KEY in images else {"metadata_filenames": list(images)}
    return config | named_otherwise | _folder_features(store, images)


def _folder_features(store: ObjectStore, images: Mapping[str, Table]) -> dict[str, Any]:
    """Return the types of all columns where ``imagefolder`` would otherwise take texts for images, or fail."""
    schema, large = schema_of(store, next(iter(images))), _large_columns(store, images)
    others = schema.remove(schema.get_field_index("file_name"))
    if not large and not names_paths(others):
        return {}  # the tables say it, which are all alike
    return {"features": [{"name": IMAGE.name, "dtype": "image"}, *table_features(others, large)]}


def _objects(store: ObjectStore, prefix: str, pattern: str, images: Mapping[str, Table]) -> list[str] | str:
    """The pattern, or a list where it would also take in what was never committed, or what better commits replaced."""
    named = {key for table in images.values() for key in table.objects}
    return pattern if {info.key for info in store.list(prefix)} <= named else sorted(named)


def _dataset_info(store: ObjectStore, packing: Packing, images: Mapping[str, Table]) -> dict[str, Any]:
    """The types of all columns: ``datasets`` would take them from the first file, or even the first few images."""
    if packing.layout == "files":
        return {}
    described = payload_columns(schema_of(store, next(iter(images))).empty_table()).schema
    if packing.layout == "parquet":
        features = [{"name": IMAGE.name, "dtype": "image"}, *table_features(described)]
    else:
        features = [
            {"name": "__key__", "dtype": "string"},
            {"name": "__url__", "dtype": "string"},
            {"name": EXTENSIONS[packing.format], "dtype": "image"},
            {"name": "json", "struct": json_features(described, _large_columns(store, images))},
            {"name": "txt", "dtype": "string"},
        ]
    return {"dataset_info": {"features": features}}


def _large_columns(store: ObjectStore, images: Mapping[str, Table]) -> set[str]:
    return set().union(*(large_columns(store, key) for key, table in images.items() if table.rows))


def _look(store: ObjectStore, packing: Packing, images: Mapping[str, Table]) -> str:
    """A few pictures side by side, from the first table; nothing where they lie inside of other objects."""
    first = next((key for key, table in images.items() if table.rows), None)
    if first is None or packing.layout != "files":
        return ""
    with store.open(first) as file:
        rows = ParquetReader(file).read_row_group(0, ["file_name", "prompt"])
    number = min(SHOWN_IMAGES, rows.num_rows)
    shown = rows.take([index * rows.num_rows // number for index in range(number)]).to_pylist()
    cells = "".join(f"| ![{_plain(row['prompt'])}]({row['file_name']}) " for row in shown)
    return f"\n{'| ' * number}|\n{'|---' * number}|\n{cells}|\n"


def _plain(prompt: str) -> str:
    """Text that Markdown takes for nothing else."""
    return re.sub(r"[^\w ,.'-]", " ", prompt)[:100].strip()


def _text(run: Run, images: Mapping[str, Table], failed: int, head: dict[str, Any], look: str) -> str:
    column = EXTENSIONS[run.packing.format] if run.packing.layout == "webdataset" else IMAGE.name
    facts = {
        "images": sum(table.rows for table in images.values()),
        "failed": failed,
        "model": without_folders(run.model_id),
        "revision": run.model_revision,
        "fingerprint": run.constants.model_fingerprint,
        "dtype": run.constants.dtype,
        **({"precision": run.constants.precision} if run.constants.precision else {}),
        **_prompts(images),
        **{axis: _values(few(chain(*(table.values[axis] for table in images.values())))) for axis in AXES},
    }
    named = METADATA_KEY if METADATA_KEY in images else "metadata-*.parquet"
    return f"""\
---
{_MARK}
{_license(run)}
{_yaml({"task_categories": ["text-to-image"], "tags": ["synthetic"], **head}, flow=False)}\
---

# Rendered images
{look}
{_fenced("yaml", _yaml(facts))}

`{named}` says what each image is: prompt, seed and all else that made it. `{FAILURES_KEY}`, where there is one,
lists what could not be rendered, and why.

## Load

```python
from datasets import load_dataset

images = load_dataset("path/to/this/folder", split="train")
images[0]["{column}"].show()
```

## Job

The job that began this run; later ones may have asked for more.

{_fenced("yaml", _yaml(_for_others(run.job)))}
"""


def _license(run: Run) -> str:
    return _yaml({"license": run.license}, flow=False).rstrip() if run.license else _NO_LICENSE


def _for_others(value: Any) -> Any:
    """The job without the folders of whoever ran it: a card goes to the Hub with its images."""
    if isinstance(value, Mapping):
        return {key: _for_others(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_for_others(inner) for inner in value]
    return without_folders(value) if isinstance(value, str) else value


def _prompts(images: Mapping[str, Table]) -> dict[str, int]:
    """How many different ones; left out where several tables would have to be compared."""
    return {"prompts": next(iter(images.values())).prompts} if len(images) == 1 else {}


def _values(values: list[Any]) -> Any:
    return values if len(values) <= FEW else f"more than {FEW} values from {values[0]} to {values[-1]}"


def _yaml(tree: Any, *, flow: bool | None = None) -> str:
    """Text of users can stand in it: whatever it holds, it is a value. ``flow`` None: lists of values on a line."""
    return yaml.safe_dump(tree, sort_keys=False, allow_unicode=True, width=120, default_flow_style=flow)


def _fenced(kind: str, text: str) -> str:
    """Markdown that shows the text as it is, whatever it holds."""
    fence = "`" * (1 + max([2, *map(len, re.findall("`+", text))]))
    return f"{fence}{kind}\n{text}{fence}"
