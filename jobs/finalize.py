"""``darkroom finalize``: the tables of all that is committed."""

import json
from dataclasses import asdict
from typing import Annotated

import typer

from jobs import options
from jobs.runs import open_run
from pipeline.output import finalize as output_finalize


def finalize(
    output: Annotated[str, typer.Argument(metavar="OUTPUT", help="Local path or s3://bucket/prefix of a run.")],
    as_json: options.AsJson = False,
    endpoint_url: options.EndpointUrl = None,
    region: options.Region = None,
) -> None:
    """Write metadata.parquet and failures.parquet from the committed parts. `darkroom render` does it at its end.

    Example: darkroom finalize renders/demo
    """
    store = open_run(output, options.s3_settings(endpoint_url, region))
    made = output_finalize.finalize(store, reread=True)
    text = f"metadata.parquet: {made.ok:,} images; failed: {made.failed:,}; from {made.parts:,} parts in {store.uri}"
    typer.echo(json.dumps({"output": store.uri, **asdict(made)}) if as_json else text)
