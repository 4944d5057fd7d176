"""The address of a job's output: the default where none is named, and the day that is filled in."""

import re
from dataclasses import dataclass
from datetime import date
from itertools import takewhile
from pathlib import Path

from pipeline.errors import JobFileError

_FORMER_DEFAULT = Path("renders/command-line")
"""The output that all jobs without a file shared in earlier versions."""


def default_output(path: Path | None, manifest: str) -> str:
    """Return the output of a job that names none: ``renders/`` and the name of the job file, else of the manifest.

    Raises ``JobFileError`` where a run of an earlier version may be meant.
    """
    if path is not None:
        return f"renders/{path.stem}"
    segments = [part for part in re.split(r"[/\\]", manifest) if part not in ("", ".", "..", "~")]
    fixed = list(takewhile(lambda part: not any(sign in part for sign in "*?["), segments))
    # A folder may be named v1.5, which is another one than v1.6. A bare pattern is about the working directory.
    stem = re.sub(r"\.parquet$", "", fixed[-1], flags=re.IGNORECASE) if fixed else Path.cwd().name
    name = re.sub(r"[^\w.-]+", "-", stem).strip("-.")
    uri = f"renders/{name or 'command-line'}"
    if uri != str(_FORMER_DEFAULT) and (_FORMER_DEFAULT / "_darkroom" / "run.json").is_file():
        raise JobFileError(
            "the job names no output, and there is a run at the former default output",
            where="--output",
            value=str(_FORMER_DEFAULT),
            allowed=f"--output {_FORMER_DEFAULT} to continue that run, or another output, such as --output {uri}",
        )
    return uri


@dataclass(frozen=True, slots=True, kw_only=True)
class OutputAddress:
    """The address of an output, and the day that it depends on."""

    uri: str
    day: date | None
    """The current day where the address holds it; None where a date was chosen, or none is held."""


def output_address(uri: str, today: date, chosen_date: date | None) -> OutputAddress:
    """Return the address with ``{date}`` filled in: by ``chosen_date``, else by ``today``."""
    is_dated = "{date}" in uri
    if chosen_date is not None and not is_dated:
        raise JobFileError(
            "the date has no effect: output.uri does not contain {date}",
            where="--date",
            value=chosen_date.isoformat(),
            allowed="no --date, or an output.uri with {date}",
        )
    filled = uri.replace("{date}", (chosen_date or today).isoformat())
    return OutputAddress(uri=filled, day=today if is_dated and chosen_date is None else None)


def daily_warnings(day: date | None) -> tuple[str, ...]:
    """Return a warning where the address holds the current day, ``OutputAddress.day``."""
    if day is None:
        return ()
    return (
        f"output.uri contains {{date}}, so the output is another one every day: a launch after midnight starts over; "
        f"to continue this output on a later day, give --date {day.isoformat()}",
    )
