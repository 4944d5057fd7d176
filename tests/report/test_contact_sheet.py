"""The files of a contact sheet: what is in them, in which layouts, and what a second build makes."""

from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any, get_args

import numpy as np
import pyarrow as pa
import pytest

from benchmarks.committed import draw, write_run_of
from pipeline.errors import JobBrokenError, OutputError
from pipeline.output.finalize import finalize
from pipeline.output.layout import Layout, Packing
from pipeline.output.part import PartWriter
from pipeline.output.pictures import read_image, read_images
from pipeline.output.run import write_run
from pipeline.output.verify import verify
from pipeline.report import contact_sheet, pages
from pipeline.report.contact_sheet import Made, build
from pipeline.report.first_view import first_view
from pipeline.report.rows import read_rows
from pipeline.storage.base import ObjectStore
from pipeline.storage.local import LocalStore
from pipeline.storage.location import open_store
from pipeline.storage.s3_settings import S3Settings
from tests.report.reading import catalogue_of, cells_of, prompts_of
from tests.test_output import FACTS, RUN, START, commit, failed, rendered, shard_of

EVIL = "</script><script>alert(1)</script> \"quoted\" 'too' & <b>bold</b> \\ שלום 🎈\u2028line\nnext"
ROWS: list[dict[str, Any]] = [
    {"prompt": "a red star", "theme": "night"},
    {"prompt": EVIL, "theme": EVIL, "negative_prompt": "<i>blurry</i>"},
    {"prompt": "a blue ring", "theme": None},
]
SWEEP: dict[str, Any] = {
    "sweep__seeds": "0-1", "sweep__guidance_scales": [1, 3], "sweep__steps": [2, 10], "sweep__sizes": [[64, 32]],
}  # fmt: skip


def fails(row: dict[str, Any]) -> bool:
    return (row["prompt"], row["seed"], row["num_inference_steps"]) == ("a blue ring", 1, 10)


def sheet(store: ObjectStore, folder: Path, *, previews: bool = False, pictures: str | None = None) -> Made:
    return build(store, LocalStore(folder), pictures=pictures, previews=previews)


def check_sheet(folder: Path, previews: bool) -> None:
    cells = cells_of(folder)
    assert len(cells) == 24
    assert [prompt["prompt"] for prompt in prompts_of(folder)] == [row["prompt"] for row in ROWS]
    assert [prompt["failed"] for prompt in prompts_of(folder)] == [0, 0, 2]
    points = [(cell["seed"], cell["guidance_scale"], cell["num_inference_steps"]) for cell in cells[:8]]
    assert points == sorted(points)
    for cell in cells:
        metadata = cell["metadata"]
        assert all(metadata[axis] == cell[axis] for axis in pages.AXES[:-1])
        assert cell["size"] == "64×32"
        if not cell["ok"]:
            assert (cell["verdict"], cell["thumbnail"], cell["preview"]) == ("nan_latents", None, None)
            assert metadata["error"] == "decode: FloatingPointError: NaN in the latents"
            continue
        for picture in filter(None, (cell["thumbnail"], cell["preview"])):
            assert picture.size == (64, 32)
            expected = draw(metadata | {"width": 64, "height": 32}).mean(axis=(0, 1))
            assert np.abs(np.asarray(picture).mean(axis=(0, 1)) - expected).max() < 4
        assert (cell["preview"] is not None) is previews


@pytest.mark.parametrize("layout", get_args(Layout))
def test_all_layouts(tmp_path: Path, layout: Layout) -> None:
    store, folder = LocalStore(tmp_path / "out"), tmp_path / "sheet"
    write_run_of(store, tmp_path, ROWS, fails, output__layout=layout, output__format="webp", **SWEEP)
    previews = layout != "files"
    made = sheet(store, folder, previews=previews)
    assert (made.images, made.failed, made.prompts, made.new, made.lost) == (22, 2, 3, 24, 0)
    assert made.size_bytes == sum(path.stat().st_size for path in folder.rglob("*") if path.is_file())
    check_sheet(folder, previews)


def test_a_run_in_s3(tmp_path: Path, s3_bucket: str, s3_settings: S3Settings) -> None:
    for layout in ("webdataset", "parquet"):
        store = open_store(f"s3://{s3_bucket}/{layout}", s3_settings)
        write_run_of(store, tmp_path, ROWS, fails, output__layout=layout, **SWEEP)
        sheet(store, tmp_path / layout, previews=True)
        check_sheet(tmp_path / layout, previews=True)
        gets = store.traffic.requests
        sheet(store, tmp_path / layout, previews=True)
        assert store.traffic.requests - gets < 12, "images that are there are not read again"


