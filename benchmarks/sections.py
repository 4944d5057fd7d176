"""The sections of ``benchmarks.gpu``: each measures one side of a subject and fills one table."""

import time
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from random import Random
from statistics import median
from tempfile import TemporaryDirectory

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from benchmarks.architectures import SEED
from benchmarks.device_sections import attention, decoder, processes, waits
from benchmarks.figures import Figures, Row
from benchmarks.stock import Contestant, seconds
from benchmarks.subject import COMPILED_ENGINE, ENGINE, EngineWithFiles, Subject, compiled_too, images_per_call, warm_up
from pipeline.recipe import RenderTask
from pipeline.rendering.calibration import Measured, best_rows, measure
from pipeline.rendering.loading import LoadedModel

Pictures = Mapping[str, NDArray[np.uint8]]
"""(height, width, 3) 0..255 by ``task_id``"""


def table(subject: Subject, figures: Figures) -> None:
    """Calls of the denoiser by rows, dtype and ``compile``; the engine then takes the best rows without ``compile``.

    ``first s`` is the time to the end of the first calls, with the compiler's. TFLOP/s count the network's own.
    """
    columns = ("dtype", "compile", "rows", "evaluations/s", "ms/call", "peak GiB", "first s", "TFLOP/s", "of roof")
    figures.table(f"{subject.name} denoiser", columns)
    settings = subject.settings
    for dtype in settings.dtypes:
        plain = subject.model(False) if dtype == subject.dtype else subject.loaded(dtype)
        cells = [cell for rows in settings.table_rows for cell in _cell(subject, figures, plain, rows)]
        if cells and dtype == subject.dtype and settings.engine_rows is None:
            subject.rows = best_rows(cells)
        if settings.compile and cells:
            compiled = subject.model(True) if dtype == subject.dtype else compiled_too(plain)
            for rows in settings.compiled_rows or (best_rows(cells),):
                _cell(subject, figures, compiled, rows)


def _cell(subject: Subject, figures: Figures, model: LoadedModel, rows: int) -> list[Measured]:
    """One row of the table; empty where there was no time or no memory for it."""
    measured: list[Measured] = []
    what: Row = {"dtype": model.dtype, "compile": model.adapter.compiled, "rows": rows}
    if figures.may_start(" ".join([subject.name, *(f"{name} {value}" for name, value in what.items())])):
        with figures.surviving(what):
            began = time.perf_counter()
            measure(model, rows, subject.side, subject.side, 0.0)
            first_s = time.perf_counter() - began
            measured.append(measure(model, rows, subject.side, subject.side, subject.settings.seconds))
            figures.row({**what, **_speed(subject, measured[0]), "first s": first_s})
    return measured


def _speed(subject: Subject, measured: Measured) -> Row:
    gflop, roof = subject.architecture.gflop, subject.settings.roof_tflops
    tflops = None if gflop is None else measured.evaluations_per_s * gflop / 1e3
    return {
        "evaluations/s": measured.evaluations_per_s,
        "ms/call": measured.call_s * 1e3,
        "peak GiB": None if measured.peak_bytes is None else measured.peak_bytes / 2**30,
        "TFLOP/s": tflops,
        "of roof": None if tflops is None else tflops / roof,
    }


def stages(subject: Subject, figures: Figures) -> None:
    """Where the engine's time goes on W1.

    ``busy`` is the denoiser's calls, each as long as in a row of its own, over the time of the run. The seconds of
    denoise and decode are the device's, those of encode the preparation's, beside it.
    """
    columns = ("contestant", "rows", "images", "images/s", "real rows", "busy", "encode s", "denoise s", "decode s",
               "PNG ms")  # fmt: skip
    figures.table(f"{subject.name} stages", columns)
    tasks = subject.tasks("W1")
    for name in subject.settings.engines:
        what: Row = {"contestant": name, "rows": subject.rows, "images": len(tasks)}
        if not figures.may_start(f"{subject.name} stages {name}"):
            continue
        with figures.surviving(what):
            model = subject.model(name == COMPILED_ENGINE)
            engine = EngineWithFiles(model, subject.rows)
            warm_up(engine, tasks)
            call_s = measure(model, subject.rows, subject.side, subject.side, subject.settings.seconds).call_s
            wall_s, counted = seconds(engine, tasks), engine.counters
            figures.row({
                **what,
                "images/s": len(tasks) / wall_s,
                "real rows": counted.real_rows,
                "busy": counted.denoiser_calls * call_s / wall_s,
                "encode s": counted.encode_s,
                "denoise s": counted.denoise_s,
                "decode s": counted.decode_s,
                "PNG ms": engine.png_s * 1e3,
            })  # fmt: skip


def parity(subject: Subject, figures: Figures) -> None:
    """Pictures against the stock pipeline called for each alone, same dtype; B1 shows what batching alone changes.

    Required of the engine: in float32 on a CPU at most 1/255 anywhere; else, and compiled, at most 2/255 on average.
    """
    columns = ("contestant", "images", "largest /255", "mean /255", "contrast /255", "as required")
    figures.table(f"{subject.name} parity", columns)
    tasks = subject.varied(subject.settings.parity_tasks, subject.settings.steps[1:2])
    alone: Pictures = {}
    for name in ("B0", "B1", *subject.settings.engines):
        what: Row = {"contestant": name, "images": len(tasks)}
        if (alone or name == "B0") and figures.may_start(f"{subject.name} parity {name}"):
            with figures.surviving(what):
                drawn = _pictures(subject.contestant(name), tasks)
                alone = alone or drawn
                largest, mean = _difference(drawn, alone)
                figures.row({
                    **what,
                    "largest /255": largest,
                    "mean /255": mean,
                    "contrast /255": float(np.mean([picture.std() for picture in drawn.values()])),
                    "as required": _as_required(subject, name, largest, mean),
                })  # fmt: skip


