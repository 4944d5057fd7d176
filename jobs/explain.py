"""``darkroom explain``: an image's recipe, where it comes from, and the command that renders it again."""

import json
from collections.abc import Iterator, Mapping
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

import typer

from jobs import options
from pipeline.errors import InputError
from pipeline.output.again import command_of
from pipeline.output.archives import plain_json
from pipeline.output.lookup import find_row, task_id_of
from pipeline.output.provenance import read_provenance
from pipeline.output.run import Run, read_run
from pipeline.output.schema import METADATA_SCHEMA
from pipeline.storage.base import ObjectStore
from pipeline.storage.location import open_store
from pipeline.storage.s3_settings import S3Settings

_ALLOWED = "an image file, a path in an output, or a task id with --output"


def explain(
    image: Annotated[
        str, typer.Argument(metavar="IMAGE", help="Image file, path or s3:// address in an output, or a task id.")
    ],
    output: Annotated[
        str | None, typer.Option("--output", "-o", help="The run's output, where the image does not lie in it.")
    ] = None,
    as_json: options.AsJson = False,
    endpoint_url: options.EndpointUrl = None,
    region: options.Region = None,
) -> None:
    """Show how an image was made, and the one command that renders it again.

    Example: darkroom explain renders/demo/images/3f/3f….png
    """
    body = _read(image)
    embedded, infotext = read_provenance(body) if body else (None, None)
    task_id = task_id_of(image) or embedded
    found = _find(image, task_id, output, options.s3_settings(endpoint_url, region)) if task_id else None
    if found is None:
        _tell_what_it_says(image, task_id, infotext, as_json)
        return
    store, run, row = found
    facts = _facts(store, run, row, body)
    typer.echo(json.dumps(facts, indent=1, ensure_ascii=False) if as_json else "\n".join(_lines(facts)))


def _read(image: str) -> bytes | None:
    try:
        path = Path(image).expanduser()
        return path.read_bytes() if path.is_file() else None
    except (OSError, RuntimeError, ValueError):
        return None


def _find(
    image: str, task_id: str, output: str | None, s3: S3Settings
) -> tuple[ObjectStore, Run, Mapping[str, Any]] | None:
    """The row of a task in the run at ``--output``, or in the nearest above the image that has it.

    Raises ``InputError`` where an output was named that has no run, or a run without this image.
    """
    run = None
    for uri in _above(image) if output is None else [output]:
        run = read_run(open_store(uri, s3.impatient(), where="--output" if output else "IMAGE"))
        store = open_store(uri, s3)
        row = find_row(store, task_id) if run else None
        if run is not None and row is not None:
            return store, run, row
    if output is not None:
        what = "there is no run at this output" if run is None else f"the run has no image {task_id}"
        raise InputError(what, where="--output", value=output, allowed=_ALLOWED)
    return None


def _above(image: str) -> Iterator[str]:
    """Every place the image's run may be at, the nearest first."""
    if "://" not in image:
        if "/" in image or Path(image).exists():
            yield from map(str, Path(image).expanduser().absolute().parents)
        return
    scheme, _, rest = image.partition("://")
    while "/" in rest:
        rest = rest.rpartition("/")[0]
        if rest.strip("/"):
            yield f"{scheme}://{rest}"


def _tell_what_it_says(image: str, task_id: str | None, infotext: str | None, as_json: bool) -> None:
    """What an image far from its run tells by itself; ``InputError`` where that is nothing."""
    if infotext is None:
        raise InputError(_what_is_wrong(image, task_id), where="IMAGE", value=image, allowed=_ALLOWED)
    if as_json:
        typer.echo(json.dumps({"task_id": task_id, "infotext": infotext}, indent=1, ensure_ascii=False))
        return
    typer.echo(f"task       {task_id or 'not told'}\n{infotext}")
    typer.echo("its run is not above it: --output OUTPUT tells the rest", err=True)


def _what_is_wrong(image: str, task_id: str | None) -> str:
    """Of what names no image of a run."""
    if task_id is not None:
        return "there is no run above this image, or it has no such image"
    path = Path(image)
    if "://" in image or path.is_file():
        return "this is no image of a run, nor does it say of which"
    return "this is a folder" if path.is_dir() else "there is no such file"


def _facts(store: ObjectStore, run: Run, row: Mapping[str, Any], body: bytes | None) -> dict[str, Any]:
    extras = {name: value for name, value in row.items() if name not in METADATA_SCHEMA.names}
    return {
        "output": store.uri,
        **{name: plain_json(row[name]) for name in METADATA_SCHEMA.names},
        "extra": plain_json(extras),
        "model_revision": run.model_revision,
        "precision": run.constants.precision,
        "versions": dict(run.numerics.versions),
        "same_bytes": None if body is None or row["file_sha256"] is None else _digest(body) == row["file_sha256"],
        "again": command_of(run, row, f"renders/again-{row['task_id'][:8]}"),
    }


def _digest(body: bytes) -> str:
    return sha256(body).hexdigest()


def _lines(facts: Mapping[str, Any]) -> Iterator[str]:
    said = {
        "image": facts["file_name"] or f"none: {facts['verdict']}, {facts['error']}",
        "task": facts["task_id"],
        "run": facts["output"],
        "prompt": facts["prompt"],
        "negative": facts["negative_prompt"],
        "recipe": _recipe(facts),
        "model": f"{facts['model_id']}{_at(facts['model_revision'])}, {_dtype(facts)}, "
        f"fingerprint {facts['model_fingerprint']}",
        "asked by": f"{facts['manifest_file']}, row {facts['manifest_row']}, prompt_id {facts['prompt_id']}",
        "columns": json.dumps(facts["extra"], ensure_ascii=False) if facts["extra"] else None,
        "verdict": facts["verdict"],
        "part": f"{facts['part_id']}, attempt {facts['attempt']}",
        "made": _made(facts),
        "versions": ", ".join(
            f"{name} {version}"
            for name, version in {"darkroom": facts["darkroom_version"], **facts["versions"]}.items()
        ),
    }
    yield from (f"{name:<10} {_indented(str(text))}" for name, text in said.items() if text)
    if facts["same_bytes"] is False:
        yield "warning    this file does not have the bytes that the run has committed"
    yield f"again      {facts['again']}"


def _dtype(facts: Mapping[str, Any]) -> str:
    return f"{facts['dtype']} and {facts['precision']}" if facts["precision"] else str(facts["dtype"])


def _recipe(facts: Mapping[str, Any]) -> str:
    guidance = "no guidance" if facts["guidance_scale"] is None else f"guidance {facts['guidance_scale']:g}"
    return (
        f"seed {facts['seed']}, {guidance}, {facts['num_inference_steps']} steps, {facts['scheduler']}, "
        f"{facts['width']}x{facts['height']} px"
    )


def _made(facts: Mapping[str, Any]) -> str:
    if facts["device"] is None:
        return str(facts["created_at"])
    return f"{facts['created_at']}, on {facts['device']} in {facts['rows']} rows, {facts['render_s']:.3f} s"


def _at(revision: str | None) -> str:
    return f" at {revision}" if revision else ""


def _indented(text: str) -> str:
    return text.replace("\n", "\n           ")
