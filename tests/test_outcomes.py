"""What workers tell, added up by the driver."""

import pyarrow as pa

from pipeline.distributed.outcomes import SHOWN_FAILURES, Tally, Teller, Worked
from pipeline.distributed.report import Drawn
from pipeline.identity import ids_to_bytes
from pipeline.output.schema import METADATA_SCHEMA
from pipeline.planning.amount import Amount
from pipeline.rendering.counters import EngineCounters
from pipeline.storage.traffic import Traffic


def ids(first: int, number: int) -> list[bytes]:
    return [index.to_bytes(16, "big") for index in range(first, first + number)]


def shard(first: int, number: int) -> pa.Table:
    """Of pictures of a quarter of a megapixel, more evaluations for each."""
    sides = {side: pa.array([500] * number, pa.uint32()) for side in ("width", "height")}
    evaluations = pa.array([10 + n for n in range(number)], pa.uint32())
    return pa.table({"task_id": ids(first, number), "evaluations": evaluations, **sides})


def metadata(first: int, number: int, status: str = "ok") -> pa.Table:
    """Of a shard's tasks, in another order than planned."""
    rows = [
        {"task_id": item.hex(), "status": status, "encode_s": 0.5, "prompt_id": f"p{item[-1]}"}
        for item in reversed(ids(first, number))
    ]
    return pa.Table.from_pylist(rows, schema=pa.schema([f.with_nullable(True) for f in METADATA_SCHEMA]))


def worked(rows: int, requests: int) -> Worked:
    engine = EngineCounters(evaluations=rows, megapixel_evaluations=rows / 4, decode_s=rows / 10)
    return Worked(engine=engine, traffic=Traffic(requests=requests))


def test_shards_of_several_workers_add_up() -> None:
    one, other = Teller(worker="a:1", model_load="x"), Teller(worker="b:2", model_load="y")
    tally = Tally.of(Amount())
    tally.take(one.told(metadata(5, 3), shard(5, 3), worked(60, 9)), 0.0)
    tally.take(one.told(metadata(0, 2), shard(0, 2), worked(21, 4)), 0.0)  # written earlier, told later
    tally.take(other.told(metadata(8, 1, "failed"), shard(8, 1), worked(10, 2)), 0.0)
    assert (tally.progress.ok, tally.progress.failed) == (5, 1)
    assert tally.progress.megapixel_evaluations == (33 + 21 + 10) / 4
    assert (tally.progress.workers, tally.model_loads, tally.encode_s) == (2, 2, 3.0)
    assert tally.worked == worked(70, 11)
    assert sorted(ids_to_bytes(part) for part in tally.reported) == [
        b"".join(ids(0, 2)[::-1]), b"".join(ids(5, 3)[::-1]), b"".join(ids(8, 1))
    ]  # fmt: skip
    assert [row["prompt_id"] for row in tally.failures] == ["p8"]


def test_evaluations_follow_their_tasks() -> None:
    """A worker that stops early commits some tasks of a shard only."""
    teller, tally = Teller(worker="a:1", model_load="x"), Tally.of(Amount())
    tally.take(teller.told(metadata(2, 1), shard(0, 4), worked(12, 1)), 0.0)
    assert tally.progress.megapixel_evaluations == 3


def test_processes_that_died_are_no_workers() -> None:
    """One of two places dies twice: each process that follows takes the place of who was silent longest."""
    tally = Tally.of(Amount(), most_workers=2)
    for second, name in enumerate(["x", "y", "y2", "x", "y3", "x"]):
        teller = Teller(worker=f"a:{name}", model_load=name)
        tally.take(teller.told(metadata(second, 1), shard(second, 1), worked(10 * second, 1)), float(second))
    assert [telling.last.at_s for telling in tally.progress.tellings] == [4.0, 5.0]
    assert (tally.progress.workers, tally.model_loads, tally.progress.ok) == (2, 4, 6)
    assert tally.progress.tellings[-1].committed == 3 * 10 / 4, "a process that was only slow keeps what it has done"


def test_images_that_are_drawn_count_until_their_outcome_comes() -> None:
    def drawn(images: int, evaluations: int) -> Drawn:
        return Drawn(images=images, engine=worked(evaluations, 0).engine)

    tally = Tally.of(Amount())
    tally.hear({"x": drawn(0, 0)}, 0.0)
    assert (tally.progress.drawn, tally.progress.workers) == (0, 0)
    tally.hear({"x": drawn(3, 40), "y": drawn(1, 8)}, 1.0)
    assert (tally.progress.drawn, tally.progress.images, tally.progress.workers) == (4, 0, 2)
    teller = Teller(worker="a:1", model_load="x")
    tally.take(teller.told(metadata(0, 2), shard(0, 2), worked(44, 3)), 2.0)
    tally.hear({"x": drawn(3, 40)}, 2.0)  # told before the outcomes, read after them
    tally.forget("y")
    assert (tally.progress.drawn, tally.progress.images) == (1, 2)
    assert tally.worked == worked(52, 3), "sums never fall"
    assert tally.progress.engine == tally.worked.engine
    tally.hear({"x": drawn(3, 44)}, 9.0)
    (mark,) = {telling.last for telling in tally.progress.tellings if telling.last.at_s > 1.0}
    assert mark.at_s == 2.0, "a process without new work is not slower"


def test_the_first_failures_are_shown() -> None:
    teller, tally = Teller(worker="a:1", model_load="x"), Tally.of(Amount())
    for first in range(0, 3 * SHOWN_FAILURES, 4):
        tally.take(teller.told(metadata(first, 4, "failed"), shard(first, 4), worked(1, 1)), 0.0)
    assert len(tally.failures) == SHOWN_FAILURES
