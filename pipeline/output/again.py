"""The one command that renders a committed image again, from its metadata row and its run."""

import json
import shlex
from collections.abc import Iterator, Mapping
from typing import Any

import numpy as np

from pipeline.output.run import Run


def command_of(run: Run, row: Mapping[str, Any], output: str) -> str:
    """A line for a shell, which renders the image of this row into another output: the same pixels, the same file.

    A model that is named by a relative path is found from where the run was started.
    """
    rows = _set({"render.rows": row["rows"]} if (row["rows"] or 0) > 1 else {})  # they decide last bits
    return shlex.join(["darkroom", "render", *_recipe(row), *words_of(run), *rows, "--output", output])


def words_of(run: Run) -> list[str]:
    """What of such a line is the same for all images of a run: the model as it was, and how files are written."""
    return [*_model(run), *_settings(run)]


def _recipe(row: Mapping[str, Any]) -> Iterator[str]:
    yield from ("--prompt", row["prompt"])
    if row["negative_prompt"]:
        yield from ("--negative-prompt", row["negative_prompt"])
    yield from ("--seeds", str(row["seed"]))
    if row["guidance_scale"] is not None:
        yield from ("--guidance-scales", np.format_float_positional(row["guidance_scale"], trim="-"))
    yield from ("--steps", str(row["num_inference_steps"]), "--schedulers", row["scheduler"])
    yield from ("--sizes", f"{row['width']}x{row['height']}")


def _model(run: Run) -> Iterator[str]:
    yield from ("--model", run.model_id)
    wanted = {
        "model.revision": run.model_revision,
        "model.dtype": run.constants.dtype,
        "model.loras": run.job.get("model", {}).get("loras"),
        "model.call": run.constants.call,
        "model.precision": run.constants.precision,
        # Where the model was loaded without its checker it may be one that is refused, or much to fetch.
        "render.safety_checker": "off" if run.job.get("render", {}).get("safety_checker") == "off" else None,
    }
    if run.model_id.startswith("s3://"):
        wanted |= {f"s3.{name}": value for name, value in run.job.get("s3", {}).items() if value != "auto"}
    yield from _set({key: value for key, value in wanted.items() if value})


def _settings(run: Run) -> Iterator[str]:
    """What decides last bits, and how the file is written."""
    numerics, packing = run.numerics, run.packing
    on_cpu = numerics.device == "cpu"
    yield from _set(
        {
            **({"render.compile": numerics.compiled} if numerics.compiled == on_cpu else {}),
            **({"workers.gpus": 0} if on_cpu else {}),
            **({"workers.cpus": numerics.threads} if numerics.threads != 1 else {}),
            **({"output.format": packing.format} if packing.format != "png" else {}),
            **({"output.jpeg_quality": packing.jpeg_quality} if packing.jpeg_quality else {}),
            **({"output.provenance": packing.provenance or "off"} if packing.provenance != "full" else {}),
        }
    )


def _set(values: Mapping[str, Any]) -> Iterator[str]:
    """Values as JSON, which is YAML too."""
    for key, value in values.items():
        text = value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)
        yield from ("--set", f"{key}={text}")
