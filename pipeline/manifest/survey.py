"""Facts of a manifest's rows to know before rendering: own values of settings, syntax of other programs."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.manifest.open import ManifestFile
from pipeline.manifest.signs import Signs
from pipeline.manifest.wide_seeds import row_warnings, rows_with_wide_seeds

MAX_VALUES = 10_000
"""Distinct values are counted up to here."""

_SETTINGS: Mapping[str, tuple[str, ...]] = {
    "seeds": ("seed", "seeds"),
    "guidance scales": ("guidance_scale",),
    "step counts": ("num_inference_steps",),
    "schedulers": ("scheduler",),
    "sizes": ("width", "height"),
}
"""Settings that a manifest can replace → our names of their columns."""


@dataclass(frozen=True, slots=True, kw_only=True)
class OwnValues:
    """A setting whose values come from the manifest's columns."""

    setting: str
    columns: tuple[str, ...]
    """As the files call them."""
    values: int
    """Distinct values, at most ``MAX_VALUES``."""
    more: bool
    """Whether there are more than ``values``."""

    def __str__(self) -> str:
        columns = "column" + "s" * (len(self.columns) > 1)
        number = f"{'more than ' * self.more}{self.values:,}"
        setting = self.setting if self.values != 1 else self.setting.removesuffix("s")
        return f"{self.setting} come from the manifest's {columns} {' and '.join(self.columns)}: {number} {setting}"


class Survey:
    """Counts over batches of validated rows, each seen once."""

    def __init__(self) -> None:
        self._signs = Signs()
        self._wide_seed_rows = 0
        self._values: dict[str, set[object]] = {setting: set() for setting in _SETTINGS}

    def see(self, table: pa.Table) -> None:
        """Count the rows of a batch."""
        self._signs.see(table)
        self._wide_seed_rows += rows_with_wide_seeds(table)
        for setting, values in self._values.items():
            if len(values) <= MAX_VALUES:
                values.update(_distinct(table, setting))

    def warnings(self) -> tuple[str, ...]:
        return (*self._signs.warnings(), *row_warnings(self._wide_seed_rows))

    def own_values(self, files: Sequence[ManifestFile]) -> tuple[OwnValues, ...]:
        """Return the settings that come from columns somewhere."""
        return tuple(
            OwnValues(
                setting=setting,
                columns=tuple(dict.fromkeys(_columns(files, _SETTINGS[setting]))),
                values=min(len(values), MAX_VALUES),
                more=len(values) > MAX_VALUES,
            )
            for setting, values in self._values.items()
            if values
        )


def _distinct(table: pa.Table, setting: str) -> Iterable[object]:
    values = _cells(table, setting)
    return () if values.null_count == len(values) else pc.unique(values.drop_null()).to_pylist()


def _cells(table: pa.Table, setting: str) -> pa.ChunkedArray:
    """The cells of a setting; a size is one number, its width in the upper half."""
    if setting == "sizes":
        width, height = (table[side].cast(pa.uint64()) for side in ("width", "height"))
        return pc.add(pc.shift_left(width, pa.scalar(32, pa.uint64())), height)
    column = table[_SETTINGS[setting][-1]]
    return pc.list_flatten(column) if setting == "seeds" else column


def _columns(files: Sequence[ManifestFile], ours: tuple[str, ...]) -> Iterator[str]:
    return (file.columns[name] for file in files for name in ours if name in file.columns)
