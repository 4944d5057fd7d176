"""What a launch decides about its workers, as values: this module loads neither torch nor Ray."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.model.resolve import ModelSource
from pipeline.model.rows import BatchRows
from pipeline.output.part import RunFacts
from pipeline.storage.s3_settings import S3Settings


@dataclass(frozen=True, slots=True, kw_only=True)
class Pool:
    """The workers of a launch."""

    workers: int
    """At most."""
    least: int | None = None
    """From so many on it grows while work waits and there is room; None: it has its full size from the start."""
    gpus: float
    """Per worker."""
    cpus: int
    """Per CPU worker: threads, and what Ray reserves."""

    @property
    def most_failed_starts(self) -> int:
        """So many workers in a row may fail to start; machines that join late may all be broken."""
        return max(10, self.workers)


@dataclass(frozen=True, slots=True, kw_only=True)
class Device:
    """What workers compute on."""

    name: str
    """``cpu``, or a GPU's name."""
    memory_bytes: int | None
    """Of a GPU."""


@dataclass(frozen=True, slots=True, kw_only=True)
class WorkerSpec:
    """What a worker is told once."""

    model: ModelSource
    facts: RunFacts
    output_uri: str
    s3: S3Settings
    device: str
    """``cpu`` or ``cuda``"""
    rows: BatchRows
    compiled: bool
    call: Mapping[str, Any]
    """Further arguments of the stock pipeline."""
    threads: int
    cache_folder: Path
    launch_id: str
    watchdog_s: float
    """A step of the engine that takes longer ends the process."""
    start_within_s: float = 0.0
    """Workers that have to fetch the model begin somewhen within this time, not all at once."""
    fetch_patience_s: float = 300.0
    """So long a worker asks for a model that does not come; then its process ends."""
    precision: str | None = None
    """``fp8``, or None."""
    drop_flagged: bool = False
    """An image that the model's safety checker flags is a failure; it is loaded where ``model`` says so."""
