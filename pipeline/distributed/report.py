"""What a launch tells while it runs and at its end, as values: this module loads neither torch nor Ray."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from pipeline.output.finalize import Finalized
from pipeline.planning.amount import Amount
from pipeline.rendering.counters import EngineCounters
from pipeline.storage.traffic import Traffic

Tell = Callable[[str], None]
"""Takes a sentence for people."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Telling:
    """A worker's process by what it told last."""

    at_s: float
    """When, by the driver's monotonic clock."""
    evaluations: int
    """Through its engine, of images under way too."""
    busy_s: float
    """Of its engine."""
    committed: int = 0
    """Evaluations of images that have an outcome."""
    first_at_s: float
    first_evaluations: int
    """When it told first, and what."""

    @property
    def rate(self) -> float:
        """Evaluations per second, between the first time and the last; by its engine's own clock before."""
        if self.at_s > self.first_at_s:
            return (self.evaluations - self.first_evaluations) / (self.at_s - self.first_at_s)
        return self.evaluations / self.busy_s if self.busy_s else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a launch is; counts are of this launch."""

    total: Amount
    ok: int = 0
    failed: int = 0
    evaluations: int = 0
    workers: int = 0
    """That have told of an outcome."""
    tellings: tuple[Telling, ...] = ()
    engine: EngineCounters = field(default_factory=EngineCounters)
    """Of all of them."""

    @property
    def images(self) -> int:
        return self.ok + self.failed


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a launch did; the counts are of this launch."""

    output_uri: str
    finalized: Finalized
    launch_id: str | None = None
    """None when nothing was rendered."""
    added_key: str | None = None
    """Of the list of this launch's tasks with an outcome; None when there is none."""
    added_by_manifest: Mapping[str, int] = field(default_factory=dict)
    """Images rendered by the manifest file that asked for them."""
    already_failed: int = 0
    """Tasks of the run that earlier launches committed as failed; they are not tried again."""
    ok: int = 0
    failed: int = 0
    failures: tuple[dict[str, object], ...] = ()
    """The first failed rows."""
    rejected_rows: int = 0
    workers: int = 0
    model_loads: int = 0
    verdicts: Mapping[str, int] = field(default_factory=dict)
    """Images by verdict, but for those that are ok."""
    worker_deaths: int = 0
    """Processes that died of their work; those of lost nodes are not counted."""
    engine: EngineCounters = field(default_factory=EngineCounters)
    """Of all workers."""
    image_encode_s: float = 0.0
    """Spent on encoding images, in threads beside the engines."""
    traffic: Traffic = field(default_factory=Traffic)
    """With the output, of the driver and all workers; what dead ones had not told is missing."""
    worker_rates: tuple[float, ...] = ()
    """Evaluations per second of each process, the slowest first."""
    cost: float | None = None
    """Of the waves, where a price per hour is given."""
    elapsed_s: float = 0.0
    images_per_s: float | None = None
    """Over the waves, the loading of models included; None when nothing was rendered."""
    stopped: Literal["interrupted", "time"] | None = None
    """Why the launch ended before all was rendered; None when it did not."""
    remaining: int = 0
    """Images without an outcome, after a stop."""

    def as_json(self) -> str:
        """One line; ``docs/cluster.md`` names the keys."""
        facts: dict[str, Any] = {
            "output": self.output_uri,
            "launch": self.launch_id,
            "added": self.ok,
            "added_by_manifest": dict(self.added_by_manifest),
            "added_list": self.added_key,
            "failed": self.failed,
            "failed_before": self.already_failed,
            "verdicts": dict(self.verdicts),
            "committed": self.finalized.ok,
            "remaining": self.remaining,
            "stopped": self.stopped,
            "rejected_rows": self.rejected_rows,
            "workers": self.workers,
            "model_loads": self.model_loads,
            "worker_deaths": self.worker_deaths,
            "elapsed_s": self.elapsed_s,
            "images_per_s": self.images_per_s,
            "evaluations": self.engine.evaluations,
            "real_rows": self.engine.real_rows if self.engine.denoiser_calls else None,
            "prompts_s": self.engine.encode_s,
            "denoise_s": self.engine.denoise_s,
            "decode_s": self.engine.decode_s,
            "image_encode_s": self.image_encode_s,
            "slowest_worker": self.slowest_worker,
            "store_requests": self.traffic.requests,
            "store_retries": self.traffic.retries,
            "store_bytes_put": self.traffic.bytes_put,
            "store_bytes_got": self.traffic.bytes_got,
            "cost": self.cost,
        }
        return json.dumps({key: round(value, 4) if isinstance(value, float) else value for key, value in facts.items()})

    @property
    def slowest_worker(self) -> float | None:
        """Its rate as a share of the median's; None before two have told."""
        rates = self.worker_rates
        return rates[0] / median(rates) if len(rates) > 1 and median(rates) else None
