"""Files of a manifest that are no Parquet, or not any more."""

import os
import random
import socket
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path

import pyarrow as pa
import pyarrow.parquet as pq

from tests.faults.trials import Make, Trial, Verdict, good_rows, settings, table_of, write_table

MAGIC, ENCRYPTED = b"PAR1", b"PARE"
_COLUMN = b"\x06prompt\x15"
"""In a footer: the end of a column's path, then the field with its codec (Thrift's compact protocol)."""
_OTHER_FILES: tuple[bytes, ...] = (
    b"prompt\na red circle\n", b'{"prompt": "a red circle"}\n', b"\x89PNG\r\n\x1a\n", b"PK\x03\x04", b"\x1f\x8b\x08",
    b"SQLite format 3\0", b"version https://git-lfs.github.com/spec/v1\n", b"<!DOCTYPE html>", b"\0" * 4096,
    b"ARROW1\0\0", MAGIC, MAGIC + MAGIC, MAGIC + b"\xff" * 4 + MAGIC, MAGIC + b"\0" * 4 + MAGIC,
    MAGIC + b"\xff" * 60 + b"\x3c\0\0\0" + MAGIC,
)  # fmt: skip


def _cut(drawn: random.Random, body: bytes) -> bytes:
    return body[: drawn.randrange(1, len(body))]


def _other_magic(drawn: random.Random, body: bytes) -> bytes:
    return body[:-4] + drawn.choice([b"PAR2", b"1RAP", b"\0\0\0\0", b"ORC\n"])


def _encrypted(_: random.Random, body: bytes) -> bytes:
    return ENCRYPTED + body[4:-4] + ENCRYPTED


def _other_codec(drawn: random.Random, body: bytes) -> bytes:
    """LZO, which nobody reads, or a codec there is none of."""
    at = body.rindex(_COLUMN) + len(_COLUMN)
    return body[:at] + bytes([2 * drawn.choice([3, 8, 20, 63])]) + body[at + 1 :]


def _no_pages(drawn: random.Random, body: bytes) -> bytes:
    """A sound footer, and something else where the pages were."""
    footer = int.from_bytes(body[-8:-4], "little") + 8
    length = len(body) - footer - 4
    return MAGIC + drawn.choice([b"\0" * length, drawn.randbytes(length), b""]) + body[-footer:]


def _longer_footer(drawn: random.Random, body: bytes) -> bytes:
    return body[:-8] + drawn.choice([2**31 - 1, 2**32 - 1, len(body) + 1, 0, 1]).to_bytes(4, "little") + MAGIC


def _other_file(drawn: random.Random, _: bytes) -> bytes:
    return drawn.choice(_OTHER_FILES) + drawn.choice([b"", drawn.randbytes(300)])


BROKEN: Mapping[str, Callable[[random.Random, bytes], bytes]] = {
    "truncated Parquet": _cut,
    "not Parquet": _other_file,
    "empty file": lambda _, __: b"",
    "wrong magic": _other_magic,
    "encrypted footer": _encrypted,
    "unsupported codec": _other_codec,
    "footer of another length": _longer_footer,
    "Parquet without its pages": _no_pages,
}
"""What becomes of a good file's bytes."""


def _good_file(drawn: random.Random, path: Path) -> int:
    """Returns its rows."""
    rows = good_rows(drawn)
    write_table(path, table_of(rows), drawn.randint(1, 50))
    return len(rows)


def _broken(harm: Callable[[random.Random, bytes], bytes], drawn: random.Random, folder: Path) -> Trial:
    """The file alone, or in a directory with good ones."""
    (folder / "m").mkdir()
    for name in drawn.choice([("a",), ("a", "b"), ("a", "b", "c")]):
        _good_file(drawn, folder / "m" / f"{name}.parquet")
    bad = drawn.choice(sorted((folder / "m").iterdir()))
    bad.write_bytes(harm(drawn, bad.read_bytes()))
    return Trial(settings=settings(folder), usable=Verdict.REFUSED)


def _flipped(drawn: random.Random, folder: Path) -> Trial:
    """A few bytes are others: chance decides whether that is noticed."""
    path = folder / "m.parquet"
    pq.write_table(table_of(good_rows(drawn)), path, write_page_checksum=drawn.choice([True, False]))
    body = bytearray(path.read_bytes())
    for _ in range(drawn.choice([1, 3, 30])):
        body[drawn.randrange(4, len(body) - 4)] ^= drawn.randrange(1, 256)
    path.write_bytes(bytes(body))
    return Trial(settings=settings(folder, manifest=path), usable=Verdict.EITHER)


def _no_rows(drawn: random.Random, folder: Path) -> Trial:
    empty = pa.table({"prompt": pa.array([], drawn.choice([pa.string(), pa.null(), pa.large_string()]))})
    write_table(folder / "m" / "a.parquet", empty)
    rows = drawn.choice([0, _good_file(drawn, folder / "m" / "b.parquet")])
    if not rows:
        (folder / "m" / "b.parquet").unlink()
    return Trial(settings=settings(folder), usable=frozenset(range(rows)))


def _no_file(drawn: random.Random, folder: Path) -> Trial:
    (folder / "m").mkdir()
    (folder / "m" / "notes.txt").write_text("prompt\n")
    given = [
        "m",
        "none.parquet",
        "m/*.parquet",
        "m/notes.txt",
        "m/[",
        "**",
        "m/notes.txt/x",
        "x" * 300,
        "\0",
        " ",
        "~nobody/x",
    ]
    return Trial(settings=settings(folder, manifest=folder / drawn.choice(given)), usable=Verdict.REFUSED)


def _special_file(drawn: random.Random, folder: Path) -> Trial:
    """A pipe, a device, a socket, a link to nowhere or in a circle: nothing to wait for."""
    (folder / "m").mkdir()
    path = folder / "m" / "a.parquet"
    kind = drawn.choice(["pipe", "device", "socket", "lost", "circle", "directory"])
    if kind == "pipe":
        os.mkfifo(path)
    elif kind == "socket":
        with socket.socket(socket.AF_UNIX) as made:
            made.bind(str(path))
    elif kind == "directory":
        path.mkdir()
    else:
        path.symlink_to({"device": "/dev/zero", "lost": "gone", "circle": path.name}[kind])
    manifest = drawn.choice([path, path.parent])
    return Trial(settings=settings(folder, manifest=manifest), usable=Verdict.REFUSED)


FILES: Mapping[str, Make] = {
    **{name: partial(_broken, harm) for name, harm in BROKEN.items()},
    "Parquet with flipped bytes": _flipped,
    "manifest without rows": _no_rows,
    "no such manifest": _no_file,
    "manifest that is no file": _special_file,
}
