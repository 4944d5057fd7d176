"""The largest differences from diffusers that the parity tests saw, gathered from all test processes and printed."""

from typing import Any

import pytest

_SEEN = pytest.StashKey[dict[str, tuple[int, float]]]()
"""By model and scheduler: pixels 0..255, latents in standard deviations."""
_OUTPUT = "largest differences"


def note_difference(config: pytest.Config, model: str, scheduler: str, of_pixels: int, of_latents: float) -> None:
    """Keep the difference if it is the largest of its model and scheduler."""
    _keep(config, f"{model:14} {scheduler:56}", of_pixels, of_latents)


def _keep(config: pytest.Config, name: str, of_pixels: int, of_latents: float) -> None:
    seen = config.stash.setdefault(_SEEN, {})
    before = seen.get(name, (0, 0.0))
    seen[name] = (max(before[0], of_pixels), max(before[1], of_latents))


def pytest_sessionfinish(session: pytest.Session) -> None:
    """Hand what a worker process saw to the process that prints it."""
    output = getattr(session.config, "workeroutput", None)
    if output is not None:
        output[_OUTPUT] = session.config.stash.get(_SEEN, {})


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any) -> None:
    """Take over what a worker process saw; one that died hands over nothing."""
    for name, (of_pixels, of_latents) in getattr(node, "workeroutput", {}).get(_OUTPUT, {}).items():
        _keep(node.config, name, of_pixels, of_latents)


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    """Print the table."""
    seen = config.stash.get(_SEEN, {})
    if not seen:
        return
    terminalreporter.section("largest differences from stock diffusers: pixels (of 255), latents (of their deviation)")
    for name, (of_pixels, of_latents) in sorted(seen.items()):
        terminalreporter.write_line(f"{name} {of_pixels:3d}  {of_latents:.1e}")
