"""Lines of prompts as AUTOMATIC1111's script "Prompts from file or textbox" reads them: ``--prompt "a" --seed 7``."""

import re
import shlex
from collections.abc import Mapping

from pipeline.errors import ManifestError
from pipeline.samplers import SAMPLERS, scheduler_named

OPTIONS: Mapping[str, str] = {
    "prompt": "prompt",
    "negative_prompt": "negative_prompt",
    "seed": "seed",
    "steps": "num_inference_steps",
    "cfg_scale": "guidance_scale",
    "sampler_name": "scheduler",
    "width": "width",
    "height": "height",
}
"""The script's options → the settings they are."""

_TEXTS = ("prompt", "negative_prompt")
"""Options that take every word up to the next option, as in the script."""
_OPTION_LINE = re.compile(r"\s*--[a-z]\w*", re.ASCII)


def has_options(line: str) -> bool:
    """Whether a line begins with an option."""
    return _OPTION_LINE.match(line) is not None


def read_options(line: str, where: str) -> dict[str, str]:
    """Return our names → the texts of a line's options. ``ManifestError`` names the option that cannot be read."""
    try:
        words = shlex.split(line)
    except ValueError as error:
        raise ManifestError(
            f"invalid line of options: {str(error).lower()}", where=where, value=line, allowed="quotes in pairs"
        ) from None
    read: dict[str, str] = {}
    while words:
        name = words.pop(0).removeprefix("--")
        if name not in OPTIONS or OPTIONS[name] in read:
            raise ManifestError(
                f"invalid option --{name}: " + ("given twice" if name in OPTIONS else "no column holds it"),
                where=where,
                value=line,
                allowed=", ".join(f"--{option}" for option in OPTIONS),
            )
        read[OPTIONS[name]] = _value(name, words, where)
    if "prompt" not in read:
        raise ManifestError("this line of options has no --prompt", where=where, value=line, allowed='--prompt "…"')
    return read


def _value(name: str, words: list[str], where: str) -> str:
    """Take an option's value from the words that follow it."""
    taken: list[str] = []
    while words and not words[0].startswith("--") and (name in _TEXTS or not taken):
        taken.append(words.pop(0))
    value = " ".join(taken)
    if not value and name not in _TEXTS:
        raise ManifestError(f"the option --{name} has no value", where=where, allowed=f"--{name} and its value")
    return _scheduler(value, where) if name == "sampler_name" else value


def _scheduler(sampler: str, where: str) -> str:
    scheduler = scheduler_named(sampler)
    if scheduler is None:
        known = dict.fromkeys(SAMPLERS.values())
        raise ManifestError("no such sampler", where=where, value=sampler, allowed=", ".join(known))
    return scheduler
