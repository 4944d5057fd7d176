"""``darkroom export``: all images of a run in a form that other tools read."""

import sys
import time
from typing import Annotated

import typer
from rich.console import Console

from jobs import options
from jobs.runs import open_run
from pipeline.errors import InputError
from pipeline.export.formats import FORMATS
from pipeline.export.formats import export as export_run
from pipeline.storage.location import open_store

_LOG_EVERY_S = 10.0


def export(
    output: Annotated[str, typer.Argument(help="Local path or s3://bucket/prefix of a run.")],
    destination: Annotated[str, typer.Argument(metavar="DEST", help="New or empty directory or s3://bucket/prefix.")],
    form: Annotated[str, typer.Option("--to", metavar="FORMAT", help=", ".join(FORMATS))],
    endpoint_url: options.EndpointUrl = None,
    region: options.Region = None,
) -> None:
    """Copy the images of a run, with their recipes, into a form that other tools read.

    Example: darkroom export renders/demo renders/demo-shards --to webdataset
    """
    if form not in FORMATS:
        raise InputError("there is no such form", where="--to", value=form, allowed=", ".join(FORMATS))
    s3 = options.s3_settings(endpoint_url, region)
    store, target = open_run(output, s3), open_store(destination, s3, where="DEST")
    with _Display() as display:
        images = export_run(store, target, form, display.update)
    typer.echo(f"exported   {images:,} images to {target.uri}")


class _Display:
    """Use as a context: how far the export is, a live line on a terminal and a plain one now and then in a log."""

    def __init__(self) -> None:
        console = Console(stderr=True, highlight=False)
        self._live = console.is_terminal
        self._status = console.status("exporting")
        self._told = time.monotonic()

    def __enter__(self) -> "_Display":
        self._status.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._status.stop()

    def update(self, done: int, total: int) -> None:
        now = time.monotonic()
        if now - self._told < (0.1 if self._live else _LOG_EVERY_S):
            return
        self._told = now
        line = f"{done:,} of {total:,} images"
        if self._live:
            self._status.update(line)
        else:
            print(line, file=sys.stderr, flush=True)
