"""A contact sheet over many images: ``python -m benchmarks.contact_sheet``.

Commits 100,000 small drawn images (500 prompts × 10 seeds × 5 guidance scales × 4 step counts, 64 × 64 px) through the
real output code, then makes the sheet, makes it again, and opens it from disk in headless Chromium. ``--images``
chooses another number, ``--own-seeds`` prompts with one image each, ``--layout`` how images are kept.
"""

import argparse
import os
import sys
import time
from collections.abc import Callable
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import PIL
import pyarrow as pa
from PIL import features

from benchmarks.browser import MISSING, chromium, open_browser
from benchmarks.committed import write_run_of
from pipeline.report.contact_sheet import Made, build
from pipeline.storage.local import LocalStore

SIDE_PX = 64
POINTS = 10 * 5 * 4
SWEEP: dict[str, Any] = {
    "sweep__seeds": "0-9",
    "sweep__guidance_scales": [1, 2, 4, 7.5, 12],
    "sweep__steps": [2, 5, 10, 25],
}
_SUBJECTS = ("star", "ring", "lighthouse", "heron", "teapot", "violin", "glacier", "market", "orchard", "locomotive")
_PAINTED = "performance.getEntriesByName('first-contentful-paint').map(e => e.startTime)[0]"
_PICTURES = "performance.getEntriesByName('darkroom:pictures').map(e => e.startTime)[0]"


def prompts(images: int, own_seeds: bool) -> list[dict[str, Any]]:
    number = images if own_seeds else max(1, images // POINTS)
    named = [f"a {_SUBJECTS[row % 10]} at dusk, number {row}, oil on canvas" for row in range(number)]
    return [{"prompt": text, "seed": row} if own_seeds else {"prompt": text} for row, text in enumerate(named)]


def timed(work: Callable[[], Any]) -> tuple[Any, float]:
    began = time.perf_counter()
    return work(), time.perf_counter() - began


def show(page_path: Path, browser_path: str, picture: Path | None) -> None:
    """First paint, all thumbnails of the first view, a search over all prompts, and the last prompt."""
    with open_browser(browser_path) as browser:
        page = browser.new_page(viewport={"width": 1440, "height": 900})
        for attempt in ("first", "second"):
            page.goto(page_path.as_uri())
            page.wait_for_function(f"() => {_PICTURES}")
            paint, pictures = page.evaluate(_PAINTED), page.evaluate(_PICTURES)
            print(f"opened, {attempt:<6}  first paint {paint:.0f} ms, all thumbnails in view {pictures:.0f} ms")
        if picture:
            page.screenshot(path=picture)
        found = timed(lambda: search(page))
        print(f"search          {found[1]:.2f} s over all prompts: {found[0]}")
        heap = page.evaluate("performance.memory.usedJSHeapSize / 1048576")
        nodes = page.evaluate("document.querySelectorAll('*').length")
        print(f"page            {nodes:,} elements, {heap:.0f} MiB of JavaScript")


def search(page: Any) -> str:
    page.fill("#search", "number 7 heron")
    page.wait_for_function("() => /prompt/.test(document.getElementById('found').textContent)")
    said: str = page.inner_text("#found")
    return said


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--images", type=int, default=100_000)
    parser.add_argument("--own-seeds", action="store_true")
    parser.add_argument("--layout", default="files", choices=("files", "webdataset", "parquet"))
    parser.add_argument("--picture", type=Path, help="where to put a screenshot")
    given = parser.parse_args()
    cores = len(os.sched_getaffinity(0))
    print(f"Pillow {PIL.__version__}, libwebp {features.version('webp')}, pyarrow {pa.__version__}, {cores} core(s)")
    with TemporaryDirectory() as folder:
        root = Path(folder)
        store, to = LocalStore(root / "out"), LocalStore(root / "out" / "contact-sheet")
        sweep = {} if given.own_seeds else SWEEP
        keys = sweep | {"sweep__sizes": [[SIDE_PX, SIDE_PX]], "output__layout": given.layout}
        rows = prompts(given.images, given.own_seeds)
        tasks, seconds = timed(lambda: write_run_of(store, root, rows, **keys))
        print(f"committed       {tasks:,} images of {len(rows):,} prompts in {seconds:.0f} s, layout {given.layout}")
        pictures = "../" if given.layout == "files" else None
        for attempt in ("first", "again"):
            made: Made
            made, seconds = timed(lambda: build(store, to, pictures=pictures, previews=pictures is None))
            files = sum(1 for _ in to.list())
            print(
                f"built, {attempt:<8} {seconds:.1f} s: {made.new:,} thumbnails made, {made.size_bytes / 1e6:.1f} MB "
                f"in {files:,} files, index.html {(root / 'out/contact-sheet/index.html').stat().st_size / 1e3:.0f} kB"
            )
        path = chromium()
        if path is None:
            print(MISSING)
        else:
            show(root / "out" / "contact-sheet" / "index.html", path, given.picture)
        sys.stdout.flush()


if __name__ == "__main__":
    main()
