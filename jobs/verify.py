"""``darkroom verify``: reads a run again, says what is missing, corrupt or nobody's, mends and cleans when told to."""

import json
from dataclasses import asdict
from datetime import UTC, datetime, timedelta
from typing import TYPE_CHECKING, Annotated, Any, get_args

import typer

from jobs import options
from jobs.runs import open_run
from jobs.status_line import StatusLine
from pipeline.errors import InputError
from pipeline.output.checks import What
from pipeline.output.finalize import finalize
from pipeline.output.mending import drop_damaged
from pipeline.output.orphans import delete_orphans, sweep
from pipeline.output.verify import Reading, Verified
from pipeline.output.verify import verify as read_again
from pipeline.storage.base import ObjectStore

if TYPE_CHECKING:
    from pipeline.distributed.rerender import Compared, Rerendered

_SHOWN = 20
_ORPHANS_SHOWN = 5


def verify(
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="Local path or s3://bucket/prefix of a run.")],
    clean: Annotated[
        bool, typer.Option("--clean", help="Delete old objects that no part names, and unfinished ones.")
    ] = False,
    older_than: Annotated[
        float, typer.Option("--older-than", min=0, metavar="HOURS", help="With --clean: how old they must be.")
    ] = 24,
    drop: Annotated[
        bool,
        typer.Option("--drop-damaged", help="Take damaged images out of the run, so that `render` makes them again."),
    ] = False,
    again: Annotated[
        int | None,
        typer.Option("--rerender", min=1, metavar="N", help="Only render N images again here and compare pixels."),
    ] = None,
    as_json: options.AsJson = False,
    endpoint_url: options.EndpointUrl = None,
    region: options.Region = None,
) -> None:
    """Read everything that is committed and compare it with the digests recorded when it was written.

    Exit code 1 when something is missing or corrupt. Example: darkroom verify renders/demo
    """
    if clean + drop + (again is not None) > 1:
        raise InputError("--clean, --drop-damaged and --rerender exclude each other", allowed="one of them")
    store = open_run(output, options.s3_settings(endpoint_url, region))
    if again is not None:
        _rerender(store, again, as_json)
        return
    before = datetime.now(UTC) - timedelta(hours=older_than)
    with StatusLine("reading") as line:
        found = read_again(store, lambda reading: line.update(_line(reading)))
    facts = _facts(found, before)
    if clean:
        facts["orphans"]["deleted"] = delete_orphans(store, found.orphans, before) if found.certain else 0
        facts["unfinished"] = sweep(store, before)
    if drop and found.damage:
        facts["dropped"] = drop_damaged(store, found.damage)
        finalize(store, reread=True)
    lines = [*_found(found, facts), *_orphans(found, facts["orphans"], older_than)]
    lines += (
        [f"unfinished {facts['unfinished']:,} temporary files or uploads removed"] if facts.get("unfinished") else []
    )
    lines += _next(found, facts, output)
    typer.echo(json.dumps(facts, indent=1) if as_json else "\n".join(lines))
    if found.counts.get("unreadable") or (found.faults and "dropped" not in facts):
        raise typer.Exit(1)


def _line(reading: Reading) -> str:
    objects = f"{reading.objects:,} objects, {_size(reading.size_bytes)}"
    return f"part {reading.parts_read:,} of {reading.parts:,}: {objects}"


def _facts(found: Verified, before: datetime) -> dict[str, Any]:
    orphans = found.orphans
    return {
        "images": found.ok,
        "failed": found.failed,
        "parts": found.read.parts,
        "objects": found.read.objects,
        "bytes": found.read.size_bytes,
        **{what: found.counts.get(what, 0) for what in get_args(What)},
        "faults": [asdict(fault) for fault in found.faults],
        "orphans": {
            "objects": len(orphans),
            "bytes": sum(info.size_bytes for info in orphans),
            "old": sum(info.modified < before for info in orphans),
            "first": [info.key for info in orphans[:_SHOWN]],
        },
    }


