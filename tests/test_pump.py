"""Waiting for outcomes, and leaving."""

import threading
import time
from collections.abc import Generator

import pytest

from pipeline.distributed.pump import pumped


def never() -> bool:
    return False


def numbers(ended: threading.Event, count: int) -> Generator[int, None, None]:
    try:
        yield from range(count)
    finally:
        ended.set()


def test_everything_comes_in_order() -> None:
    assert list(pumped(numbers(threading.Event(), 1000), never)) == list(range(1000))


def test_who_waits_can_do_something_meanwhile() -> None:
    began, done = threading.Event(), threading.Event()

    def waits() -> Generator[int, None, None]:
        began.wait()
        yield 1

    def meanwhile() -> None:
        assert threading.current_thread() is threading.main_thread()
        began.set()
        done.set()

    assert list(pumped(waits(), never, meanwhile)) == [1]
    assert done.is_set()


def test_a_source_that_blocks_is_made_to_end_and_waited_for() -> None:
    asked, ended = threading.Event(), threading.Event()

    def blocks() -> Generator[int, None, None]:
        asked.wait()
        time.sleep(0.2)
        ended.set()
        yield 1

    for _ in pumped(blocks(), lambda: True, end=asked.set):
        pass
    assert ended.is_set()


def test_what_is_raised_comes_after_what_was_there() -> None:
    def broken() -> Generator[int, None, None]:
        yield 1
        raise KeyError("x")

    coming = pumped(broken(), never)
    assert next(coming) == 1
    with pytest.raises(KeyError):
        next(coming)


def test_a_source_that_blocks_holds_nobody() -> None:
    began, over = threading.Event(), threading.Event()

    def blocked() -> Generator[int, None, None]:
        began.set()
        threading.Event().wait()
        yield 1

    threading.Timer(0.3, over.set).start()
    started = time.monotonic()
    assert list(pumped(blocked(), over.is_set)) == []
    assert began.is_set()
    assert time.monotonic() - started < 5


def test_the_source_is_closed_when_it_is_over_and_when_its_reader_leaves() -> None:
    for leave in (True, False):
        ended, over = threading.Event(), threading.Event()
        for number in pumped(numbers(ended, 10**9), over.is_set):
            if number == 5:
                over.set()
                if leave:
                    break
        assert ended.wait(5)
