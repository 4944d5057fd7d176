"""What a sheet keeps of each image, gathered in files that are written once: a later build only adds to them.

A pack is a script, since a page that was opened from disk may load scripts and nothing else. Pictures in it are
base64: `datasets` takes image files below an output for images of it, and a hundred thousand small files are slow to
copy. Its first line names what is in it, so that no index can contradict the packs that are there.
"""

import json
import re
from base64 import b64encode
from contextlib import closing
from dataclasses import dataclass
from hashlib import blake2b
from typing import Any

from pipeline.output.archives import plain_json
from pipeline.storage.base import ObjectStore

PAGES_PREFIX = "pages/"
_PAGE = re.compile(rf"{PAGES_PREFIX}(prompts|cells|images\d+|previews\d+)-[0-9a-f]{{16}}\.js")
_SAFE = 2**53
"""From here on JavaScript's numbers are not exact."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Entry:
    """What is kept of an image, or of a task without one."""

    row: dict[str, Any] | None
    """All its metadata."""
    picture: bytes | None
    """WebP."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Place:
    """Where an entry is."""

    pack: str
    number: int


class Packs:
    """All packs of a kind; from one thread."""

    def __init__(self, store: ObjectStore, kind: str, max_entries: int, max_bytes: int) -> None:
        """``kind`` changes whenever the content of an entry would: others are not found then."""
        self._store, self._kind = store, kind
        self._max_entries, self._max_bytes = max_entries, max_bytes
        self._held: dict[str, Entry] = {}
        self._held_bytes = 0
        self.places: dict[str, Place] = {}
        """Of what is written, by name."""
        for info in store.list(f"{PAGES_PREFIX}{kind}-"):
            pack = info.key.removeprefix(PAGES_PREFIX).removesuffix(".js")
            self._place(pack, _names_in(store, info.key))

    def __contains__(self, name: str) -> bool:
        return name in self.places or name in self._held

    def add(self, name: str, entry: Entry) -> None:
        self._held[name] = entry
        self._held_bytes += len(entry.picture or b"")
        if len(self._held) >= self._max_entries or self._held_bytes >= self._max_bytes:
            self.flush()

    def flush(self) -> None:
        """Write what is held, if anything is."""
        if not self._held:
            return
        names = list(self._held)
        rows = [entry.row or {} for entry in self._held.values()]
        pictures = [b64encode(entry.picture).decode() if entry.picture else None for entry in self._held.values()]
        pack = put_page(self._store, self._kind, names, _columns(rows), pictures)
        self._place(pack, names)
        self._held, self._held_bytes = {}, 0

    def _place(self, pack: str, names: list[str]) -> None:
        self.places |= {name: Place(pack=pack, number=number) for number, name in enumerate(names)}


def put_page(store: ObjectStore, kind: str, *content: Any) -> str:
    """Write a script that hands this content to the page, a line per argument; its name has a digest of it."""
    lines = ",\n".join(as_script(part) for part in content)
    name = f"{kind}-{blake2b(lines.encode(), digest_size=8).hexdigest()}"
    store.put(page_key(name), f'darkroom.take("{name}",{lines});\n'.encode())
    return name


def page_key(name: str) -> str:
    return f"{PAGES_PREFIX}{name}.js"


def is_page_key(key: str) -> bool:
    """Whether it is such as ``put_page`` makes: what else lies in this folder is somebody's own."""
    return _PAGE.fullmatch(key) is not None


def as_script(value: Any) -> str:
    """JSON that is ASCII and ends no script element, whatever text is in it."""
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"))
    return text.replace("<", "\\u003c").replace(">", "\\u003e").replace("&", "\\u0026")


def exact(value: Any) -> Any:
    """A value of Arrow that JavaScript reads as it is: whole numbers too large for it become texts."""
    if isinstance(value, int) and not isinstance(value, bool):
        return value if -_SAFE < value < _SAFE else str(value)
    if isinstance(value, list | tuple):
        return [exact(inner) for inner in value]
    if isinstance(value, dict):
        return {str(key): exact(inner) for key, inner in value.items()}
    return plain_json(value)


def _columns(rows: list[dict[str, Any]]) -> list[dict[str, Any]]:
    """The rows with what is the same in all of them said once. Names are values: a column may have any."""
    longest = max(rows, key=len)  # it has nearly all columns, and in their order
    names = dict.fromkeys([*longest, *(name for row in rows for name in row)])
    columns = {name: [exact(row.get(name)) for row in rows] for name in names}
    return [
        {"name": name, **({"same": values[0]} if all(value == values[0] for value in values) else {"each": values})}
        for name, values in columns.items()
    ]


def _names_in(store: ObjectStore, key: str) -> list[str]:
    """Nothing where the file is not what we wrote: what it had is made again, and it is deleted as nobody's."""
    with closing(store.open(key)) as file:
        head = file.readline()
    try:
        names = json.loads(head[head.index(b",") + 1 :].rstrip(b",\n"))
    except ValueError:
        return []
    return names if isinstance(names, list) else []
