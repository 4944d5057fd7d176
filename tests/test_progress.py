"""What is shown of a launch."""

import re

import pytest

from jobs.progress import Display, describe
from pipeline.distributed.pace import images_per_s, left_s
from pipeline.distributed.report import Progress, Telling
from pipeline.planning.amount import Amount
from pipeline.rendering.counters import EngineCounters

TOTAL = Amount(images=100, evaluations=2000)
ENGINE = EngineCounters(evaluations=1, encode_s=1.0, denoise_s=17.0, decode_s=2.0)


@pytest.mark.parametrize("sentence", ["resolving model [/x]", "resolving model [bold]y", "hashing :smile:"])
def test_sentences_are_shown_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], sentence: str
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes this for a terminal
    with Display() as display:
        display.tell(sentence)
    assert sentence in capsys.readouterr().err


def at(images: int, evaluations: int, *tellings: Telling, failed: int = 0) -> Progress:
    return Progress(
        total=TOTAL, ok=images, evaluations=evaluations, failed=failed, workers=2, tellings=tellings, engine=ENGINE
    )


def test_the_time_left_follows_evaluations_and_not_images() -> None:
    """Two workers of 50 evaluations a second each; the first images have few steps, the others many."""
    assert left_s(5.0, at(0, 0)) is None
    one = Telling(at_s=24.0, evaluations=300, busy_s=6.0, committed=200, first_at_s=24.0, first_evaluations=300)
    assert left_s(24.0, at(40, 200, one)) == pytest.approx((2000 - 300) / 50), "its engine's own clock, at first"
    other = Telling(at_s=26.0, evaluations=400, busy_s=9.0, committed=400, first_at_s=22.0, first_evaluations=200)
    both = at(60, 600, one, other)
    assert left_s(26.0, both) == pytest.approx((2000 - 300 - 2 * 50 - 400) / 100), "what is under way counts"
    assert left_s(30.0, both) == pytest.approx(8.0), "time goes on between outcomes"
    assert left_s(99.0, both) == 0


def test_a_process_that_is_gone_counts_for_nothing() -> None:
    gone = Telling(at_s=0.0, evaluations=500, busy_s=5.0, committed=100, first_at_s=0.0, first_evaluations=500)
    alive = Telling(at_s=990.0, evaluations=900, busy_s=9.0, committed=900, first_at_s=970.0, first_evaluations=700)
    assert left_s(1000.0, at(50, 1000, gone, alive)) == pytest.approx(1000 / 10 - 10)


def test_the_rate_is_the_one_that_the_time_left_counts_with() -> None:
    telling = Telling(at_s=20.0, evaluations=400, busy_s=9.0, committed=400, first_at_s=10.0, first_evaluations=200)
    progress = at(19, 400, telling)
    assert images_per_s(20.0, progress) == pytest.approx(1.0), "20 evaluations a second, 20 for an image"
    assert left_s(20.0, progress) == pytest.approx(80.0)
    assert images_per_s(20.0, at(0, 0)) is None


def test_what_is_said_of_it() -> None:
    telling = Telling(at_s=20.0, evaluations=400, busy_s=9.0, committed=400, first_at_s=10.0, first_evaluations=200)
    said = describe(at(19, 400, telling, failed=1), 20.0, 40.0)
    assert said == (
        "1.0 images/s (0.5 since the start), 1:20 left, 1 failed, 2 workers, prompts 5% denoising 85% decoding 10%"
    )


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
