"""``darkroom export``: all images of a run in a form that other tools read."""

import json
from typing import Annotated

import typer

from jobs import options
from jobs.runs import open_run
from jobs.status_line import StatusLine
from pipeline.errors import InputError
from pipeline.export.formats import FORMATS
from pipeline.export.formats import export as export_run
from pipeline.storage.location import open_store


def export(
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="Local path or s3://bucket/prefix of a run.")],
    destination: Annotated[str, typer.Argument(metavar="DEST", help="New or empty directory or s3://bucket/prefix.")],
    form: Annotated[
        str,
        typer.Option(
            "--to",
            metavar="FORMAT",
            help=", ".join(FORMATS),
            autocompletion=lambda incomplete: [name for name in FORMATS if name.startswith(incomplete)],
        ),
    ],
    as_json: options.AsJson = False,
    endpoint_url: options.EndpointUrl = None,
    region: options.Region = None,
) -> None:
    """Copy the images of a run, with their recipes, into a form that other tools read.

    Example: darkroom export renders/demo renders/demo-shards --to webdataset
    """
    if form not in FORMATS:
        raise InputError("unknown export format", where="--to", value=form, allowed=", ".join(FORMATS))
    s3 = options.s3_settings(endpoint_url, region)
    store, target = open_run(output, s3), open_store(destination, s3, where="DEST")
    with StatusLine("exporting") as line:
        images = export_run(store, target, form, lambda done, total: line.update(f"{done:,} of {total:,} images"))
    text = f"exported   {images:,} images to {target.uri}"
    typer.echo(json.dumps({"destination": target.uri, "format": form, "images": images}) if as_json else text)
