"""An output that lies in the folder of prompts: the same command continues, whatever is written there."""

import io
from datetime import date
from pathlib import Path
from typing import get_args

import pyarrow as pa
import pyarrow.parquet as pq
import pytest

from pipeline.config import load_job
from pipeline.distributed.binding import find_model
from pipeline.errors import JobFileError
from pipeline.export.formats import export
from pipeline.output.index import load_index
from pipeline.output.layout import Layout
from pipeline.prepare import prepare
from pipeline.storage.base import ObjectStore
from pipeline.storage.location import open_store
from tests.faults.without_ray import Painter, Plan, launch_here


def plan_of(manifest: str, output: str, layout: Layout, folder: Path) -> Plan:
    keys = {
        "manifest": manifest, "output.uri": output, "output.layout": layout, "sweep.seeds": [0, 2**32 - 1],
        "sweep.num_inference_steps": 2, "sweep.sizes": [[32, 32]], "render.shard_images": 2,
    }  # fmt: skip
    prepared = prepare(load_job(None, list(keys.items()), date(2026, 1, 1)))
    return Plan(prepared=prepared, model=find_model(prepared, None, folder, lambda _: None))


def put_prompts(store: ObjectStore, key: str, prompts: list[str]) -> None:
    buffer = io.BytesIO()
    pq.write_table(pa.table({"prompt": prompts}), buffer)
    store.put(key, buffer.getvalue())


def continues(uri: str, place: str, layout: Layout, folder: Path, exports: tuple[str, ...] = ()) -> None:
    output = f"{uri}/{place}".removesuffix("/")
    store = open_store(output)
    put_prompts(open_store(uri), "style=ink/a.parquet", ["a red star", "a blue ring"])
    assert launch_here(store, plan_of(uri, output, layout, folder), Painter()) == 4
    assert launch_here(store, plan_of(uri, output, layout, folder), Painter()) == 0
    for form in exports:
        export(store, open_store(f"{uri}/exports/{form}"), form, lambda done, of: None)
    put_prompts(open_store(uri), "b.parquet", ["a green cross"])
    for glob in ("", "/**/*.parquet"):
        plan = plan_of(uri + glob, output, layout, folder)
        assert plan.prepared.manifest.rows == 3
    assert launch_here(store, plan, Painter()) == 2
    assert launch_here(store, plan, Painter()) == 0
    assert len(load_index(store).ok) == 6


@pytest.mark.parametrize("layout", get_args(Layout))
@pytest.mark.parametrize("place", ["", "deep/renders"])
def test_the_same_command_continues(tmp_path: Path, layout: Layout, place: str) -> None:
    continues(str(tmp_path / "in"), place, layout, tmp_path, ("imagefolder", "webdataset", "diffusiondb"))


def test_the_same_command_continues_in_a_bucket(tmp_path: Path, s3_bucket: str) -> None:
    continues(f"s3://{s3_bucket}/in", "renders", "parquet", tmp_path)


@pytest.mark.parametrize("name", ["metadata.parquet", "requests.parquet", "metadata-00001.parquet"])
def test_an_output_never_replaces_a_file_of_prompts(tmp_path: Path, name: str) -> None:
    root = tmp_path / "in"
    put_prompts(open_store(str(root)), name, ["a red star"])
    (tmp_path / "link").symlink_to(root)
    for manifest in (root, root / name, tmp_path / "link"):
        with pytest.raises(JobFileError, match=f"would write its own {name} in place of the manifest's") as caught:
            plan_of(str(manifest), str(root), "files", tmp_path)
        assert caught.value.where == "output.uri"
    plan_of(str(root), str(root / "out"), "files", tmp_path)
