"""``darkroom status``: how far a run is, from the store alone, also while a job runs."""

import json
from collections import Counter
from collections.abc import Sequence
from datetime import UTC, datetime
from typing import Annotated, Any

import typer

from jobs import options
from jobs.runs import open_run
from jobs.words import duration
from pipeline.output.failures import failed_rows
from pipeline.output.index import CommittedIndex, load_index
from pipeline.output.launch_note import LaunchNote, read_notes
from pipeline.storage.base import ObjectStore

_REASONS_SHOWN = 20


def status(
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="Local path or s3://bucket/prefix of a run.")],
    as_json: options.AsJson = False,
    endpoint_url: options.EndpointUrl = None,
    region: options.Region = None,
) -> None:
    """Show what is committed, what failed and why, and what remains.

    Example: darkroom status renders/demo
    """
    store = open_run(output, options.s3_settings(endpoint_url, region))
    facts = _facts(store)
    if as_json:
        typer.echo(json.dumps(facts, indent=1))
        return
    typer.echo(f"committed  {facts['ok']:,} images")
    typer.echo(f"failed     {facts['failed']:,} images")
    for reason, number in facts["failed_by_reason"].items():
        typer.echo(f"  - {number:,} × {reason}")
    if facts["planned"] is not None:
        typer.echo(f"remaining  {facts['remaining']:,} of {facts['planned']:,} planned by the last launch")
    if facts["at_work_since"]:
        since = datetime.fromisoformat(facts["at_work_since"])
        ago = duration((datetime.now(UTC) - since).total_seconds())
        typer.echo(f"at work    since {since:%Y-%m-%d %H:%M:%S} UTC, {ago} ago")
    if facts["images_per_s"]:
        launch = "this launch so far" if facts["at_work_since"] else "the last launch that rendered"
        typer.echo(f"rate       {facts['images_per_s']:.2f} images/s in {launch}, loading the model included")


def _facts(store: ObjectStore) -> dict[str, Any]:
    index = load_index(store)
    ok, failed = len(index.tasks) - len(index.failed), len(index.failed)
    notes = list(read_notes(store))
    now = datetime.now(UTC)
    notes.sort(key=lambda note: (note.is_alive(now), note.finished_at or note.started_at, note.launch_id))
    last = notes[-1] if notes else None
    at_work = last is not None and last.is_alive(now)
    return {
        "ok": ok,
        "failed": failed,
        "failed_by_reason": _reasons(store, index) if failed else {},
        "planned": last and last.planned,
        "remaining": last and _remaining(last, ok, failed),
        "launches": len(notes),
        "at_work_since": last.started_at if last and at_work else None,
        "images_per_s": _rate_so_far(last, ok, failed, now) if last and at_work else _last_rate(notes),
    }


def _remaining(note: LaunchNote, ok: int, failed: int) -> int:
    """Of its images: what it left, with what was taken away since; while it works, what has no outcome."""
    if note.finished_at is None:
        return max(0, note.to_render - _done(note, ok, failed))
    then = note.committed_before + note.to_render - note.remaining
    return note.remaining + max(0, then - ok - failed)


def _done(note: LaunchNote, ok: int, failed: int) -> int:
    """Outcomes of a launch: the run may hold images it is not about, of an earlier sweep."""
    return ok + (0 if note.retry_failed else failed) - note.committed_before


def _rate_so_far(note: LaunchNote, ok: int, failed: int, now: datetime) -> float | None:
    """Images per second since the launch began, its start and the loading of models included."""
    seconds = (now - datetime.fromisoformat(note.started_at)).total_seconds()
    return max(0, _done(note, ok, failed)) / seconds if seconds > 0 else None


def _last_rate(notes: Sequence[LaunchNote]) -> float | None:
    rates = [note.images_per_s for note in notes if note.images_per_s]
    return rates[-1] if rates else None


def _reasons(store: ObjectStore, index: CommittedIndex) -> dict[str, int]:
    """Failed images by what is said of them; the most frequent reasons first, adding up to all of them."""
    rows = failed_rows(store, index)
    counts = Counter(
        f"{verdict}: {error}"
        for verdict, error in zip(rows["verdict"].to_pylist(), rows["error"].to_pylist(), strict=True)
    )
    shown = dict(counts.most_common(_REASONS_SHOWN))
    others = counts.total() - sum(shown.values())
    return shown | ({"other reasons": others} if others else {})
