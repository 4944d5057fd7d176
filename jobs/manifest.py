"""``darkroom manifest build`` and ``darkroom manifest check``."""

import json
from dataclasses import asdict
from pathlib import Path
from typing import Annotated

import typer

from jobs import options
from jobs.help import Command
from jobs.words import counted
from pipeline.errors import InputError
from pipeline.manifest.build import build_manifest
from pipeline.manifest.check import check_manifest, rejection_error
from pipeline.manifest.open import open_manifest
from pipeline.manifest.rules import RowRules
from pipeline.output.schema import RESERVED
from pipeline.schedulers import SCHEDULERS

app = typer.Typer(help="Make and check prompt manifests.", no_args_is_help=True)

Column = Annotated[
    list[str] | None,
    typer.Option(
        "--column",
        metavar="THEIRS=OURS",
        help="Read a column as a setting (caption=prompt), rename it (status=source_status) or leave it out (status=).",
    ),
]


@app.command("build", cls=Command)
def build(
    source: Annotated[
        str, typer.Argument(metavar="SOURCE", help="Local CSV, TSV, JSONL, JSON or TXT (one prompt a line).")
    ],
    out: Annotated[
        str | None,
        typer.Argument(metavar="OUT", help="Local Parquet file to write; by default SOURCE with the ending .parquet."),
    ] = None,
    column: Column = None,
    as_json: options.AsJson = False,
) -> None:
    """Make a Parquet manifest.

    Example: darkroom manifest build prompts.csv prompts.parquet --column caption=prompt
    """
    made = build_manifest(
        _local(source, "SOURCE"),
        None if out is None else _local(out, "OUT"),
        columns=_mapping(column),
        reserved=RESERVED - {"prompt_id"},
    )
    options.print_warnings(made.warnings)
    if as_json:
        typer.echo(json.dumps(asdict(made) | {"manifest": str(made.manifest)}))
        return
    if not made.rows:
        typer.echo("warning: there is no prompt in it", err=True)
    blank = f", {counted(made.blank_lines, 'blank line')} left out" if made.blank_lines else ""
    typer.echo(f"{made.manifest}: {counted(made.rows, 'prompt row')}{blank}; columns {', '.join(made.columns)}")


@app.command("check", cls=Command)
def check(
    manifest: Annotated[str, typer.Argument(metavar="MANIFEST", help="Parquet file, directory, glob or s3://")],
    column: Column = None,
    as_json: options.AsJson = False,
    endpoint_url: options.EndpointUrl = None,
    region: options.Region = None,
) -> None:
    """Read every row and say which cannot be rendered. Sizes are only checked against a model by `plan`.

    Example: darkroom manifest check prompts.parquet
    """
    rules = RowRules(size_factor=1, schedulers=frozenset(SCHEDULERS), reserved=RESERVED)
    opened = open_manifest(
        manifest, columns=_mapping(column), rules=rules, s3=options.s3_settings(endpoint_url, region)
    )
    options.print_warnings(opened.warnings)
    result = check_manifest(opened)
    options.print_warnings(result.warnings)
    if result.rejected_count:
        raise rejection_error(result, opened)
    if as_json:
        facts: dict[str, object] = {"rows": result.rows, "files": len(opened.files)}
        facts["extra_columns"] = opened.extra_schema.names
        facts["own_values"] = {own.setting: own.values for own in result.own_values}
        facts["warnings"] = [*opened.warnings, *result.warnings]
        typer.echo(json.dumps({"manifest": manifest, **facts}))
        return
    extras = ", ".join(opened.extra_schema.names) or "none"
    counts = f"{counted(result.rows, 'prompt row')} in {counted(len(opened.files), 'file')}"
    typer.echo(f"{manifest}: {counts}, all usable; extra columns: {extras}")
    for own in result.own_values:
        typer.echo(str(own))


def _local(path: str, where: str) -> Path:
    if "://" in path:  # else it would become a folder named `s3:`
        raise InputError("a manifest is built from and to local files", where=where, value=path, allowed="a local path")
    return Path(path)


def _mapping(columns: list[str] | None) -> dict[str, str | None]:
    pairs = [text.partition("=") for text in columns or ()]
    for theirs, equals, ours in pairs:
        if not theirs or not equals:
            raise InputError(
                "this option names no column",
                where="--column",
                value=theirs or f"={ours}",
                allowed="theirs=ours, or theirs= to leave the column out",
            )
    mapping = {theirs: ours or None for theirs, _, ours in pairs}
    if len(mapping) < len(pairs):
        raise InputError("a column is given twice", where="--column", value=columns, allowed="each column once")
    return mapping
