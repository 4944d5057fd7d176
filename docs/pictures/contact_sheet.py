"""Make the README's picture of the page: ``python -m docs.pictures.contact_sheet`` after ``make demo``.

A second argument is a folder for pictures of a narrow screen, of the dark page, and of one image opened.
"""

import sys
from pathlib import Path
from typing import Literal

from playwright.sync_api import Browser, Page

from benchmarks.browser import MISSING, chromium, open_browser

HERE = Path(__file__).parent
PAGE = HERE.parent.parent / "renders" / "demo" / "contact-sheet" / "index.html"
DESKTOP, NARROW = (1440, 900), (390, 844)


def opened(browser: Browser, size: tuple[int, int], *, dark: bool = False, chosen: str = "#prompt=2") -> Page:
    """The page with all its thumbnails."""
    scheme: Literal["dark", "light"] = "dark" if dark else "light"
    page = browser.new_page(viewport={"width": size[0], "height": size[1]}, color_scheme=scheme)
    page.goto(PAGE.as_uri() + chosen)
    page.wait_for_function("() => performance.getEntriesByName('darkroom:pictures').length")
    page.wait_for_timeout(200)
    return page


def main() -> None:
    path = chromium()
    if path is None:
        raise SystemExit(MISSING)
    with open_browser(path) as browser:
        opened(browser, DESKTOP).screenshot(path=HERE / "contact-sheet.png")
        for folder in map(Path, sys.argv[1:]):
            folder.mkdir(parents=True, exist_ok=True)
            opened(browser, NARROW).screenshot(path=folder / "narrow.png")
            opened(browser, DESKTOP, dark=True).screenshot(path=folder / "dark.png")
            opened(browser, DESKTOP, chosen="#rows=prompt").screenshot(path=folder / "prompts.png")
            page = opened(browser, DESKTOP)
            page.locator("#grid .cell").nth(7).click()
            page.wait_for_timeout(300)
            page.screenshot(path=folder / "detail.png")
            page = opened(browser, NARROW)
            page.locator("#grid .cell").nth(7).click()
            page.wait_for_timeout(300)
            page.screenshot(path=folder / "narrow-detail.png")


if __name__ == "__main__":
    main()
