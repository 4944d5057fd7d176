"""What a launch tells while it runs and at its end, as values: this module loads neither torch nor Ray."""

import json
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from statistics import median
from typing import Any, Literal

from pipeline.output.finalize import Finalized
from pipeline.planning.amount import Amount
from pipeline.planning.no_effect import NoEffect
from pipeline.rendering.counters import EngineCounters
from pipeline.storage.traffic import Traffic

Tell = Callable[[str], None]
"""Takes a sentence for people."""
RECENT_S = 60.0
"""What is said of the present is measured over so long."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Drawn:
    """The work of a worker's process since it began; not all of it is committed."""

    images: int
    engine: EngineCounters


@dataclass(frozen=True, slots=True, kw_only=True)
class Mark:
    """What a process had done at a moment."""

    at_s: float
    """By the driver's monotonic clock."""
    work: float
    """Megapixel-evaluations through its engine, of images under way too."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Telling:
    """A worker's process by what it told."""

    first: Mark
    recent: tuple[Mark, ...]
    """Up to what it told last; as far back as ``RECENT_S`` and to the telling before at least, where there is one."""
    busy_s: float
    """Of its engine."""
    committed: float = 0.0
    """Megapixel-evaluations of images that have an outcome."""

    @property
    def last(self) -> Mark:
        return self.recent[-1]

    @property
    def rate(self) -> float:
        """Megapixel-evaluations per second, of late; by its engine's own clock until it has told twice."""
        return self._since(self.recent[0])

    @property
    def mean_rate(self) -> float:
        """The same from its first telling on."""
        return self._since(self.first)

    def then(self, mark: Mark, busy_s: float, committed: float) -> "Telling":
        """After one more telling, in which images of ``committed`` had outcomes."""
        recent = [*self.recent, mark]
        while len(recent) > 2 and recent[1].at_s <= mark.at_s - RECENT_S:
            del recent[0]
        return Telling(first=self.first, recent=tuple(recent), busy_s=busy_s, committed=self.committed + committed)

    def _since(self, mark: Mark) -> float:
        if self.last.at_s > mark.at_s:
            return (self.last.work - mark.work) / (self.last.at_s - mark.at_s)
        return self.last.work / self.busy_s if self.busy_s else 0.0


@dataclass(frozen=True, slots=True, kw_only=True)
class Progress:
    """How far a launch is; counts are of this launch."""

    total: Amount
    ok: int = 0
    failed: int = 0
    megapixel_evaluations: float = 0.0
    """Of images that have an outcome."""
    drawn: int = 0
    """Images that workers have drawn and that have no outcome yet."""
    ready: int = 0
    """Workers that have loaded the model."""
    tellings: tuple[Telling, ...] = ()
    """Of as many processes as can be at work at once: of others, those that were silent longest are taken for gone."""
    engine: EngineCounters = field(default_factory=EngineCounters)
    """Of all of them."""

    @property
    def images(self) -> int:
        return self.ok + self.failed

    @property
    def workers(self) -> int:
        """Number of workers that have reported work."""
        return len(self.tellings)


@dataclass(frozen=True, slots=True, kw_only=True)
class Report:
    """What a launch did; the counts are of this launch."""

    output_uri: str
    finalized: Finalized
    launch_id: str | None = None
    """None when nothing was rendered."""
    planned: int = 0
    """Distinct images that the launch was about, those that were there included."""
    requested: int | None = None
    """Images that the manifest's rows and the sweep ask for, repeated ones too; None for a part of a manifest."""
    no_effect: NoEffect = field(default_factory=NoEffect)
    """Parts of the job that have no effect."""
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
    warnings: tuple[str, ...] = ()
    """Sentences about input that may not mean what it seems."""
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
    """Megapixel-evaluations per second of each process, the slowest first."""
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
            "requested": self.requested,
            "planned": self.planned,
            "no_effect": self.no_effect.facts(),
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
            "warnings": list(self.warnings),
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
