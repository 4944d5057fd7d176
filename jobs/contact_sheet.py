"""``darkroom contact-sheet``: a page of thumbnails over a run's sweep, which opens from disk."""

import json
import os
from dataclasses import asdict
from pathlib import Path
from typing import Annotated
from urllib.parse import quote

import typer

from jobs import options
from jobs.runs import open_run
from jobs.status_line import StatusLine
from jobs.words import counted
from pipeline.errors import InputError, OutputError
from pipeline.output.layout import DATA_PREFIX, IMAGES_PREFIX, PARTS_PREFIX, RUN_KEY, SHARDS_PREFIX
from pipeline.output.run import read_run
from pipeline.report.contact_sheet import PAGE_KEY, Made, build
from pipeline.storage.base import ObjectStore
from pipeline.storage.local import LocalStore

FOLDER = "contact-sheet"
_TAKEN = {prefix.partition("/")[0] for prefix in (RUN_KEY, PARTS_PREFIX, IMAGES_PREFIX, SHARDS_PREFIX, DATA_PREFIX)}


def contact_sheet(
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="Local path or s3://bucket/prefix of a run.")],
    to: Annotated[
        str | None,
        typer.Option("--to", metavar="DIR", help=f"Local folder of the page; without, OUTPUT/{FOLDER}."),
    ] = None,
    previews: Annotated[
        bool | None,
        typer.Option(
            "--previews/--no-previews",
            help="Keep copies of up to 768 px beside the page. Without: where it cannot link to the images themselves.",
            show_default=False,
        ),
    ] = None,
    as_json: options.AsJson = False,
    endpoint_url: options.EndpointUrl = None,
    region: options.Region = None,
) -> None:
    """Make a page of thumbnails over the sweep, with recipes, failures and search. Again, it adds what is new.

    Example: darkroom contact-sheet renders/demo
    """
    store = open_run(output, options.s3_settings(endpoint_url, region))
    folder = _folder(store, to)
    pictures = _pictures(store, folder)
    with StatusLine("reading what is committed") as line:
        made = build(
            store,
            LocalStore(folder),
            pictures=pictures,
            previews=pictures is None if previews is None else previews,
            on_progress=lambda filling: line.update(f"{filling.made:,} of {filling.to_make:,} thumbnails"),
        )
    page = f"{_shown(folder)}/{PAGE_KEY}"
    typer.echo(json.dumps({"page": page, **asdict(made)}) if as_json else f"{_as_text(made)}\nOpen {page}")
    if made.lost:
        typer.echo(f"warning: {made.lost:,} images cannot be read; `darkroom verify {output}` names them", err=True)


def _folder(store: ObjectStore, to: str | None) -> Path:
    """Where the page goes. ``InputError`` where it cannot, or where it would be in the way of the run's own files."""
    if to is None and not isinstance(store, LocalStore):
        raise InputError("the page of a run in S3 needs a folder on this machine", where="--to", allowed="--to DIR")
    if to is not None and (not to.strip() or "://" in to or "\0" in to):
        raise InputError("the page is written to a local folder", where="--to", value=to, allowed="a local path")
    root = Path(store.uri)
    folder = (root / FOLDER if to is None else Path(to)).absolute()
    inside = folder.relative_to(root).parts if isinstance(store, LocalStore) and folder.is_relative_to(root) else ()
    if inside and inside[0] in _TAKEN:
        raise OutputError("this folder is for files of the run", where="--to", value=to, allowed="another folder")
    if folder.exists() and not folder.is_dir():
        raise OutputError("this is a file", where="--to", value=str(folder), allowed="a folder, or a new one")
    return folder


def _pictures(store: ObjectStore, folder: Path) -> str | None:
    """The run as seen from the page, where its images are files: a page that is moved together with it finds them."""
    run = read_run(store)
    if not isinstance(store, LocalStore) or run is None or run.packing.layout != "files":
        return None
    return quote(os.path.relpath(os.path.realpath(store.uri), os.path.realpath(folder))) + "/"


def _as_text(made: Made) -> str:
    failed = f", {made.failed:,} failed" if made.failed else ""
    return "\n".join(
        [
            f"images     {made.images:,} of {counted(made.prompts, 'prompt')}{failed}",
            f"new        {made.new:,} since the last time",
            f"size       {made.size_bytes / 1e6:,.1f} MB",
        ]
    )


def _shown(folder: Path) -> str:
    """As short as it can be said from here."""
    here = Path.cwd()
    return str(folder.relative_to(here) if folder.is_relative_to(here) else folder)
