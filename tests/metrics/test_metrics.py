"""Sums become metrics: what a worker tells, without Ray."""

import pyarrow as pa

from pipeline.distributed.metrics import METRICS, Committed, Growth, sums
from pipeline.distributed.outcomes import Worked
from pipeline.rendering.counters import EngineCounters
from pipeline.storage.traffic import Meter, Traffic


def test_every_counter_has_a_sum() -> None:
    counters = {
        (name, value) for name, metric in METRICS.items() if metric.kind == "counter" for value in metric.values
    }
    assert {*sums(Worked(), Committed())} == counters


def test_sums_are_those_of_engine_store_and_commits() -> None:
    engine = EngineCounters(evaluations=40, padded_rows=8, denoiser_calls=3, encode_s=0.5, denoise_s=7.0, decode_s=1.5)
    traffic = Traffic(requests=9, retries=2, bytes_put=700, bytes_got=30, put_s=0.25)
    found = sums(Worked(engine=engine, traffic=traffic), Committed(ok=3, failed=1, encode_s=0.125))
    assert sorted(found.values()) == sorted([3, 1, 40, 8, 3, 0.5, 7.0, 1.5, 0.125, 0.25, 9, 2, 700, 30])
    assert found["darkroom_engine_seconds", "denoise"] == 7.0
    assert found["darkroom_store_bytes", "put"] == 700


def test_failed_images_count_apart_and_have_no_encoding() -> None:
    rows = pa.table({"status": ["ok", "failed", "ok"], "encode_s": [0.5, None, 0.25]})
    nothing = pa.table({"status": pa.array([], pa.string()), "encode_s": pa.array([], pa.float64())})
    assert Committed().plus(rows).plus(nothing).plus(rows) == Committed(ok=4, failed=2, encode_s=1.5)


def test_only_growth_is_told() -> None:
    growth = Growth()
    assert growth.since_last({("a", ""): 5, ("b", "x"): 0}) == {("a", ""): 5}
    assert growth.since_last({("a", ""): 5, ("b", "x"): 0.5}) == {("b", "x"): 0.5}
    assert growth.since_last({("a", ""): 7, ("b", "x"): 0.5}) == {("a", ""): 2}


def test_the_time_of_puts_is_counted_and_not_compared() -> None:
    meter = Meter()
    for _ in range(2):
        with meter.putting():
            pass
    assert meter.total.put_s > 0
    assert (meter.total + meter.total).put_s == 2 * meter.total.put_s
    assert meter.total == Traffic()
