"""What is shown of a launch."""

import pytest

from jobs.progress import Display


@pytest.mark.parametrize("sentence", ["resolving model [/x]", "resolving model [bold]y", "hashing :smile:"])
def test_sentences_are_shown_as_they_are(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], sentence: str
) -> None:
    monkeypatch.setenv("FORCE_COLOR", "1")  # rich takes this for a terminal
    with Display() as display:
        display.tell(sentence)
    assert sentence in capsys.readouterr().err
