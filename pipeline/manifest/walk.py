"""Local files below a folder that a person named: links are followed, and names left out are not entered."""

import os
from collections.abc import Callable, Iterator
from pathlib import Path

from pipeline.errors import ManifestError
from pipeline.storage.base import is_key

MARKER = "_darkroom"
"""The folder that every output of Darkroom has."""

Enter = Callable[[tuple[str, ...]], bool]
"""Tells from the names below the root whether a file or a folder is wanted."""


def walk(root: Path, wanted: Enter) -> Iterator[tuple[str, Path | None]]:
    """Yield the key of every wanted file, and for one that a link leads to the real path.

    Outputs of Darkroom below the root are left out. A link back to a folder above it is not followed again, as its
    files are found there. Raises ``ManifestError`` for a link that leads nowhere, ``OSError`` for what cannot be read.
    """
    yield from _below(root, (), wanted, linked=False, above=(os.path.realpath(root),))


def _below(
    folder: Path, names: tuple[str, ...], wanted: Enter, *, linked: bool, above: tuple[str, ...]
) -> Iterator[tuple[str, Path | None]]:
    with os.scandir(folder) as listed:
        entries = list(listed)
    if names and any(entry.name == MARKER for entry in entries):
        return
    for entry in entries:
        inner = (*names, entry.name)
        if not wanted(inner):
            continue
        path, is_linked = Path(entry.path), linked or entry.is_symlink()
        # Unlike DirEntry's, the methods of Path take a link to itself for one to nothing.
        found: os.DirEntry[str] | Path = path if entry.is_symlink() else entry
        if found.is_dir():
            real = os.path.realpath(path)
            if real not in above:
                yield from _below(path, inner, wanted, linked=is_linked, above=(*above, real))
        elif found.is_file():
            yield _checked("/".join(inner), path), Path(os.path.realpath(path)) if is_linked else None
        elif entry.is_symlink() and path.suffix.lower() in ("", ".parquet"):
            _refuse_dangling(path)


def _checked(key: str, path: Path) -> str:
    if not is_key(key) and path.suffix.lower() == ".parquet":
        raise ManifestError(
            "invalid file name",
            where="manifest",
            value=os.fsencode(path).decode("utf-8", "backslashreplace"),
            allowed="a name in UTF-8 without control characters, of at most 255 bytes",
        )
    return key


def _refuse_dangling(path: Path) -> None:
    try:
        os.stat(path)
    except OSError as error:
        raise ManifestError(
            f"this symbolic link leads nowhere: {error.strerror}",
            where=str(path),
            value=os.readlink(path),
            allowed="a link to a Parquet file or a folder; remove it if it is no part of the manifest",
        ) from None
