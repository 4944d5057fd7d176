"""The scoreboard of reliability in short; ``make faults`` measures it in full, and what is too long for here."""

from collections.abc import Mapping
from functools import partial

import pytest

from tests.faults import widen
from tests.faults.__main__ import LINES, measure_of

TOO_LONG = ("kills", "resume")


@pytest.mark.parametrize("name", [name for name in LINES if name not in TOO_LONG])
def test_a_line_is_as_promised(name: str, shared_ray: Mapping[str, str]) -> None:
    measure = partial(widen.measure, environment=shared_ray) if name == "widen" else measure_of(name)
    line = measure(0, True)
    assert not line.broken, line.as_row()
