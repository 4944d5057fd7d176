"""What the benchmarks reckon with. Those that start a Ray are run by ``make cluster``."""

from pathlib import Path

import pytest

from benchmarks.launched import evaluations, evaluations_per_s, made_tasks
from benchmarks.overhead import engines

ROOT = Path(__file__).parent.parent


def test_engines_alone_have_a_rate() -> None:
    assert engines(made_tasks("W3", 16, (2, 4)), 1) > 0


@pytest.mark.parametrize("lump", [1, 16])
def test_the_steady_rate_is_that_of_the_work_whatever_its_order(lump: int) -> None:
    """Two workers at 100 evaluations per second each, whose pictures come in lumps, after a start of 50 s."""
    tasks = made_tasks("W3", 640, (5, 25))
    finished_s: list[float] = []
    for number in range(2):
        at_s, mine = 50.0 + number, evaluations(tasks[number * 320 : (number + 1) * 320])
        for start in range(0, len(mine), lump):
            at_s += sum(mine[start : start + lump]) / 100
            finished_s += [at_s] * len(mine[start : start + lump])
    assert evaluations_per_s(finished_s, tasks) == pytest.approx(200, rel=0.02)
