"""What is shown of a launch."""

import re
from dataclasses import replace

import pytest

from jobs.progress import Display, describe, time_split
from pipeline.distributed.pace import images_per_s, left_s
from pipeline.distributed.report import RECENT_S, Mark, Progress, Telling
from pipeline.planning.amount import Amount
from pipeline.rendering.counters import EngineCounters

TOTAL = Amount(images=100, megapixel_evaluations=2000.0)
ENGINE = EngineCounters(evaluations=1, encode_s=1.0, denoise_s=17.0, decode_s=2.0)


@pytest.mark.parametrize("sentence", ["resolving model [/x]", "resolving model [bold]y", "hashing :smile:"])
def test_sentences_are_shown_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], sentence: str
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes this for a terminal
    with Display() as display:
        display.tell(sentence)
    assert sentence in capsys.readouterr().err


def at(images: int, work: float, *tellings: Telling, failed: int = 0) -> Progress:
    return Progress(total=TOTAL, ok=images, megapixel_evaluations=work, failed=failed, tellings=tellings, engine=ENGINE)


def telling(*marks: tuple[float, float], busy_s: float = 1.0, committed: float = 0.0) -> Telling:
    """Of a process that told at these seconds how much it had done."""
    first, *later = (Mark(at_s=at_s, work=work) for at_s, work in marks)
    told = Telling(first=first, recent=(first,), busy_s=busy_s, committed=committed)
    for mark in later:
        told = told.then(mark, busy_s, 0.0)
    return told


def test_the_time_left_follows_work_and_not_images() -> None:
    """Two workers of 50 megapixel-evaluations a second each; the first images have few steps, the others many."""
    assert left_s(5.0, at(0, 0)) is None
    one = telling((24.0, 300), busy_s=6.0, committed=200)
    assert left_s(24.0, at(40, 200, one)) == pytest.approx((2000 - 300) / 50), "its engine's own clock, at first"
    other = telling((22.0, 200), (26.0, 400), committed=400)
    both = at(60, 600, one, other)
    assert left_s(26.0, both) == pytest.approx((2000 - 300 - 2 * 50 - 400) / 100), "what is under way counts"
    assert left_s(30.0, both) == pytest.approx(8.0), "time goes on between outcomes"
    assert left_s(99.0, both) == 0


def test_what_is_said_of_now_is_of_the_last_minute() -> None:
    """100 a second, then ten times slower: the price of later launches goes by all of it, the time left does not."""
    slow = telling(
        *((10.0 * n, 1000.0 * n) for n in range(10)), *((100.0 + 10 * n, 9000.0 + 100 * n) for n in range(20))
    )
    assert slow.rate == pytest.approx(10)
    assert slow.last.at_s - slow.recent[0].at_s == RECENT_S
    assert slow.mean_rate == pytest.approx((9000 + 1900) / 290)
    rare = telling((0.0, 0.0), (500.0, 1000.0), (1500.0, 5000.0))
    assert rare.rate == pytest.approx(4), "between the last two at least"


def test_a_process_that_is_gone_counts_for_nothing() -> None:
    gone = telling((0.0, 500), busy_s=5.0, committed=100)
    alive = telling((970.0, 700), (990.0, 900), committed=900)
    assert left_s(1000.0, at(50, 1000, gone, alive)) == pytest.approx(1000 / 10 - 10)


def test_the_rate_is_the_one_that_the_time_left_counts_with() -> None:
    progress = at(19, 400, telling((10.0, 200), (20.0, 400), committed=400))
    assert images_per_s(20.0, progress) == pytest.approx(1.0), "20 a second, 20 for an image"
    assert left_s(20.0, progress) == pytest.approx(80.0)
    assert images_per_s(20.0, at(0, 0)) is None


def test_what_is_said_of_it() -> None:
    told = telling((10.0, 200), (20.0, 400), committed=400)
    said = describe(at(19, 400, told, failed=1), 20.0, 40.0)
    assert said == ("1.0 images/s (0.5 since the start), 1:20 left, 1 failed, 1 worker")
    assert time_split(ENGINE) == "prompts 5% denoising 85% decoding 10%"


def test_workers_that_are_ready_are_told_of_before_the_first_image() -> None:
    assert describe(Progress(total=TOTAL, ready=3), 20.0, 40.0) == "3 workers ready, no image yet"
    assert describe(Progress(total=TOTAL), 20.0, 40.0) == ""


def test_images_count_when_they_are_drawn_long_before_a_shard_is_committed(capsys: pytest.CaptureFixture[str]) -> None:
    early = replace(at(0, 0, telling((10.0, 200), (20.0, 400))), drawn=20, ready=1)
    assert describe(early, 20.0, 40.0) == (
        "1.0 images/s (0.5 since the start), 1:20 left, 20 not committed yet, 1 worker"
    )
    with Display() as display:
        display.update(early)
        display.update(replace(early, ok=90, drawn=15))
    said = capsys.readouterr().err
    assert re.findall(r"\d+/\d+", said) == ["20/100", "100/100"]


def test_phases_stay_with_their_time_and_logs_have_plain_lines(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with Display() as display:
        display.tell("loading the model on up to 2 workers")
        display.update(at(1, 20))
    said = capsys.readouterr().err
    assert said.startswith("loading the model on up to 2 workers\n1/100 images, ")
    assert "\x1b" not in said
    monkeypatch.setenv("FORCE_COLOR", "1")
    with Display() as display:
        display.tell("resolving model x")
        display.tell("loading the model")
        display.update(at(50, 1000))
    said = re.sub(r"\x1b\[[0-9;?]*[a-zA-Z]", "", capsys.readouterr().err)
    assert said.index("resolving model x") < said.index("loading the model") < said.index("50/100")


def test_no_color_is_respected(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.setenv("FORCE_COLOR", "1")
    colours = r"\x1b\[[0-9;]*(3[0-9]|9[0-7])[0-9;]*m"
    for refused in (False, True):
        if refused:
            monkeypatch.setenv("NO_COLOR", "1")
        with Display() as display:
            display.tell("warning: x")
            display.update(at(50, 1000))
        assert bool(re.search(colours, capsys.readouterr().err)) is not refused
