"""One reading of a manifest against a sweep: the good rows, and what was rejected on the way."""

from collections.abc import Iterator

import numpy as np

from pipeline.manifest.open import Manifest
from pipeline.manifest.read import Batch, read_rows
from pipeline.manifest.survey import Survey
from pipeline.manifest.verdicts import RejectedRow
from pipeline.model.facts import ModelFacts
from pipeline.planning.grids import Axes
from pipeline.planning.limits import Refusal, refusals
from pipeline.planning.rows import Numbered, Rows, keep_rows


def numbered(batch: Batch) -> Numbered:
    """Return the rows of a batch with their numbers over the manifest."""
    return batch.table, batch.first_row + batch.table["manifest_row"].to_numpy()


class Rejections:
    """Reads a manifest and remembers what was rejected on the way."""

    def __init__(self, manifest: Manifest, axes: Axes, model: ModelFacts, keep: int = 10) -> None:
        self._manifest, self._axes, self._model, self._keep = manifest, axes, model, keep
        self._numbers: list[int] = []
        self._reading = True
        self.first: list[RejectedRow] = []
        self.survey = Survey()
        """Over the good rows."""

    @property
    def total(self) -> int:
        return len(self._numbers)

    def numbers(self) -> Rows:
        return np.array(sorted(self._numbers), np.int64)

    def watch(self) -> Iterator[Numbered]:
        """A pass over the good rows; the first pass notes the bad ones."""
        first_pass, self._reading = self._reading, False
        for batch in read_rows(self._manifest, None):
            refused = refusals(batch.table, self._axes, self._model.family, self._model.scheduler_config)
            if first_pass:
                self._note(batch, [*batch.rejected, *(self._rejected(batch, refusal) for refusal in refused)])
            good = np.ones(batch.table.num_rows, np.bool_)
            good[[refusal.row for refusal in refused]] = False
            if good.any():
                kept = keep_rows(numbered(batch), good)
                if first_pass:
                    self.survey.see(kept[0])
                yield kept

    def _note(self, batch: Batch, rejected: list[RejectedRow]) -> None:
        rejected.sort(key=lambda row: row.row)
        self._numbers += [batch.first_row + row.row for row in rejected]
        self.first += rejected[: self._keep - len(self.first)]

    def _rejected(self, batch: Batch, refusal: Refusal) -> RejectedRow:
        file, row = (batch.table[name][refusal.row].as_py() for name in ("manifest_file", "manifest_row"))
        theirs = next(found.columns for found in self._manifest.files if found.name == file)
        return RejectedRow(
            file=file,
            row=row,
            column=theirs.get(refusal.column, refusal.column),
            value=refusal.value,
            reason=refusal.reason,
            allowed=refusal.allowed,
        )
