"""The decision about images that the model's own safety checker flags. Only a model with a checker loads torch."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.model.files import has_checker
from pipeline.rendering.results import Failed, Outcome, Rendered

if TYPE_CHECKING:
    from pipeline.rendering.safety import SafetyChecker


class Judge:
    """A check of every outcome before it is passed on."""

    def __init__(self, checker: "SafetyChecker | None", *, drop: bool) -> None:
        self._checker, self._drop = checker, drop

    def __call__(self, outcome: Outcome) -> Outcome:
        """Return the outcome unchanged, marked as flagged, or, with ``drop``, a failure in place of a flagged image."""
        if self._checker is None or not isinstance(outcome, Rendered) or not self._checker.flagged(outcome.pixels):
            return outcome
        if not self._drop:
            return replace(outcome, flagged=True)
        return Failed(
            task=outcome.task, stage="check", verdict="flagged", error="Flagged: the model's safety checker flagged it"
        )


def load_judge(folder: Path, *, checked: bool, drop: bool, dtype: str, device: str) -> Judge:
    """Return the judge of a model's images. It flags none unless ``checked`` is set and the model has a checker.

    Raise ``ModelError`` as ``load_checker`` does.
    """
    if not (checked and has_checker(folder)):
        return Judge(None, drop=drop)
    from pipeline.rendering.safety import load_checker  # loads torch

    return Judge(load_checker(folder, dtype=dtype, device=device), drop=drop)