def _as_required(subject: Subject, name: str, largest: int, mean: float) -> bool | None:
    if name not in subject.settings.engines:
        return None
    exact = subject.dtype == "float32" and subject.settings.device == "cpu" and name == ENGINE
    return largest <= 1 if exact else mean <= 2


def invariance(subject: Subject, figures: Figures) -> None:
    """A task in the middle of strangers against itself alone in the batch, and all of them in another order."""
    columns = ("contestant", "compared", "images", "byte-equal", "largest /255")
    figures.table(f"{subject.name} invariance", columns)
    fewest, usual, _ = subject.settings.steps
    *strangers, watched = subject.varied(max(7, subject.rows + 1), (usual, fewest, usual))
    middle = len(strangers) // 2
    among = [*strangers[:middle], watched, *strangers[middle:]]
    for name in subject.settings.engines:
        if not figures.may_start(f"{subject.name} invariance {name}"):
            continue
        with figures.surviving({"contestant": name}):
            engine = subject.contestant(name)
            drawn = _pictures(engine, among)
            for compared, tasks in (
                ("alone", [watched]),
                ("reordered", Random(SEED).sample(among, len(among))),
            ):
                largest, _ = _difference(_pictures(engine, tasks), drawn)
                equal: Row = {"images": len(tasks), "byte-equal": largest == 0, "largest /255": largest}
                figures.row({"contestant": name, "compared": compared, **equal})


def _pictures(contestant: Contestant, tasks: Sequence[RenderTask]) -> Pictures:
    with TemporaryDirectory(prefix="darkroom-benchmark-") as folder:
        contestant(tasks, Path(folder))
        return {task.task_id: np.asarray(Image.open(Path(folder) / f"{task.task_id}.png")) for task in tasks}


def _difference(some: Pictures, others: Pictures) -> tuple[int, float]:
    """The largest and the mean between equal tasks, of 255."""
    apart = np.stack([np.abs(picture.astype(np.int16) - others[name]) for name, picture in some.items()])
    return int(apart.max()), float(apart.mean())


def works(subject: Subject, figures: Figures) -> None:
    """Images per second, PNG files included, in turns; medians of the rounds and of the rounds' ratios.

    A contestant that takes tasks one at a time is timed on some of them: its time goes by their steps. ``first s`` is
    one short batch of every shape, with the compiler's time.
    """
    columns = (
        "work",
        "contestant",
        "images",
        "images/call",
        "first s",
        "images/s",
        "x B0",
        "x B1",
        "x B2",
        "real rows",
    )
    figures.table(f"{subject.name} work", columns)
    for work in subject.settings.work:
        if work != "W4" or subject.name == "sdxl":
            _rounds(subject, figures, work)


def _rounds(subject: Subject, figures: Figures, work: str) -> None:
    tasks = subject.tasks(work)
    sample = Random(SEED).sample(tasks, min(len(tasks), subject.settings.loop_tasks))
    own = {name: sample if _one_by_one(name, work) else tasks for name in subject.settings.contestants}
    rates: dict[str, list[float]] = {}
    first_s: dict[str, float] = {}
    for number in range(subject.settings.pairs):
        for name in own if number == 0 else list(rates):
            if not figures.may_start(f"{subject.name} {work} {name} round {number + 1}"):
                continue
            with figures.surviving({"work": work, "contestant": name}):
                contestant = subject.contestant(name)
                if number == 0:
                    first_s[name] = warm_up(contestant, own[name])
                images_per_s = _steps(own[name]) / _steps(tasks) * len(tasks) / seconds(contestant, own[name])
                rates.setdefault(name, []).append(images_per_s)
    for name, seen in rates.items():
        contestant = subject.contestant(name)
        figures.row({
            "work": work,
            "contestant": name,
            "images": len(own[name]),
            "images/call": images_per_call(contestant, own[name]),
            "first s": first_s[name],
            "images/s": median(seen),
            **{f"x {rival}": _ratio(seen, rates.get(rival, ())) for rival in ("B0", "B1", "B2")},
            "real rows": contestant.counters.real_rows if isinstance(contestant, EngineWithFiles) else None,
        })  # fmt: skip


def _one_by_one(name: str, work: str) -> bool:
    """Also where all of a batching contestant's groups have one member."""
    return name == "B0" or (work == "W3" and name in ("B1", "B2"))


def _steps(tasks: Sequence[RenderTask]) -> int:
    return sum(task.recipe.num_inference_steps for task in tasks)


def _ratio(rates: Sequence[float], rivals: Sequence[float]) -> float | None:
    """The median over rounds; None where the rival has no figure."""
    ratios = [own / rival for own, rival in zip(rates, rivals, strict=False)]
    return median(ratios) if ratios else None


SECTIONS: Mapping[str, Callable[[Subject, Figures], None]] = {
    "table": table,
    "attention": attention,
    "decoder": decoder,
    "work": works,
    "waits": waits,
    "processes": processes,
    "stages": stages,
    "parity": parity,
    "invariance": invariance,
}
"""In the order of what decides."""