def test_what_users_wrote_stays_text(tmp_path: Path) -> None:
    store, folder = LocalStore(tmp_path / "<img src=x>"), tmp_path / "sheet"
    write_run_of(store, tmp_path, ROWS, **SWEEP)
    sheet(store, folder)
    page = (folder / "index.html").read_text("utf-8")
    assert "<img" not in page
    assert page.count("<script") == page.count("</script>") == 10
    (evil,) = (prompt for prompt in prompts_of(folder) if prompt["negative"])
    assert (evil["prompt"], evil["negative"]) == (EVIL, "<i>blurry</i>")
    themes = {cell["metadata"]["theme"] for cell in cells_of(folder)}
    assert themes == {"night", EVIL, None}


def files_of(folder: Path) -> dict[str, int]:
    return {path.name: path.stat().st_mtime_ns for path in (folder / "pages").iterdir()}


def test_a_second_build_makes_only_what_is_new(tmp_path: Path) -> None:
    store, folder = LocalStore(tmp_path / "out"), tmp_path / "sheet"
    write_run_of(store, tmp_path, ROWS, fails, **SWEEP)
    sheet(store, folder, previews=True)
    before = files_of(folder)
    assert sheet(store, folder, previews=True).new == 0
    after = files_of(folder)
    assert before.keys() == after.keys()
    packs = [name for name in before if name.startswith(("images", "previews"))]
    assert {name: before[name] for name in packs} == {name: after[name] for name in packs}
    write_run_of(store, tmp_path, ROWS, fails, **SWEEP | {"sweep__seeds": "0-2"})
    assert sheet(store, folder, previews=True).new == 12
    assert {name: before[name] for name in packs}.items() <= files_of(folder).items()
    assert len(cells_of(folder)) == 36
    assert [prompt["count"] for prompt in prompts_of(folder)] == [12, 12, 12]


def test_previews_can_come_later_and_go(tmp_path: Path) -> None:
    store, folder = LocalStore(tmp_path / "out"), tmp_path / "sheet"
    write_run_of(store, tmp_path, ROWS, fails, **SWEEP)
    for previews in (False, True, False):
        sheet(store, folder, previews=previews)
        assert any(name.startswith("previews") for name in files_of(folder)) is previews
        check_sheet(folder, previews)


def test_a_failure_that_is_mended_is_replaced(tmp_path: Path) -> None:
    store, folder = LocalStore(tmp_path / "out"), tmp_path / "sheet"
    write_run(store, RUN)
    commit(store, failed(1), failed(2))
    assert sheet(store, folder).images == 0
    first = files_of(folder)
    commit(store, rendered(1), rendered(2), at=START + timedelta(days=1))
    made = sheet(store, folder)
    assert (made.images, made.failed, made.new) == (2, 0, 2)
    assert [cell["ok"] for cell in cells_of(folder)] == [True, True]
    packs = [name for name in first if name.startswith("images")]
    assert not set(packs) & files_of(folder).keys(), "nothing in these is shown any more"


def test_an_image_that_is_lost_is_said_to_be_and_looked_for_again(tmp_path: Path) -> None:
    store, folder = LocalStore(tmp_path / "out"), tmp_path / "sheet"
    write_run(store, RUN)
    rows = commit(store, rendered(1), rendered(2), rendered(3)).to_pylist()
    body = store.get(rows[0]["file_name"])
    store.delete(rows[0]["file_name"])
    store.put(rows[1]["file_name"], b"no image")
    made = sheet(store, folder)
    assert (made.images, made.new, made.lost) == (3, 1, 2)
    assert [cell["verdict"] == "lost" for cell in cells_of(folder)] == [True, True, False]
    store.put(rows[0]["file_name"], body)
    assert sheet(store, folder).lost == 1


def test_a_build_that_was_stopped_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(contact_sheet, "IMAGE_ENTRIES", 4)
    store, folder = LocalStore(tmp_path / "out"), tmp_path / "sheet"
    write_run_of(store, tmp_path, ROWS, fails, **SWEEP)

    class StoppedError(Exception):
        pass

    def stop(filling: Any) -> None:
        if filling.made == 10:
            raise StoppedError

    with pytest.raises(StoppedError):
        build(store, LocalStore(folder), pictures=None, previews=False, on_progress=stop)
    assert not (folder / "index.html").exists()
    (torn, *_) = (folder / "pages").iterdir()
    torn.write_bytes(torn.read_bytes()[:20])
    assert sheet(store, folder).new == 24 - 4, "two packs were written, one of them is torn"
    check_sheet(folder, previews=False)


def test_data_files_stay_small(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "PAGE_CELLS", 5)
    monkeypatch.setattr(pages, "PAGE_PROMPTS", 2)
    monkeypatch.setattr(contact_sheet, "IMAGE_ENTRIES", 7)
    store, folder = LocalStore(tmp_path / "out"), tmp_path / "sheet"
    write_run_of(store, tmp_path, ROWS, fails, **SWEEP)
    sheet(store, folder)
    catalogue = catalogue_of(folder)
    assert [len(catalogue[key]) for key in ("promptPages", "cellPages", "imagePacks")] == [2, 5, 4]
    check_sheet(folder, previews=False)