def _found(found: Verified, facts: dict[str, Any]) -> list[str]:
    lines = [
        f"read       {facts['objects']:,} objects ({_size(facts['bytes'])}) of {facts['parts']:,} parts: "
        f"{facts['images']:,} images, {facts['failed']:,} failed"
    ]
    lines += [f"{what:<10} {facts[what]:,}" for what in get_args(What) if facts[what]]
    lines += [f"  - {fault.key}: {fault.what}, {fault.detail}" for fault in found.faults[:_SHOWN]]
    return [*lines, "  - …; --json names up to 1,000"] if len(found.faults) > _SHOWN else lines


def _orphans(found: Verified, facts: dict[str, Any], hours: float) -> list[str]:
    if not facts["objects"]:
        return []
    lines = [
        f"orphans    {facts['objects']:,} objects ({_size(facts['bytes'])}) that no part names, "
        f"{facts['old']:,} of them older than {hours:g} h"
    ]
    lines += [f"  - {key}" for key in facts["first"][:_ORPHANS_SHOWN]]
    lines += ["  - …; --json names the first 20"] if facts["objects"] > _ORPHANS_SHOWN else []
    if "deleted" not in facts:
        return [*lines, "           --clean deletes the old ones"] if facts["old"] else lines
    if not found.certain:
        return [*lines, "deleted    none: a part is damaged, so some of them may be its own"]
    return [*lines, f"deleted    {facts['deleted']:,}"]


def _next(found: Verified, facts: dict[str, Any], output: str) -> list[str]:
    """What to do about what was found."""
    again = "the same `darkroom render` command again, which renders what is gone"
    if "dropped" in facts:
        dropped = f"dropped    {facts['dropped']:,} images and {len(found.damage.parts):,} whole parts"
        asked = len(found.damage.requests)
        return [dropped + (f"; {asked:,} objects with requests" if asked else ""), f"next       {again}"]
    if found.counts.get("unreadable"):
        return ["next       make all of it readable for the user who runs Darkroom, and verify again"]
    if found.damage:
        return [f"next       darkroom verify {output} --drop-damaged", f"           then {again}"]
    if found.faults:
        return [f"next       darkroom finalize {output}"]
    return ["intact     everything is as it was written"]


def _rerender(store: ObjectStore, number: int, as_json: bool) -> None:
    # Imported late: it loads torch, which takes seconds.
    from pipeline.distributed.rerender import rerender

    made = rerender(store, number, options.cache_folder(), lambda sentence: typer.echo(sentence, err=True))
    facts = {"equal": made.equal, "unexplained": made.unexplained, **asdict(made)}
    typer.echo(json.dumps(facts, indent=1) if as_json else "\n".join(_compared(made)))
    if made.unexplained:
        raise typer.Exit(1)


def _compared(made: "Rerendered") -> list[str]:
    different = [one for one in made.compared if one.difference is not None]
    failed = [one for one in made.compared if one.error is not None]
    lines = [
        f"rendered   {len(made.compared):,} images again on {made.device}",
        f"equal      {made.equal:,}, every pixel",
    ]
    if different:
        largest = max(one.difference or 0 for one in different)
        lines.append(f"different  {len(different):,}, by at most {largest}/255")
        lines += [f"  - {one.file_name}: {one.difference}/255{_why(one)}" for one in different[:_SHOWN]]
    if failed:
        lines.append(f"failed     {len(failed):,}")
        lines += [f"  - {one.file_name}: {one.error}" for one in failed[:_SHOWN]]
    return lines


def _why(one: "Compared") -> str:
    return "" if one.made_alike else ", made on another device, with other rows or libraries"


def _size(size_bytes: float) -> str:
    """0.3 MB, 4.5 GB"""
    return f"{size_bytes / 1e9:,.1f} GB" if size_bytes >= 1e9 else f"{size_bytes / 1e6:.1f} MB"
