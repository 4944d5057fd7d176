"""Makes what the packs of a sheet do not have yet: each image is read once, each part once.

Parts are taken in the order in which the sheet first shows them, so that what is looked at together is mostly in the
same packs, and a build that is stopped keeps what it has made.
"""

from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from typing import Any

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.errors import JobBrokenError, ObjectMissingError
from pipeline.output.parallel import in_parallel
from pipeline.output.part import read_part
from pipeline.output.pictures import read_images
from pipeline.output.values import python_rows
from pipeline.report.packs import Entry, Packs
from pipeline.report.rows import SheetRows
from pipeline.report.thumbnails import PREVIEW, THUMBNAIL, UNREADABLE_IMAGE, Copy, small_copies
from pipeline.storage.base import ObjectStore


@dataclass(frozen=True, slots=True, kw_only=True)
class Filling:
    """How far it is."""

    made: int
    to_make: int


@dataclass(frozen=True, slots=True, kw_only=True)
class _Item:
    name: str
    row: dict[str, Any]
    fetch: Callable[[], bytes] | None
    """None where nothing was rendered."""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Made:
    name: str
    row: dict[str, Any]
    copies: list[bytes]
    lost: bool = False


def fill(
    store: ObjectStore,
    rows: SheetRows,
    images: Packs,
    previews: Packs | None,
    on_progress: Callable[[Filling], None],
) -> tuple[int, int]:
    """Add every row to ``images``, and every image to ``previews`` where these are wanted.

    Returns how many rows were added, and how many have an image that cannot be read: those are left out, and tried
    again by the next build.
    """
    names = rows.names()
    missing = np.array([_is_missing(*row, images, previews) for row in zip(names, rows.ok.tolist(), strict=True)])
    wanted = np.flatnonzero(missing)
    copies = [THUMBNAIL, PREVIEW] if previews is not None else [THUMBNAIL]
    made = lost = 0
    for one in in_parallel(partial(_make, copies), _items(store, rows, names, wanted)):
        made, lost = made + (not one.lost), lost + one.lost
        _add(one, images, previews)
        on_progress(Filling(made=made + lost, to_make=len(wanted)))
    for packs in filter(None, (images, previews)):
        packs.flush()
    return made, lost


def _is_missing(name: str, ok: bool, images: Packs, previews: Packs | None) -> bool:
    return name not in images or (previews is not None and ok and name not in previews)


def _items(store: ObjectStore, rows: SheetRows, names: list[str], wanted: NDArray[np.int64]) -> Iterator[_Item]:
    """What is to be made, part by part."""
    part_of, row_of = (rows.table[column].to_numpy() for column in ("part", "row"))
    parts, first = np.unique(part_of[wanted], return_index=True)
    by_part = np.split(wanted[np.argsort(part_of[wanted], kind="stable")], np.cumsum(np.bincount(part_of[wanted])))
    for part in parts[np.argsort(first)].tolist():
        places = by_part[part]
        described = python_rows(read_part(store, rows.parts[part]).take(pa.array(row_of[places])))
        by_file = {row["file_name"]: (names[place], row) for place, row in zip(places, described, strict=True)}
        for place, row in zip(places, described, strict=True):
            if row["file_name"] is None:
                yield _Item(name=names[place], row=_without_nulls(row), fetch=None)
        for file_name, fetch in read_images(store, filter(None, by_file)):
            name, row = by_file[file_name]
            yield _Item(name=name, row=_without_nulls(row), fetch=fetch)


def _make(copies: list[Copy], item: _Item) -> _Made:
    if item.fetch is None:
        return _Made(name=item.name, row=item.row, copies=[])
    try:
        return _Made(name=item.name, row=item.row, copies=small_copies(item.fetch(), copies))
    except (ObjectMissingError, JobBrokenError, *UNREADABLE_IMAGE):
        return _Made(name=item.name, row=item.row, copies=[], lost=True)


def _add(one: _Made, images: Packs, previews: Packs | None) -> None:
    if one.lost:
        return
    if one.name not in images:
        images.add(one.name, Entry(row=one.row, picture=one.copies[0] if one.copies else None))
    if previews is not None and one.copies and one.name not in previews:
        previews.add(one.name, Entry(row=None, picture=one.copies[1]))


def _without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    return {name: value for name, value in row.items() if value is not None}