def test_large_pictures_are_made_small(tmp_path: Path) -> None:
    store, folder = LocalStore(tmp_path / "out"), tmp_path / "sheet"
    sizes = [[1024, 512], [128, 256]]
    write_run_of(
        store, tmp_path, ROWS[:1], output__format="jpeg", **SWEEP | {"sweep__seeds": "0", "sweep__sizes": sizes}
    )
    sheet(store, folder, previews=True)
    found = {(cell["thumbnail"].size, cell["preview"].size) for cell in cells_of(folder)}
    assert found == {((192, 96), (768, 384)), ((96, 192), (128, 256))}


def test_numbers_that_browsers_cannot_hold_are_texts(tmp_path: Path) -> None:
    store, folder = LocalStore(tmp_path / "out"), tmp_path / "sheet"
    rows = [{"prompt": "a", "big": 2**60 + 1, "small": 2**50 + 1}]
    write_run_of(store, tmp_path, rows, **SWEEP | {"sweep__seeds": [7, 2**32 - 1]})
    sheet(store, folder)
    found = {(cell["metadata"]["big"], cell["metadata"]["small"]) for cell in cells_of(folder)}
    assert found == {(str(2**60 + 1), 2**50 + 1)}
    (seeds,) = (axis for axis in catalogue_of(folder)["axes"] if axis["name"] == "seed")
    assert seeds == {"name": "seed", "distinct": 2, "values": [7, 2**32 - 1]}


def test_the_same_prompt_in_several_rows_is_one(tmp_path: Path) -> None:
    rows = [{"prompt": "b", "seed": 1}, {"prompt": "a", "seed": 2}, {"prompt": "b", "seed": 3}]
    store, folder = LocalStore(tmp_path / "out"), tmp_path / "sheet"
    write_run_of(store, tmp_path, rows, sweep__sizes=[[32, 32]])
    sheet(store, folder)
    assert [(prompt["prompt"], prompt["first"], prompt["count"]) for prompt in prompts_of(folder)] == [
        ("b", 0, 2),
        ("a", 2, 1),
    ]
    assert catalogue_of(folder)["begin"] == {"view": "grid", "rows": "prompt", "columns": "seed"}


def prompts(count: int, **columns: Any) -> list[dict[str, Any]]:
    return [{"prompt": f"picture {row}", **columns} for row in range(count)]


SMALL: dict[str, Any] = {"sweep__steps": [2], "sweep__sizes": [[32, 32]]}
VIEWS: dict[str, tuple[list[dict[str, Any]], dict[str, Any], tuple[str, str, str]]] = {
    "a sweep": (
        prompts(3), {"sweep__guidance_scales": [1, 2], "sweep__steps": [2, 3], "sweep__seeds": "0-1"},
        ("grid", "guidance_scale", "num_inference_steps"),
    ),
    "one swept axis": (prompts(3), {"sweep__seeds": "0-1"}, ("grid", "prompt", "seed")),
    "one swept axis, one prompt": (prompts(1), {"sweep__seeds": "0-1"}, ("grid", "", "seed")),
    "one image each": (prompts(3), {}, ("all", "prompt", "")),
    "recipes of their own": (
        [row | {"guidance_scale": float(at), "seed": at} for at, row in enumerate(prompts(8))],
        {}, ("all", "prompt", ""),
    ),
    "seeds of their own, few": (
        [row | {"seeds": [2 * at, 2 * at + 1]} for at, row in enumerate(prompts(8))], {}, ("all", "prompt", "seed"),
    ),
    "points that fill no grid": (
        [{"prompt": "a", "seed": at, "guidance_scale": float(at), "num_inference_steps": at + 1} for at in range(5)],
        {}, ("grid", "", "num_inference_steps"),
    ),
    "one image": (prompts(1), {}, ("grid", "", "")),
}  # fmt: skip


@pytest.mark.parametrize("case", VIEWS)
def test_the_first_view_goes_by_what_varies_within_prompts(tmp_path: Path, case: str) -> None:
    rows, settings, expected = VIEWS[case]
    store, keys = LocalStore(tmp_path / "out"), SMALL | settings
    write_run_of(store, tmp_path, rows, **keys)
    found = first_view(read_rows(store))
    assert (found["view"], found["rows"], found["columns"]) == expected


