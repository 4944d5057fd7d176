"""``darkroom status``: how far a run is, from the store alone, also while a job runs."""

import json
from collections import Counter
from typing import Annotated, Any

import typer

from pipeline.errors import InputError, StoreError
from pipeline.output.index import load_index
from pipeline.output.launch_note import read_notes
from pipeline.output.layout import PARTS_PREFIX
from pipeline.output.part import read_part
from pipeline.output.run import read_run
from pipeline.storage.base import ObjectStore
from pipeline.storage.location import open_store


def open_run(uri: str) -> ObjectStore:
    """The store of a run. ``InputError`` when there is none."""
    store = open_store(uri)
    try:
        run = read_run(store)
    except StoreError as error:
        raise InputError(f"the output cannot be read: {error}", where="OUTPUT", value=uri) from None
    if run is None:
        raise InputError(
            "there is no run at this output", where="OUTPUT", value=uri, allowed="an output of `darkroom render`"
        )
    return store


def status(
    output: Annotated[str, typer.Argument(help="Local path or s3://bucket/prefix of a run.")],
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show what is committed, what failed and why, and what remains."""
    store = open_run(output)
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
    if facts["images_per_s"]:
        typer.echo(f"rate       {facts['images_per_s']:.2f} images/s in the last finished launch")


def _facts(store: ObjectStore) -> dict[str, Any]:
    index = load_index(store)
    notes = list(read_notes(store))
    done = len(index.ok) + len(index.failed)
    planned = notes[-1].planned if notes else None
    rates = [note.images_per_s for note in notes if note.images_per_s]
    return {
        "ok": len(index.ok),
        "failed": len(index.failed),
        "failed_by_reason": _reasons(store) if len(index.failed) else {},
        "planned": planned,
        "remaining": None if planned is None else max(0, planned - done),
        "launches": len(notes),
        "images_per_s": rates[-1] if rates else None,
    }


def _reasons(store: ObjectStore) -> dict[str, int]:
    counts: Counter[str] = Counter()
    for info in store.list(PARTS_PREFIX):
        part = read_part(store, info.key, ["status", "verdict", "error"])
        counts.update(f"{row['verdict']}: {row['error']}" for row in part.to_pylist() if row["status"] == "failed")
    return dict(counts.most_common(20))
