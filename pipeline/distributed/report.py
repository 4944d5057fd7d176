"""What a launch tells while it runs and at its end, as values: this module loads neither torch nor Ray."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

from pipeline.output.finalize import Finalized
from pipeline.planning.amount import Amount

Tell = Callable[[str], None]
"""Takes a sentence for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a launch is; counts are of this launch."""

    total: Amount
    ok: int = 0
    failed: int = 0
    evaluations: int = 0

    @property
    def images(self) -> int:
        return self.ok + self.failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a launch did."""

    output_uri: str
    launch_id: str | None
    """None when nothing was rendered."""
    added_key: str | None
    """Of the list of this launch's tasks with an outcome; None when there is none."""
    added_by_manifest: Mapping[str, int]
    """Images rendered by the manifest file that asked for them."""
    already_failed: int
    """Tasks of the run that earlier launches committed as failed; they are not tried again."""
    ok: int
    failed: int
    failures: tuple[dict[str, object], ...]
    """The first failed rows of this launch."""
    rejected_rows: int
    workers: int
    model_loads: int
    worker_deaths: int
    """Processes that died of their work; those of lost nodes are not counted."""
    elapsed_s: float
    images_per_s: float | None
    """Over the waves, the loading of models included; None when nothing was rendered."""
    finalized: Finalized
    stopped: Literal["interrupted", "time"] | None
    """Why the launch ended before all was rendered; None when it did not."""
    remaining: int
    """Images without an outcome, after a stop."""
