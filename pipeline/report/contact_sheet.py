"""A contact sheet: a static page over a run's sweep, made from what is committed, which opens from disk.

    index.html                   the frame, and the names of all data files
    assets/                      style and scripts
    pages/prompts-<digest>.js    prompts, to list and to search
    pages/cells-<digest>.js      which points there are, what came of them
    pages/images1-<digest>.js    thumbnails and metadata, some hundred images each; written once
    pages/previews1-<digest>.js  larger copies, where the page cannot link to the images themselves; written once

``index.html`` is replaced last, then the data files that it does not name are deleted: wherever a build stops, the page
that is there is whole.
"""

import shlex
from collections.abc import Callable
from dataclasses import dataclass
from hashlib import blake2b
from importlib.resources import files
from typing import Any

import pyarrow.compute as pc
from jinja2 import Environment, StrictUndefined

from pipeline.errors import OutputError
from pipeline.output.again import words_of
from pipeline.output.archives import plain_json
from pipeline.output.run import Run, read_run
from pipeline.report import pages
from pipeline.report.filling import Filling, fill
from pipeline.report.first_view import first_view
from pipeline.report.packs import PAGES_PREFIX, Packs, as_script, is_page_key, page_key
from pipeline.report.rows import SheetRows, read_rows
from pipeline.schedulers import scheduler_of
from pipeline.storage.base import ObjectStore
from pipeline.storage.location import without_folders

PAGE_KEY = "index.html"
_ASSETS_PREFIX = "assets/"
_ASSETS = (
    "sheet.css", "loading.js", "frame.js", "cells.js", "grid.js", "choosing.js", "wall.js", "pager.js",
    "detail.js", "sheet.js",
)  # fmt: skip
_ASSET_KEYS = frozenset(f"{_ASSETS_PREFIX}{name}" for name in _ASSETS)
_MARK = '<meta name="generator" content="Darkroom">'
_PACK_BYTES = 2**20
IMAGE_ENTRIES = 128
PREVIEW_ENTRIES = 32


@dataclass(frozen=True, slots=True, kw_only=True)
class Made:
    """What a build came to."""

    images: int
    failed: int
    prompts: int
    new: int
    """Rows that the packs did not have before."""
    lost: int
    """Images that are committed and cannot be read."""
    size_bytes: int
    """Of all files of the sheet."""


def build(
    store: ObjectStore,
    to: ObjectStore,
    *,
    pictures: str | None,
    previews: bool,
    on_progress: Callable[[Filling], None] = lambda _: None,
) -> Made:
    """Make the contact sheet of a run, or bring it up to date.

    ``pictures``: the address of the run relative to the page, where images are files that a browser can open.
    Raises ``OutputError`` if nothing is committed, or if ``to`` is a folder of somebody's own.
    """
    run = read_run(store)
    rows = read_rows(store)
    if run is None or not len(rows):
        raise OutputError(
            "nothing is committed at this output yet", where="OUTPUT", value=store.uri, allowed="a run with images"
        )
    _check_ours(to)
    images = Packs(to, "images1", max_entries=IMAGE_ENTRIES, max_bytes=_PACK_BYTES)
    large = Packs(to, "previews1", max_entries=PREVIEW_ENTRIES, max_bytes=_PACK_BYTES) if previews else None
    new, lost = fill(store, rows, images, large, on_progress)
    prompts, cells = rows.prompts(), pages.put_cells(to, rows, images, large)
    listed = pages.put_prompts(to, prompts)
    words = words_of(run)
    catalogue = {
        **_facts(store, run, rows),
        "prompts": len(prompts),
        "axes": pages.describe_axes(rows, _schedulers(run)),
        "begin": first_view(rows),
        "perPromptPage": pages.PAGE_PROMPTS,
        "promptPages": listed,
        "promptFirsts": [prompt.first for prompt in prompts[:: pages.PAGE_PROMPTS]],
        "perCellPage": pages.PAGE_CELLS,
        "cellPages": cells.pages,
        "imagePacks": cells.images,
        "previewPacks": cells.previews,
        "pictures": pictures,
        "again": [shlex.join(pair) for pair in zip(words[::2], words[1::2], strict=True)],
    }
    _put_page(to, catalogue)
    size_bytes = _delete_others(to, {*listed, *cells.pages, *cells.images, *cells.previews})
    ok = int(rows.ok.sum())
    return Made(images=ok, failed=len(rows) - ok, prompts=len(prompts), new=new, lost=lost, size_bytes=size_bytes)


def _facts(store: ObjectStore, run: Run, rows: SheetRows) -> dict[str, Any]:
    """What the page says about the run."""
    verdicts = {count["values"]: count["counts"] for count in pc.value_counts(rows.table["verdict"]).to_pylist()}
    ok, title = int(rows.ok.sum()), store.uri.rstrip("/").rpartition("/")[2]
    return {
        "title": title,
        "output": without_folders(store.uri),  # a page that is handed on tells nobody's folders
        "model": without_folders(run.model_id),
        "layout": run.packing.layout,
        "begun": plain_json(run.created_at),
        "images": ok,
        "failed": len(rows) - ok,
        "verdicts": verdicts,
    }


def _schedulers(run: Run) -> list[str]:
    """Return the schedulers of the job that began the run, in its order."""
    return [scheduler_of(text).text for text in run.job.get("sweep", {}).get("schedulers") or ()]


def _check_ours(to: ObjectStore) -> None:
    """``OutputError`` where the sheet would be put among files that are not its own, and over some of them."""
    other: str | None = None
    if not to.head(PAGE_KEY):
        there = (info.key for prefix in (_ASSETS_PREFIX, PAGES_PREFIX) for info in to.list(prefix))
        other = next((key for key in there if not (key in _ASSET_KEYS or is_page_key(key))), None)
    elif _MARK.encode() not in to.get_range(PAGE_KEY, 0, 2000):
        other = PAGE_KEY
    if other is not None:
        raise OutputError(
            "there is something else where the contact sheet would be",
            where=f"{to.uri}/{other}",
            allowed=f"a folder without {PAGE_KEY}, {_ASSETS_PREFIX} and {PAGES_PREFIX}, or an earlier contact sheet",
        )


def _put_page(to: ObjectStore, catalogue: dict[str, Any]) -> None:
    """The assets, then the page: a browser that has an earlier one in its cache asks for them anew."""
    folder = files("pipeline.report") / "assets"
    bodies = {name: (folder / name).read_bytes() for name in _ASSETS}
    for name, body in bodies.items():
        to.put(f"{_ASSETS_PREFIX}{name}", body)
    template = Environment(autoescape=True, undefined=StrictUndefined).from_string(
        (folder / PAGE_KEY).read_text("utf-8")
    )
    page = template.render(
        catalogue=catalogue,
        catalogue_json=as_script(catalogue),
        scripts=[name for name in _ASSETS if name.endswith(".js")],
        version=blake2b(b"".join(bodies.values()), digest_size=4).hexdigest(),
    )
    to.put(PAGE_KEY, page.encode())


def _delete_others(to: ObjectStore, named: set[str]) -> int:
    """Data files of sheets that the page does not name go. Returns the size of all that it has."""
    keys = {PAGE_KEY, *_ASSET_KEYS, *map(page_key, named)}
    there = [info for prefix in (PAGES_PREFIX, _ASSETS_PREFIX, PAGE_KEY) for info in to.list(prefix)]
    for info in there:
        if is_page_key(info.key) and info.key not in keys:
            to.delete(info.key)
    return sum(info.size_bytes for info in there if info.key in keys)
