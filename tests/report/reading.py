"""A contact sheet as the page reads it."""

import base64
import io
import json
import re
from pathlib import Path
from typing import Any

from PIL import Image

CATALOGUE = re.compile(r'<script type="application/json" id="catalogue">(.*?)</script>', re.S)


def catalogue_of(folder: Path) -> dict[str, Any]:
    (found,) = CATALOGUE.findall((folder / "index.html").read_text("utf-8"))
    read: dict[str, Any] = json.loads(found)
    return read


def content_of(folder: Path, name: str) -> list[Any]:
    """What a data file hands to the page, which must be nothing but JSON."""
    text = (folder / "pages" / f"{name}.js").read_text("ascii")
    assert text.startswith(f'darkroom.take("{name}",')
    assert text.endswith(");\n")
    assert "<" not in text
    read: list[Any] = json.loads("[" + text[len(f'darkroom.take("{name}",') : -3] + "]")
    return read


def prompts_of(folder: Path) -> list[dict[str, Any]]:
    """All prompts with their negative prompts, numbers of images and of failures."""
    found = []
    for name in catalogue_of(folder)["promptPages"]:
        (page,) = content_of(folder, name)
        for at, text in enumerate(page["prompt"]):
            own = {"prompt": text, "first": page["first"][at], "count": page["count"][at]}
            negative, failed = (page[key].get(str(at)) for key in ("negative", "failed"))
            found.append(own | {"negative": negative, "failed": failed or 0})
    return found


def cells_of(folder: Path) -> list[dict[str, Any]]:
    """All cells in order, each with its metadata, thumbnail and preview."""
    catalogue, found = catalogue_of(folder), []
    packs = {name: content_of(folder, name) for key in ("imagePacks", "previewPacks") for name in catalogue[key]}
    for name in catalogue["cellPages"]:
        (page,) = content_of(folder, name)
        for at, (pack, number) in enumerate(page["image"]):
            coded = [key for key, column in page.items() if isinstance(column, dict)]
            cell = {key: page[key]["values"][page[key]["codes"][at] if "codes" in page[key] else 0] for key in coded}
            names, rows, pictures = packs[catalogue["imagePacks"][pack]] if pack >= 0 else ([""], [], [None])
            cell["metadata"] = {row["name"]: row["each"][number] if "each" in row else row["same"] for row in rows}
            cell["name"], cell["thumbnail"] = names[number], image_of(pictures[number])
            pack, number = page.get("preview", {at: [-1, -1]})[at]
            cell["preview"] = image_of(packs[catalogue["previewPacks"][pack]][2][number]) if pack >= 0 else None
            found.append(cell)
    return found


def image_of(encoded: str | None) -> Image.Image | None:
    if encoded is None:
        return None
    picture = Image.open(io.BytesIO(base64.b64decode(encoded)))
    assert picture.format == "WEBP"
    return picture
