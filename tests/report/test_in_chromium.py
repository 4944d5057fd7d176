"""The contact sheet as people use it: opened from disk in a real browser, with mouse and keyboard."""

import re
import shlex
import shutil
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pyarrow as pa
import pyarrow.parquet as pq
import pytest
from playwright.sync_api import Browser, Page, expect

from benchmarks.browser import MISSING, chromium, open_browser
from benchmarks.committed import write_run_of
from pipeline.report import pages
from pipeline.report.contact_sheet import build
from pipeline.storage.local import LocalStore

ROOT = Path(__file__).parent.parent.parent
EVIL = '</script><script>pwned = 1</script><img src=x onerror="pwned = 1"> "it\'s" & \\ \u05e9\u05dc\u05d5\u05dd 🎈'
ROWS: list[dict[str, Any]] = [
    {"prompt": "a red star", "theme": "night"},
    {"prompt": EVIL, "theme": EVIL, "negative_prompt": "<i>blurry</i>"},
    *({"prompt": f"a {colour} ring"} for colour in ("blue", "white", "green")),
]
SWEEP: dict[str, Any] = {
    "sweep__seeds": "0-1", "sweep__guidance_scales": [1, 3, 7.5], "sweep__steps": [2, 5, 10, 25],
    "sweep__sizes": [[64, 64]],
}  # fmt: skip


def fails(row: dict[str, Any]) -> bool:
    return (row["prompt"], row["seed"], row["num_inference_steps"]) == ("a blue ring", 0, 10)


@pytest.fixture(scope="module")
def browser() -> Iterator[Browser]:
    path = chromium()
    if path is None:
        pytest.skip(MISSING)
    with open_browser(path) as found:
        yield found


