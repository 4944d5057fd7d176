"""What a worker tells reaches the driver, whichever answers are lost on their way."""

import threading
import time
from typing import Any, cast

from pipeline.distributed.events import Ended, Event
from pipeline.distributed.worker import RenderWorker


class Silent(RenderWorker):
    """A worker without Ray and without a model."""

    def __init__(self) -> None:
        self._changed = threading.Condition()
        self._events, self._received = list[Event](), 0
        self._runner, self._working_told_s = cast("Any", None), 0.0


def test_an_answer_that_was_lost_is_given_once_more() -> None:
    worker = Silent()
    for number in range(3):
        worker._tell(Ended(number))
    assert worker.events(0.0, 0) == [Ended(0), Ended(1), Ended(2)]
    assert worker.events(0.0, 0) == [Ended(0), Ended(1), Ended(2)], "the first answer did not arrive"
    worker._tell(Ended(3))
    assert worker.events(0.0, 3) == [Ended(3)]
    assert worker.events(0.0, 4) == []


def test_an_answer_waits_for_something_to_happen() -> None:
    worker = Silent()
    threading.Timer(0.2, worker._tell, (Ended(7),)).start()
    began = time.monotonic()
    assert worker.events(60.0, 0) == [Ended(7)]
    assert time.monotonic() - began < 30
