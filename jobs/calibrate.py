"""``darkroom calibrate``: how fast this device evaluates a job's model by rows of the batch."""

import json
from dataclasses import asdict
from functools import partial
from typing import Annotated

import typer

from jobs import options
from pipeline.errors import InputError
from pipeline.model.facts import resolved_dtype
from pipeline.prepare import prepare


def calibrate(
    job: options.JobFile = None,
    settings: options.Settings = None,
    manifest: options.ManifestOption = None,
    model: options.Model = None,
    sizes: options.Sizes = None,
    seconds: Annotated[float, typer.Option(min=0.1, help="About so long for each line of the table.")] = 3.0,
    as_json: options.AsJson = False,
) -> None:
    """Measure evaluations per second and memory by row count, and say which `render.rows` to set.

    Example: darkroom calibrate jobs/demo.yaml
    """
    say = partial(typer.echo, err=as_json)
    given = options.load(job, settings, manifest=manifest, model__id=model, sweep__sizes=sizes)
    prepared = prepare(given, cache_folder=options.cache_folder())
    if prepared.model.family.single:
        raise InputError(
            "this model is rendered by one call per image, which has no batch to calibrate",
            where="model",
            value=prepared.model.class_name,
        )
    # Imported late: bad input is told about before torch is loaded, which takes seconds.
    import torch

    from pipeline.rendering.calibration import best_rows
    from pipeline.rendering.calibration import calibrate as measured_rows
    from pipeline.rendering.determinism import set_up_process
    from pipeline.rendering.loading import load_model

    set_up_process()
    device = "cuda" if torch.cuda.is_available() and given.workers.gpus != 0 else "cpu"
    if device == "cpu":
        torch.set_num_threads(given.workers.cpus)
    name = torch.cuda.get_device_name() if device == "cuda" else f"CPU, {given.workers.cpus} thread(s)"
    compiled = device == "cuda" if given.render.compile == "auto" else given.render.compile
    source = prepared.source.pinned()
    precision = given.model.precision
    dtype = resolved_dtype(given.model.dtype, source.folder(), gpus=device == "cuda", precision=precision)
    loaded = load_model(
        source.folder(),
        dtype=dtype,
        device=device,
        loras=source.lora_files(),
        compiled=compiled,
        precision=precision,
    )
    best, told = [], []
    for width, height in prepared.count.sizes:
        say(f"{source.model_id}, {width}x{height} px, {dtype}{', compiled' if compiled else ''}, {name}")
        say(f"{'rows':>6} {'evaluations/s':>14} {'ms/call':>9} {'peak GiB':>9}")
        table = []
        for one in measured_rows(loaded, width, height, seconds):
            table.append(one)
            peak = "-" if one.peak_bytes is None else f"{one.peak_bytes / 2**30:.1f}"
            say(f"{one.rows:>6} {one.evaluations_per_s:>14.1f} {one.call_s * 1e3:>9.1f} {peak:>9}")
        if not table:
            raise InputError("not even two rows fit on this device", where="sweep.sizes", value=[width, height])
        best.append(best_rows(table))
        told.append({"width": width, "height": height, "best": best[-1], "measured": [asdict(one) for one in table]})
        say(f"best with {best[-1]} rows")
    say(f"--set render.rows={min(best)}")
    if as_json:
        typer.echo(json.dumps({"rows": min(best), "dtype": dtype, "compiled": compiled, "device": name, "sizes": told}))