def test_schedulers_stand_in_the_order_of_the_job(tmp_path: Path) -> None:
    store, folder = LocalStore(tmp_path / "out"), tmp_path / "sheet"
    rows = [{"prompt": "a"}, {"prompt": "b", "scheduler": "ddpm"}]
    write_run_of(
        store, tmp_path, rows, sweep__schedulers=["unipc", "euler", "dpmsolver++:karras"], sweep__sizes=[[32, 32]]
    )
    sheet(store, folder)
    (schedulers,) = (axis for axis in catalogue_of(folder)["axes"] if axis["name"] == "scheduler")
    assert schedulers["values"] == ["unipc", "euler", "dpmsolver++:karras", "ddpm"]


def test_columns_of_any_name_and_type(tmp_path: Path) -> None:
    store, folder = LocalStore(tmp_path / "out"), tmp_path / "sheet"
    write_run(store, RUN)
    for number, values in ((1, pa.array([[1, None]])), (2, pa.array([b"\xff"]))):
        shard = shard_of(number).append_column("__proto__", values)
        writer = PartWriter(store, shard, FACTS)
        writer.put(rendered(number), START)
        writer.commit()
    sheet(store, folder)
    assert [cell["metadata"]["__proto__"] for cell in cells_of(folder)] == [[1, None], "/w=="]


def test_the_sheet_is_in_nobodys_way(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "out")
    write_run_of(store, tmp_path, ROWS, fails, **SWEEP)
    finalize(store)
    sheet(store, tmp_path / "out" / "contact-sheet", previews=True, pictures="../")
    found = verify(store)
    assert (found.faults, found.orphans) == ((), ())
    assert write_run_of(store, tmp_path, ROWS, fails, **SWEEP) == 0


def test_a_page_of_somebody_else_is_left_alone(tmp_path: Path) -> None:
    store, folder = LocalStore(tmp_path / "out"), tmp_path / "site"
    write_run(store, RUN)
    with pytest.raises(OutputError, match="nothing is committed"):
        sheet(store, folder)
    commit(store, rendered(1))
    folder.mkdir()
    (folder / "index.html").write_text("my own")
    with pytest.raises(OutputError, match="there is something else"):
        sheet(store, folder)
    assert [path.name for path in folder.iterdir()] == ["index.html"]


def test_folders_of_somebody_else_are_left_alone(tmp_path: Path) -> None:
    store = LocalStore(tmp_path / "out")
    write_run(store, RUN)
    commit(store, rendered(1))
    for name in ("pages/about.js", "assets/logo.svg"):
        folder = tmp_path / Path(name).parent
        folder.mkdir()
        (tmp_path / name).write_text("my own")
        with pytest.raises(OutputError, match="there is something else") as caught:
            sheet(store, tmp_path)
        assert caught.value.where == str(tmp_path / name)
        assert [path.name for path in folder.iterdir()] == [Path(name).name]
        (tmp_path / name).unlink()
    sheet(store, tmp_path)
    (tmp_path / "pages" / "about.js").write_text("my own")
    commit(store, rendered(2))
    sheet(store, tmp_path)
    assert (tmp_path / "pages" / "about.js").read_text() == "my own"
    assert len(cells_of(tmp_path)) == 2
    assert len(files_of(tmp_path)) == 5, "two packs, prompts, cells, and the one that is not ours"


def test_whose_folders_they_were_is_only_in_the_command(tmp_path: Path) -> None:
    store, folder = LocalStore(tmp_path / "out"), tmp_path / "sheet"
    for model, shown in (("/home/me/models/tiny", "tiny"), ("s3://bucket/tiny", "s3://bucket/tiny"), ("me/tiny",) * 2):
        write_run(store, replace(RUN, model_id=model))
        commit(store, rendered(1))
        sheet(store, folder)
        catalogue = catalogue_of(folder)
        assert (catalogue["model"], catalogue["output"]) == (shown, "out")
        assert f"--model {model}" in catalogue["again"]


@pytest.mark.parametrize("layout", ["webdataset", "parquet"])
def test_archives_are_read_once(tmp_path: Path, layout: Layout) -> None:
    class Counting(LocalStore):
        opened = 0

        def open(self, key: str) -> Any:
            self.opened += 1
            return super().open(key)

    store, numbers = Counting(tmp_path), range(1, 9)
    facts = replace(FACTS, packing=Packing(layout=layout))
    names = commit(store, *map(rendered, numbers), facts=facts)["file_name"].to_pylist()
    store.opened = 0
    wanted = names[::2]
    read = {name: fetch() for name, fetch in read_images(store, wanted)}
    assert store.opened == 1
    assert read == {name: read_image(store, name) for name in wanted}
    key = wanted[0].rpartition("/")[0]
    gone = f"{key}/{'0' * 32}.png"
    found = dict(read_images(store, [gone, wanted[0]]))
    assert found[wanted[0]]() == read[wanted[0]]
    with pytest.raises(JobBrokenError, match="does not hold"):
        found[gone]()
