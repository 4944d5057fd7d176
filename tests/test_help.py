"""What ``--help`` shows: every command has an example of itself."""

from collections.abc import Iterator
from typing import Any

import pytest
from typer.main import get_group

from jobs.cli import app


def helps(group: Any, words: str = "darkroom") -> Iterator[tuple[str, str]]:
    """The words of every command below a group, and what its help says."""
    for name, command in group.commands.items():
        if hasattr(command, "commands"):
            yield from helps(command, f"{words} {name}")
        else:
            yield f"{words} {name}", command.help


@pytest.mark.parametrize(("words", "said"), list(helps(get_group(app))))
def test_every_command_has_an_example(words: str, said: str) -> None:
    assert f"Example: {words} " in said


@pytest.mark.parametrize("words", [["render"], ["export"], ["manifest", "check"]])
def test_options_without_a_value_show_no_type(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    app([*words, "--help"], standalone_mode=False)
    said = capsys.readouterr().out
    assert "--json" in said
    assert "bool" not in said
    usage = next(line for line in said.splitlines() if "Usage:" in line)
    assert not set(usage.replace("[OPTIONS]", "").replace("[JOB]", "")) & set("{}[]")