@pytest.fixture(scope="module")
def sheet(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("sheet")
    store = LocalStore(folder / "an output #1")
    write_run_of(store, folder, ROWS, fails, **SWEEP)
    to = folder / "an output #1" / "contact-sheet"
    build(store, LocalStore(to), pictures="../", previews=False)
    return to / "index.html"


@pytest.fixture(scope="module")
def many(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Sixty prompts, with four images of seeds of their own each, in archives and in many small data files."""
    folder = tmp_path_factory.mktemp("many")
    store = LocalStore(folder / "out")
    rows = [{"prompt": f"picture {row}", "seeds": [1000 * row + number for number in range(4)]} for row in range(60)]
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(pages, "PAGE_PROMPTS", 16)
        patch.setattr(pages, "PAGE_CELLS", 50)
        write_run_of(store, folder, rows, output__layout="webdataset", sweep__sizes=[[32, 32]])
        build(store, LocalStore(folder / "sheet"), pictures=None, previews=True)
    return folder / "sheet" / "index.html"


@pytest.fixture(scope="module")
def own(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Prompts with guidance and steps of their own, one of them with two recipes, and seeds that all share."""
    folder = tmp_path_factory.mktemp("own")
    store = LocalStore(folder / "out")
    recipes = [(6.0, 4), (4.0, 6), (2.0, 4), (2.0, 6)]
    rows = [
        {"prompt": f"picture {row}", "guidance_scale": guidance, "num_inference_steps": steps}
        for row, (guidance, steps) in zip((0, 1, 2, 2), recipes, strict=True)
    ]
    write_run_of(store, folder, rows, sweep__seeds="0-1", sweep__sizes=[[32, 32]])
    build(store, LocalStore(folder / "sheet"), pictures=None, previews=False)
    return folder / "sheet" / "index.html"


@pytest.fixture
def page(browser: Browser) -> Iterator[Page]:
    """A window whose every complaint, and every request for anything but files, fails the test."""
    made = browser.new_page(viewport={"width": 1440, "height": 900})
    faults: list[str] = []
    made.on("console", lambda message: faults.append(message.text) if message.type in ("error", "warning") else None)
    made.on("pageerror", lambda error: faults.append(str(error)))
    made.on(
        "request", lambda request: None if request.url.startswith(("file:", "data:")) else faults.append(request.url)
    )
    yield made
    assert made.evaluate("typeof pwned") == "undefined"
    made.close()
    assert faults == []


def open_sheet(page: Page, sheet: Path, chosen: str = "") -> None:
    page.goto(sheet.as_uri() + chosen)
    drawn(page)


def drawn(page: Page) -> None:
    """Wait until what was asked for last is there."""
    page.wait_for_function(
        "() => [...document.querySelectorAll('#grid img')].every(i => i.complete && i.naturalWidth) &&"
        " document.documentElement.dataset.drawn"
    )


def heads(page: Page) -> tuple[list[str], list[str]]:
    columns = page.locator("#grid thead th:not(.corner)").all_inner_texts()
    return page.locator("#grid tbody th").all_inner_texts(), columns


def test_it_opens_with_the_sweep_laid_out(page: Page, sheet: Path, tmp_path: Path) -> None:
    open_sheet(page, sheet)
    expect(page.locator("h2")).to_have_text("a red star")
    assert heads(page) == (["1", "3", "7.5"], ["2", "5", "10", "25"])
    expect(page.locator("#grid .cell img")).to_have_count(12)
    expect(page.locator("#list button")).to_have_count(5)
    expect(page.locator(".facts")).to_contain_text("117 images")
    expect(page.locator(".facts")).to_contain_text("3 failed")
    expect(page.locator("#pickers legend")).to_have_text(["seed"])
    taken = page.screenshot(path=tmp_path / "sheet.png")
    assert len(taken) > 20_000
    assert page.locator("#grid .cell").first.bounding_box()["width"] > 150  # type: ignore[index]  # it is shown


def test_axes_are_chosen(page: Page, sheet: Path) -> None:
    open_sheet(page, sheet)
    page.select_option("#rows", "seed")
    expect(page.locator("#pickers legend")).to_have_text(["guidance"])
    assert heads(page) == (["0", "1"], ["2", "5", "10", "25"])
    page.locator("#pickers").get_by_text("7.5").click()
    expect(page.locator("#grid .cell").first).to_have_attribute("title", "seed 0, guidance 7.5, steps 2")
    page.click("#swap")
    expect(page.locator("#grid thead th:not(.corner)")).to_have_text(["0", "1"])
    page.reload()
    drawn(page)
    assert heads(page) == (["2", "5", "10", "25"], ["0", "1"])
    expect(page.locator("#grid .cell").first).to_have_attribute("title", "seed 0, guidance 7.5, steps 2")
    page.select_option("#rows", "")
    expect(page.locator("#grid figcaption")).to_have_text(["seed 0", "seed 1"])


def test_prompts_beside_each_other(page: Page, sheet: Path) -> None:
    open_sheet(page, sheet)
    page.select_option("#rows", "prompt")
    expect(page.locator("h2")).to_have_text("All prompts")
    drawn(page)
    assert heads(page)[0] == [row["prompt"] for row in ROWS]
    page.locator("#list button", has_text="green").click()
    expect(page.locator(":focus")).to_have_attribute("title", "seed 0, guidance 1, steps 2")
    page.select_option("#columns", "prompt")
    expect(page.locator("#grid thead th:not(.corner)")).to_have_count(5)


def test_a_picture_in_full(page: Page, sheet: Path) -> None:
    open_sheet(page, sheet)
    page.locator("#grid .cell").nth(5).click()
    detail = page.locator("#detail")
    expect(detail.locator("h3")).to_have_text("a red star")
    expect(detail.locator("#detail-recipe dd")).to_have_text(["0", "3", "5", "ddim", "64×64", "prompts:0"])
    expect(detail.locator("#detail-metadata")).to_contain_text("pixel_sha256")
    expect(detail.locator("#detail-metadata")).to_contain_text("night")
    expect(detail.locator("figcaption")).to_contain_text("64×64 px PNG")
    link = detail.locator("#detail-link").get_attribute("href")
    assert link is not None
    assert (sheet.parent / link).exists()
    assert page.evaluate("document.querySelector('#detail-picture img').naturalWidth") == 64
    page.keyboard.press("ArrowRight")
    expect(detail.locator("#detail-recipe dd").nth(2)).to_have_text("10")
    page.keyboard.press("ArrowDown")
    expect(detail.locator("#detail-recipe dd").nth(1)).to_have_text("7.5")
    page.keyboard.press("Escape")
    expect(detail).to_be_hidden()
    expect(page.locator(":focus")).to_have_attribute("title", "seed 0, guidance 7.5, steps 10")


@pytest.mark.parametrize("prompt", [0, 1])
def test_the_command_names_the_same_task(page: Page, sheet: Path, tmp_path: Path, prompt: int) -> None:
    """Planned instead of rendered, over a manifest with its prompt: the run has that very image."""
    open_sheet(page, sheet, f"#prompt={prompt + 1}")
    page.locator("#grid .cell").nth(9).click()
    said = shlex.split(page.locator("#detail-command").inner_text().replace("\\\n", " "))
    assert said[:3] == ["darkroom", "render", "--prompt"]
    assert said[-4:] == ["--set", "render.rows=16", "--output", "again"]
    row, words = {"prompt": [said[3]]}, said[4:-1]
    if words[0] == "--negative-prompt":
        row, words = {**row, "negative_prompt": [words[1]]}, words[2:]
    pq.write_table(pa.table(row), tmp_path / "again.parquet")
    command = [sys.executable, "-m", "jobs", "plan", "--json", "--manifest", "again.parquet"]
    environment = {"PYTHONPATH": str(ROOT), "PATH": "/usr/bin:/bin"}
    done = subprocess.run(
        [*command, *words, str(sheet.parent.parent)], cwd=tmp_path, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert '"images_planned": 1,' in done.stdout
    assert '"images_committed": 1,' in done.stdout


def test_failures_are_seen(page: Page, sheet: Path) -> None:
    open_sheet(page, sheet)
    expect(page.locator("#list .bad")).to_have_text(["3 failed"])
    page.check("#only-failed")
    expect(page.locator("h2")).to_have_text("a blue ring")
    expect(page.locator("#list button")).to_have_count(1)
    failures = page.locator("#grid .failed")
    expect(failures).to_have_count(3)
    expect(failures.first).to_contain_text("nan latents")
    expect(failures.first).to_contain_text("NaN in the latents")
    failures.first.click()
    expect(page.locator("#detail-verdict")).to_contain_text("FloatingPointError")
    expect(page.locator("#detail-picture")).to_have_text("No picture")


def test_what_users_wrote_is_never_markup(page: Page, sheet: Path) -> None:
    open_sheet(page, sheet, "#prompt=2")
    expect(page.locator("h2")).to_have_text(EVIL)
    expect(page.locator("#negative")).to_have_text("Not: <i>blurry</i>")
    page.locator("#grid .cell").nth(1).click()
    expect(page.locator("#detail h3")).to_have_text(EVIL)
    expect(page.locator("#detail-metadata")).to_contain_text("pwned")
    assert page.locator("#detail i, #list img, #detail-metadata img").count() == 0


def test_all_of_it_by_keyboard(page: Page, sheet: Path) -> None:
    open_sheet(page, sheet)
    page.keyboard.press("/")
    expect(page.locator("#search")).to_be_focused()
    page.keyboard.type("RING  a w")
    expect(page.locator("#found")).to_have_text("1 prompt")
    expect(page.locator("h2")).to_have_text("a white ring")
    page.keyboard.press("Escape")
    expect(page.locator("#list button")).to_have_count(5)
    page.keyboard.press("Enter")
    expect(page.locator(":focus")).to_have_attribute("title", "seed 0, guidance 1, steps 2")
    page.keyboard.press("ArrowDown")
    page.keyboard.press("End")
    page.keyboard.press("ArrowUp")
    expect(page.locator(":focus")).to_have_attribute("title", "seed 0, guidance 3, steps 25")
    outline = page.evaluate("getComputedStyle(document.activeElement).outlineStyle")
    assert outline == "solid"
    page.keyboard.press("Enter")
    expect(page.locator("#detail")).to_be_visible()
    page.keyboard.press("Escape")
    page.keyboard.press("]")
    expect(page.locator("h2")).to_have_text("a green ring")
    # The same point of the next prompt.
    expect(page.locator(":focus")).to_have_attribute("title", "seed 0, guidance 3, steps 25")
    page.keyboard.press("x")
    expect(page.locator("#grid tbody th")).to_have_count(4)
    page.keyboard.press("?")
    expect(page.locator("#help")).to_be_visible()


def test_a_search_without_a_find(page: Page, sheet: Path) -> None:
    open_sheet(page, sheet)
    page.fill("#search", "<nothing>")
    expect(page.locator("#note")).to_have_text("No prompt has all of these words.")
    expect(page.locator("#list button")).to_have_count(0)


def ground(page: Page) -> int:
    """How light the page is, 0 to 255."""
    colour: str = page.evaluate("getComputedStyle(document.body).backgroundColor")
    return int(re.findall(r"\d+", colour)[0])


def test_light_and_dark(browser: Browser, sheet: Path) -> None:
    for is_dark in (False, True):
        page = browser.new_page(color_scheme="dark" if is_dark else "light")
        open_sheet(page, sheet)
        assert (ground(page) < 64) is is_dark
        page.keyboard.press("t")
        assert (ground(page) < 64) is not is_dark
        page.reload()
        assert (ground(page) < 64) is not is_dark, "the choice is kept"
        page.close()


def test_narrow_screens(page: Page, sheet: Path) -> None:
    page.set_viewport_size({"width": 390, "height": 844})
    open_sheet(page, sheet)
    assert page.evaluate("document.documentElement.scrollWidth") == 390
    expect(page.locator("#side")).to_be_hidden()
    page.click("#open-list")
    page.locator("#list button", has_text="green").click()
    expect(page.locator("h2")).to_have_text("a green ring")
    expect(page.locator("#side")).to_be_hidden()
    page.locator("#grid .cell").first.click()
    expect(page.locator("#detail")).to_be_visible()
    box = page.locator("#detail").bounding_box()
    assert box is not None
    assert box["width"] == 390


def test_many_prompts(page: Page, many: Path) -> None:
    """Each prompt has seeds of its own, so they are laid side by side by their order."""
    open_sheet(page, many)
    expect(page.locator("h2")).to_have_text("All prompts")
    expect(page.locator("#grid .cell")).to_have_count(100)
    assert heads(page)[1] == [f"seed no. {number}" for number in range(1, 5)]
    expect(page.locator("#list-pager span")).to_have_text("1 of 3")
    page.keyboard.press("]")
    page.keyboard.press("]")
    expect(page.locator("#list-pager span")).to_have_text("3 of 3")
    expect(page.locator("#grid tbody th").last).to_have_text("picture 59")
    drawn(page)
    page.fill("#search", "picture 4")
    expect(page.locator("#found")).to_have_text("15 prompts")
    expect(page.locator("#grid .cell")).to_have_count(60)
    page.locator("#grid .cell").nth(5).click()
    expect(page.locator("#detail-recipe dd").first).to_have_text("14001")
    expect(page.locator("#detail-caption")).to_contain_text("this is a copy of 32×32 px; the image is out/shards/")


def pressed(page: Page) -> dict[str, str]:
    """The value that each control claims."""
    return {
        str(button.get_attribute("name")): str(button.get_attribute("value"))
        for button in page.locator("#pickers input:checked").all()
    }


def titles(page: Page) -> list[str | None]:
    return [cell.get_attribute("title") for cell in page.locator("#grid .cell").all()]


def test_no_control_claims_what_a_picture_does_not_have(page: Page, own: Path) -> None:
    open_sheet(page, own, "#rows=prompt&columns=seed")
    assert pressed(page) == {"guidance_scale": "*", "num_inference_steps": "*"}
    expect(page.locator("#shown")).to_have_text(
        "guidance each its own · steps each its own · scheduler ddim · 32×32 px"
    )
    assert page.locator("#grid tbody .own").all_inner_texts()[::2] == [
        "guidance 6, steps 4", "guidance 4, steps 6", "guidance 2, steps 4 (+1)",
    ]  # fmt: skip
    assert titles(page)[::2] == [f"seed 0, guidance {one}" for one in ("6, steps 4", "4, steps 6", "2, steps 4")]
    page.locator("#pickers").get_by_text("2", exact=True).click()
    expect(page.locator("#grid tbody td.none")).to_have_text(["–"] * 4)
    assert page.locator("#grid tbody th").all_inner_texts() == ["picture 0", "picture 1", "picture 2"]
    expect(page.locator("#shown")).to_contain_text("guidance 2 · steps 4")
    assert pressed(page) == {"guidance_scale": "2", "num_inference_steps": "4"}
    page.locator("#pickers").get_by_text("6", exact=True).last.click()
    expect(page.locator("#shown")).to_contain_text("guidance 2 · steps 6")
    assert pressed(page) == {"guidance_scale": "2", "num_inference_steps": "6"}
    assert titles(page) == ["seed 0, guidance 2, steps 6", "seed 1, guidance 2, steps 6"]
    page.select_option("#columns", "")
    expect(page.locator("#grid .flow .none")).to_have_count(2)


def test_a_choice_without_pictures_is_said_to_be(page: Page, own: Path) -> None:
    open_sheet(page, own, "#rows=seed&columns=prompt&guidance_scale=4&num_inference_steps=4")
    expect(page.locator("#note")).to_have_text("No picture has guidance 4 and steps 4.")
    open_sheet(page, own, "#prompt=1&rows=seed&columns=&guidance_scale=2")
    page.reload()
    drawn(page)
    expect(page.locator("#shown")).to_have_text("guidance 6 · steps 4 · scheduler ddim · 32×32 px")
    assert pressed(page) == {}
    page.emulate_media(media="print")
    expect(page.locator("#shown")).to_be_visible()


def test_all_pictures(page: Page, many: Path) -> None:
    open_sheet(page, many, "#view=all")
    expect(page.locator("#window")).to_have_text("‹picture 1 to 120 of 240›")
    expect(page.locator("#grid .cell")).to_have_count(120)
    expect(page.locator("#grid figcaption").nth(5)).to_have_text("picture 1seed 1001")
    page.keyboard.press("ArrowDown")  # nothing had the focus
    expect(page.locator(":focus")).to_have_attribute("title", "seed 0")
    page.keyboard.press("]")
    expect(page.locator("#grid figcaption").first).to_have_text("picture 30seed 30000")
    expect(page.locator("#list-pager span")).to_have_text("2 of 3")
    page.reload()
    drawn(page)
    expect(page.locator("#grid figcaption").first).to_have_text("picture 30seed 30000")
    page.fill("#search", "picture 4")
    expect(page.locator("#grid .cell")).to_have_count(60)
    expect(page.locator("#grid figcaption").nth(5)).to_have_text("picture 14seed 14001")
    page.locator("#list button", has_text="45").click()
    expect(page.locator(":focus")).to_have_attribute("title", "seed 45000")
    page.keyboard.press("a")
    expect(page.locator("#rows")).to_be_visible()
    expect(page.locator("#grid tbody th").first).to_have_text("picture 4")


def test_enter_opens_the_first_picture_while_nothing_has_the_focus(page: Page, own: Path) -> None:
    open_sheet(page, own)
    page.keyboard.press("Enter")
    expect(page.locator("#detail-recipe dd").nth(1)).to_have_text("6")


@pytest.fixture
def stale(browser: Browser, many: Path, tmp_path: Path) -> Iterator[tuple[Page, Path]]:
    """The sheet of sixty prompts in a window that has to do without some of its files, and their folder."""
    shutil.copytree(many.parent, tmp_path / "sheet")
    page = browser.new_page()
    faults: list[str] = []
    page.on("pageerror", lambda error: faults.append(str(error)))
    open_sheet(page, tmp_path / "sheet" / "index.html", "#rows=&prompt=1")
    expect(page.locator("#grid .cell").first).to_be_visible()
    yield page, tmp_path / "sheet" / "pages"
    page.close()
    assert faults == []


def lose(folder: Path, kind: str) -> None:
    """As a build deletes what it replaces."""
    for path in folder.glob(f"{kind}-*.js"):
        path.unlink()


def test_a_picture_whose_files_are_gone_is_said_to_be(stale: tuple[Page, Path]) -> None:
    page, folder = stale
    lose(folder, "images1")
    page.reload()
    note = page.locator("#note")
    expect(note).to_contain_text("cannot be read")
    page.evaluate("document.getElementById('note').textContent = ''")
    page.locator("#grid .cell").first.click()
    expect(note).to_contain_text("cannot be read. Make the contact sheet again.")
    expect(note).to_be_in_viewport()
    expect(page.locator("#detail")).to_be_hidden()


def test_without_the_larger_copy_the_thumbnail_is_shown(stale: tuple[Page, Path]) -> None:
    page, folder = stale
    lose(folder, "previews1")
    page.locator("#grid .cell").first.click()
    expect(page.locator("#detail-caption")).to_contain_text("cannot be read")
    expect(page.locator("#detail-caption")).to_contain_text("This is its thumbnail.")
    assert page.evaluate("document.querySelector('#detail-picture img').naturalWidth") == 32


def test_a_search_that_fails_is_over(stale: tuple[Page, Path]) -> None:
    page, folder = stale
    lose(folder, "prompts")
    page.fill("#search", "picture 59")
    expect(page.locator("#note")).to_contain_text("cannot be read")
    expect(page.locator("#found")).to_be_empty()
    page.fill("#search", "")
    expect(page.locator("#list button")).to_have_count(25)
