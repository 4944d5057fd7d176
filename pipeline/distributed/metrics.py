"""What a worker tells Prometheus, through the endpoint that Ray has on each node.

The engine and the store keep their sums anyway; here a thread reads them every few seconds, so that rendering never
waits for a metric. Series bear launch, node and worker: each begins at 0 with its process and never goes back.
"""

import threading
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import pyarrow as pa
import pyarrow.compute as pc
from ray.util.metrics import Counter, Gauge, Histogram

from pipeline.distributed.outcomes import Worked

WORKER_TAGS = ("launch", "node", "worker")
"""Of every series: the launch's id, Ray's id of the node, host and process of the worker."""
EVERY_S = 5.0
SHARD_BUCKETS_S = (1.0, 3.0, 10.0, 30.0, 60.0, 120.0, 300.0, 600.0, 1800.0, 3600.0)


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One metric, as people read of it."""

    kind: Literal["counter", "gauge", "histogram"]
    about: str
    tag: str | None = None
    """Beside those of the worker."""
    values: tuple[str, ...] = ("",)
    """Of that tag."""

    @property
    def tags(self) -> tuple[str, ...]:
        return (*WORKER_TAGS, self.tag) if self.tag else WORKER_TAGS


def _counter(about: str, tag: str | None = None, *values: str) -> Metric:
    return Metric(kind="counter", about=about, tag=tag, values=values or ("",))


METRICS: Mapping[str, Metric] = {
    "darkroom_images": _counter("Images committed.", "status", "ok", "failed"),
    "darkroom_evaluations": _counter("Rows of tasks that went through the denoiser."),
    "darkroom_padded_rows": _counter("Dummy rows that went along to keep the batch's shape."),
    "darkroom_denoiser_calls": _counter("Calls of the denoiser."),
    "darkroom_engine_seconds": _counter(
        "Seconds in which the engine worked; its rate is the share of time that it was busy.",
        "stage", "encode", "denoise", "decode",
    ),
    "darkroom_image_encode_seconds": _counter("Seconds of encoding images, in threads beside the engine."),
    "darkroom_put_seconds": _counter("Seconds that threads beside the engine waited for puts."),
    "darkroom_store_requests": _counter("Requests to the store, each attempt of its own."),
    "darkroom_store_retries": _counter("Requests to the store that were sent again after a failure."),
    "darkroom_store_bytes": _counter("Bytes of objects.", "direction", "put", "got"),
    "darkroom_shards_in_flight": Metric(kind="gauge", about="Shards a worker has: the one it renders and the next."),
    "darkroom_shard_seconds": Metric(
        kind="histogram", about="From a shard's arrival at a worker to its commit, waiting for the one before included."
    ),
}  # fmt: skip
"""By name. Ray puts ``ray_`` before it, and ``_total`` behind that of a counter."""

Series = tuple[str, str]
"""Name of a counter, and the value of its own tag."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Committed:
    """What a process has committed since it began."""

    ok: int = 0
    failed: int = 0
    encode_s: float = 0.0

    def plus(self, rows: pa.Table) -> "Committed":
        """With a shard's metadata added."""
        ok = pc.sum(pc.equal(rows["status"], "ok")).as_py() or 0
        return Committed(
            ok=self.ok + ok,
            failed=self.failed + rows.num_rows - ok,
            encode_s=self.encode_s + (pc.sum(rows["encode_s"]).as_py() or 0.0),
        )


def sums(worked: Worked, committed: Committed) -> dict[Series, float]:
    """The value of every counter."""
    engine, traffic = worked.engine, worked.traffic
    return {
        ("darkroom_images", "ok"): committed.ok,
        ("darkroom_images", "failed"): committed.failed,
        ("darkroom_evaluations", ""): engine.evaluations,
        ("darkroom_padded_rows", ""): engine.padded_rows,
        ("darkroom_denoiser_calls", ""): engine.denoiser_calls,
        ("darkroom_engine_seconds", "encode"): engine.encode_s,
        ("darkroom_engine_seconds", "denoise"): engine.denoise_s,
        ("darkroom_engine_seconds", "decode"): engine.decode_s,
        ("darkroom_image_encode_seconds", ""): committed.encode_s,
        ("darkroom_put_seconds", ""): traffic.put_s,
        ("darkroom_store_requests", ""): traffic.requests,
        ("darkroom_store_retries", ""): traffic.retries,
        ("darkroom_store_bytes", "put"): traffic.bytes_put,
        ("darkroom_store_bytes", "got"): traffic.bytes_got,
    }


@dataclass(slots=True)
class Growth:
    """Sums as far as they were told."""

    _told: dict[Series, float] = field(default_factory=dict)

    def since_last(self, now: Mapping[Series, float]) -> dict[Series, float]:
        """What has grown, and by how much: counters take nothing else."""
        grown = {series: total - self._told.get(series, 0) for series, total in now.items()}
        self._told.update(now)
        return {series: more for series, more in grown.items() if more > 0}


class Metrics:
    """The metrics of one worker process, from any of its threads."""

    def __init__(self, worker: Mapping[str, str], worked: Callable[[], Worked], in_flight: Callable[[], int]) -> None:
        """``worker``: values of ``WORKER_TAGS``. ``worked`` and ``in_flight`` are asked every few seconds."""
        self._worked, self._in_flight = worked, in_flight
        self._counters = _made(Counter, "counter", worker)
        self._gauges = _made(Gauge, "gauge", worker)
        self._histograms = _made(Histogram, "histogram", worker, boundaries=list(SHARD_BUCKETS_S))
        self._committed, self._growth = Committed(), Growth()
        self._telling = threading.Lock()
        threading.Thread(target=self._tell_for_ever, name="metrics", daemon=True).start()

    def shard(self, rows: pa.Table, seconds: float) -> None:
        """A shard was committed."""
        with self._telling:
            self._committed = self._committed.plus(rows)
        self._histograms["darkroom_shard_seconds"].observe(seconds)
        self.tell()

    def tell(self) -> None:
        """Bring all metrics up to date."""
        with self._telling:
            for (name, value), more in self._growth.since_last(sums(self._worked(), self._committed)).items():
                tag = METRICS[name].tag
                self._counters[name].inc(more, {tag: value} if tag else None)
        self._gauges["darkroom_shards_in_flight"].set(self._in_flight())

    def _tell_for_ever(self) -> None:
        """A gauge that is not told for a while is taken for that of a dead process."""
        while True:
            self.tell()
            time.sleep(EVERY_S)


def _made(kind: type[Any], name: str, worker: Mapping[str, str], **more: Any) -> dict[str, Any]:
    return {
        metric_name: kind(metric_name, metric.about, tag_keys=metric.tags, **more).set_default_tags(dict(worker))
        for metric_name, metric in METRICS.items()
        if metric.kind == name
    }
