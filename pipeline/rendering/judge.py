"""What becomes of a picture that the model's own safety checker flags. Loads torch only for a model that has one."""

from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.model.files import has_checker
from pipeline.rendering.results import Failed, Outcome, Rendered

if TYPE_CHECKING:
    from pipeline.rendering.safety import SafetyChecker


class Judge:
    """Looks at every outcome before anybody gets it."""

    def __init__(self, checker: "SafetyChecker | None", *, drop: bool) -> None:
        self._checker, self._drop = checker, drop

    def __call__(self, outcome: Outcome) -> Outcome:
        """The outcome as it is, flagged, or a failure in place of a picture that may not be kept."""
        if self._checker is None or not isinstance(outcome, Rendered) or not self._checker.flagged(outcome.pixels):
            return outcome
        if not self._drop:
            return replace(outcome, flagged=True)
        return Failed(
            task=outcome.task, stage="check", verdict="flagged", error="Flagged: the model's safety checker flagged it"
        )


def load_judge(folder: Path, *, checked: bool, drop: bool, dtype: str, device: str) -> Judge:
    """The judge of a model's pictures; it flags none where they are not to be ``checked`` or the model has no checker.

    Raises ``ModelError`` as ``load_checker`` does.
    """
    if not (checked and has_checker(folder)):
        return Judge(None, drop=drop)
    from pipeline.rendering.safety import load_checker  # loads torch

    return Judge(load_checker(folder, dtype=dtype, device=device), drop=drop)
