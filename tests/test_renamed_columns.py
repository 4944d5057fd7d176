"""Extra columns renamed and left out between launches: the run continues, and every form of it has their values."""

import json
import tarfile
from datetime import date
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.config import load_job
from pipeline.distributed.binding import find_model
from pipeline.export.formats import export
from pipeline.prepare import prepare
from pipeline.report.contact_sheet import build
from pipeline.storage.local import LocalStore
from tests.faults.without_ray import Painter, Plan, launch_here

TABLE = {
    "Caption": ["a star", "a ring", "a star"],
    "status": ["success", "failed", "success"],
    "width": [1000, 2000, 3000],
    "height": [7, 8, 9],
    "key": ["000", "001", "002"],
}
CAPTION = {"Caption": "prompt", "height": None}
FIRST = {**CAPTION, "status": "source_status", "width": "source_width", "key": "key"}
SECOND = {**CAPTION, "status": None, "width": "original_width"}


def launched(folder: Path, columns: dict[str, str | None], seeds: str) -> int:
    keys: dict[str, Any] = {
        "manifest": str(folder / "m.parquet"), "manifest_columns": columns, "model.id": "shapes", "sweep.seeds": seeds,
        "sweep.num_inference_steps": 2, "sweep.sizes": [[64, 64]], "render.shard_images": 2, "render.rows": 4,
        "render.compile": False,
    }  # fmt: skip
    prepared = prepare(load_job(None, list(keys.items()), date(2026, 1, 1)))
    plan = Plan(prepared=prepared, model=find_model(prepared, None, folder, lambda _: None))
    return launch_here(LocalStore(folder / "out"), plan, Painter())


def test_a_run_continues_under_other_names(tmp_path: Path) -> None:
    pq.write_table(pa.table(TABLE), tmp_path / "m.parquet")
    assert [launched(tmp_path, FIRST, "0"), launched(tmp_path, SECOND, "0-1"), launched(tmp_path, FIRST, "0-1")] == [
        2,
        2,
        0,
    ]
    rows = pq.read_table(tmp_path / "out" / "metadata.parquet").to_pylist()
    extras = ("prompt", "seed", "status", "width", "source_status", "source_width", "original_width", "key")
    assert {tuple(row[name] for name in extras) for row in rows} == {
        ("a star", 0, "ok", 64, "success", 1000, None, "000"),
        ("a ring", 0, "ok", 64, "failed", 2000, None, "001"),
        ("a star", 1, "ok", 64, None, None, 1000, "000"),
        ("a ring", 1, "ok", 64, None, None, 2000, "001"),
    }
    assert pq.read_table(tmp_path / "out" / "requests.parquet").num_rows == 6

    store = LocalStore(tmp_path / "out")
    for form in ("imagefolder", "webdataset", "geneval"):
        assert export(store, LocalStore(tmp_path / form), form, lambda *_: None) == 4
    with tarfile.open(next((tmp_path / "webdataset").glob("*.tar"))) as tar:
        first = json.load(tar.extractfile("000000000.json"))  # type: ignore[arg-type]  # a file, not a folder
    assert (first["key"], first["manifest_key"], first["original_width"]) == ("000000000", "000", 64)
    (table,) = (tmp_path / "webdataset").glob("*.parquet")
    assert {"manifest_key", "manifest_original_width", "key"} <= set(pq.read_schema(table).names)
    exported = pq.read_table(tmp_path / "imagefolder" / "metadata.parquet")
    assert exported["original_width"].null_count == 2
    lines = [json.loads(path.read_text()) for path in sorted((tmp_path / "geneval").glob("*/metadata.jsonl"))]
    assert {"prompt": "a star", "source_status": "success", "source_width": 1000, "key": "000"} in lines
    build(store, LocalStore(tmp_path / "sheet"), pictures=None, previews=False)
    assert (tmp_path / "sheet" / "index.html").exists()
