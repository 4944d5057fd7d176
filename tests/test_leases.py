"""Who is suspected of a worker's death, and what suspects may not disturb."""

import asyncio
from datetime import UTC, datetime, timedelta
from pathlib import Path

import pytest

from pipeline.distributed import leases
from pipeline.distributed.leases import DEATHS_BEFORE_ALONE, NODES_BEFORE_ALONE, Floor, Suspicions
from pipeline.errors import JobBrokenError
from pipeline.output.attempts import Attempts, Process, forget_launch, forget_old
from pipeline.storage.local import LocalStore


def attempts(store: LocalStore, number: int, node: str = "node", launch: str = "launch") -> Attempts:
    return Attempts(store, launch, Process(node_id=node, process_id=f"{number:032x}"))


@pytest.fixture
def store(tmp_path: Path) -> LocalStore:
    return LocalStore(tmp_path)


def test_who_died_with_a_shard_is_counted_until_it_is_committed(store: LocalStore) -> None:
    for number in (1, 2):
        attempts(store, number).begin("a" * 32)
    mine = attempts(store, 3)
    mine.begin("a" * 32)
    suspicions = Suspicions(mine, lambda node: False)
    assert suspicions.deaths("a" * 32) == 2
    assert suspicions.deaths("b" * 32) == 0
    mine.end("a" * 32)
    assert suspicions.deaths("a" * 32) == 0


def test_neither_a_lost_node_nor_an_earlier_launch_makes_a_suspect(store: LocalStore) -> None:
    attempts(store, 1, node="preempted").begin("a" * 32)
    attempts(store, 2, launch="earlier").begin("a" * 32)
    assert Suspicions(attempts(store, 3), lambda node: node == "preempted").deaths("a" * 32) == 0


def test_what_takes_node_after_node_along_is_a_suspect(store: LocalStore) -> None:
    """A node that several processes died with is one; none of them is charged, as the node may have gone by itself."""
    for number in range(2 * NODES_BEFORE_ALONE - 2):
        attempts(store, number, node=f"gone-{number // 2}").begin("a" * 32)
    suspicions = Suspicions(attempts(store, 98), lambda node: node.startswith("gone"))
    assert suspicions.deaths("a" * 32) == 0
    attempts(store, 97, node="gone-too").begin("a" * 32)
    assert suspicions.deaths("a" * 32) == DEATHS_BEFORE_ALONE
    assert suspicions.deaths("b" * 32) == 0
    assert attempts(store, 98).deaths_within(timedelta(minutes=1)) == 0


def test_a_process_that_had_two_shards_died_once(store: LocalStore) -> None:
    for part in ("a" * 32, "b" * 32):
        attempts(store, 1).begin(part)
        Suspicions(attempts(store, 2), lambda node: False).deaths(part)
    assert attempts(store, 2).deaths_within(timedelta(minutes=1)) == 1


def test_too_many_deaths_end_the_job(store: LocalStore, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(leases, "MOST_DEATHS", 2)
    suspicions = Suspicions(attempts(store, 9), lambda node: False)
    for number in (1, 2):
        attempts(store, number).begin("a" * 32)
        assert suspicions.deaths("a" * 32) == number
    attempts(store, 3).begin("a" * 32)
    with pytest.raises(JobBrokenError, match="3 worker processes died within 10 minutes"):
        suspicions.deaths("a" * 32)


def test_a_launch_that_is_over_leaves_nothing(store: LocalStore) -> None:
    attempts(store, 1).begin("a" * 32)
    attempts(store, 1).charge(Process(node_id="n", process_id="0"))
    attempts(store, 1, launch="other").begin("a" * 32)
    forget_launch(store, "launch")
    assert [info.key.split("/")[2] for info in store.list("_darkroom/attempts/")] == ["other"]


def test_what_killed_launches_left_is_forgotten_after_a_while(store: LocalStore) -> None:
    attempts(store, 1).begin("a" * 32)
    forget_old(store, datetime.now(UTC) - timedelta(hours=1))
    assert len(list(store.list("_darkroom/attempts/"))) == 1
    forget_old(store, datetime.now(UTC) + timedelta(seconds=1))
    assert not list(store.list("_darkroom/attempts/"))


def test_one_alone_waits_for_all_others_and_all_others_for_it() -> None:
    events: list[str] = []

    async def work(floor: Floor, name: str, *, alone: bool) -> None:
        async with floor.alone() if alone else floor.shared():
            events.append(f"+{name}")
            await asyncio.sleep(0.02)
            events.append(f"-{name}")

    async def all_of_it() -> None:
        floor = Floor()
        await asyncio.gather(
            work(floor, "a", alone=False),
            work(floor, "b", alone=False),
            work(floor, "X", alone=True),
            work(floor, "Y", alone=True),
            work(floor, "c", alone=False),
        )

    asyncio.run(all_of_it())
    assert sorted(events[:4]) == ["+a", "+b", "-a", "-b"]
    assert [events.index(f"+{name}") + 1 for name in "XYc"] == [events.index(f"-{name}") for name in "XYc"]
