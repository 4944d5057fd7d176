"""Makes terminal.png: ``pip install pyte``, ``make demo``, then ``python -m docs.pictures.terminal``.

Runs the demonstration in a pseudo terminal, lets a terminal emulator read what comes, takes the screen as it is when
half of the images are there, and draws it with Chromium.
"""

import html
import os
import pty
import re
import sys
import tempfile
from pathlib import Path
from typing import Any

import pyte

from benchmarks.browser import MISSING, chromium, open_browser

COLUMNS, LINES = 100, 16
ROOT = Path(__file__).resolve().parent.parent.parent
STYLE = """body { margin: 0; background: #16181d; display: inline-block; }
pre { margin: 0; padding: 22px 26px; font: 15px/1.5 "DejaVu Sans Mono", monospace; color: #d8dade; }"""
COLOURS = {
    "default": "#d8dade",
    "red": "#e06c75",
    "green": "#98c379",
    "brown": "#d7ba7d",
    "magenta": "#c678dd",
    "cyan": "#56b6c2",
}


def screen_halfway(command: list[str], folder: str) -> "list[list[Any]]":
    """What stands on the terminal when half of the images are done."""
    screen = pyte.Screen(COLUMNS, LINES)
    stream = pyte.ByteStream(screen)
    child, terminal = pty.fork()
    if child == 0:
        os.chdir(folder)
        os.environ |= {"TERM": "xterm-256color", "COLUMNS": str(COLUMNS), "LINES": str(LINES), "PYTHONPATH": str(ROOT)}
        os.execv(command[0], command)
    stream.feed(f"$ darkroom {' '.join(command[3:])}\r\n".encode())
    taken = None
    while True:
        try:
            read = os.read(terminal, 65536)
        except OSError:  # the terminal is closed
            break
        if not read:
            break
        stream.feed(read)
        shown = "\n".join(screen.display)
        found = re.search(r"(\d+)/192", shown)
        if taken is None and found and int(found[1]) >= 96 and " left" in shown:
            taken = [[screen.buffer[y][x] for x in range(COLUMNS)] for y in range(LINES)]
    os.waitpid(child, 0)
    assert taken is not None, "\n".join(screen.display)
    return taken


def as_html(lines: list[list[Any]]) -> str:
    """The characters in their colours, without empty lines at the end."""
    while lines and not "".join(char.data for char in lines[-1]).strip():
        lines.pop()
    body = "\n".join("".join(_span(char) for char in line).rstrip() for line in lines)
    return f"<meta charset=utf-8><style>{STYLE}</style><pre>{body}</pre>"


def _span(char: Any) -> str:
    colour = COLOURS.get(char.fg, f"#{char.fg}" if re.fullmatch("[0-9a-f]{6}", char.fg) else COLOURS["default"])
    text = html.escape(char.data)
    return text if colour == COLOURS["default"] else f'<span style="color:{colour}">{text}</span>'


def main() -> None:
    with tempfile.TemporaryDirectory() as folder:
        for name in ("jobs", "manifests"):
            os.symlink(ROOT / name, Path(folder, name))
        page_text = as_html(screen_halfway([sys.executable, "-m", "jobs", "render", "jobs/demo.yaml"], folder))
    path = chromium()
    if path is None:
        raise SystemExit(MISSING)
    with open_browser(path) as browser:
        page = browser.new_page(device_scale_factor=1.5)
        page.set_content(page_text)
        page.locator("pre").screenshot(path=Path(__file__).with_name("terminal.png"))


if __name__ == "__main__":
    main()
