"""One architecture on one device: its weights, the tasks it is measured on and who renders them."""

from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from statistics import fmean

import torch

from benchmarks.architectures import ARCHITECTURES, SEED
from benchmarks.stock import Batched, Contestant, Loop, seconds
from benchmarks.work import WORK, prompts, task
from pipeline.model.family import FAMILIES
from pipeline.model.rows import auto_rows
from pipeline.output.encode import encode
from pipeline.output.layout import Packing
from pipeline.recipe import RenderTask
from pipeline.rendering.counters import EngineCounters
from pipeline.rendering.engine import Engine
from pipeline.rendering.loading import LoadedModel, load_model
from pipeline.rendering.results import Failed, Rendered

ENGINE, COMPILED_ENGINE = "engine", "compiled"
CONTESTANTS = ("B0", "B1", "B2", ENGINE, COMPILED_ENGINE)
COMPILED = ("B2", COMPILED_ENGINE)
_PNG_THREADS = 8


@dataclass(frozen=True, slots=True, kw_only=True)
class Settings:
    """How much is measured; the command's options."""

    device: str
    dtypes: tuple[str, ...]
    """All are in the table of denoiser calls, the first in everything else."""
    compile: bool
    scheduler: str
    steps: tuple[int, int, int]
    """Fewest, usual and most inference steps."""
    table_rows: tuple[int, ...]
    compiled_rows: tuple[int, ...]
    """Rows with ``compile`` in the table; empty: the best of those without."""
    engine_rows: int | None
    """None: the best of the table without ``compile``, or what Darkroom takes by itself."""
    seconds: float
    """For each cell of the table."""
    tasks: int
    loop_tasks: int
    """Of these, how many are rendered by a contestant that takes them one at a time."""
    parity_tasks: int
    pairs: int
    batch: int | None
    """Images per call of B1 and B2; None: half the engine's rows, which is as many rows."""
    work: tuple[str, ...]
    contestants: tuple[str, ...]
    roof_tflops: float

    @property
    def engines(self) -> tuple[str, ...]:
        """The contestants that are Darkroom."""
        return (ENGINE, COMPILED_ENGINE) if self.compile else (ENGINE,)


class EngineWithFiles:
    """The engine with PNG encoding in threads beside it, as a worker has it; no store, no commit, no Ray."""

    def __init__(self, model: LoadedModel, rows: int) -> None:
        self._model, self._rows = model, rows
        self.counters = EngineCounters()
        """Of the last run."""
        self.png_s = 0.0
        """To encode one image of the last run, in its thread."""

    def __call__(self, tasks: Sequence[RenderTask], folder: Path) -> None:
        engine = Engine(self._model, self._rows)
        with ThreadPoolExecutor(_PNG_THREADS) as pool:
            saved = [pool.submit(_save, _rendered(outcome), folder) for outcome in engine.render(tasks)]
        self.png_s = fmean(one.result() for one in saved)
        self.counters = engine.counters


def _rendered(outcome: Rendered | Failed) -> Rendered:
    if isinstance(outcome, Failed):
        raise RuntimeError(f"a task failed: {outcome.error}")
    return outcome


def _save(rendered: Rendered, folder: Path) -> float:
    """Seconds to encode it."""
    encoded = encode(rendered.pixels, Packing())
    (folder / f"{rendered.task.task_id}.png").write_bytes(encoded.body)
    return encoded.encode_s


class Subject:
    """What sections measure. Contestants are loaded when first asked for and stay."""

    def __init__(self, name: str, folder: Path, settings: Settings) -> None:
        self.name, self.architecture, self.settings = name, ARCHITECTURES[name], settings
        self.side = self.architecture.side_px
        self.dtype = settings.dtypes[0]
        self.rows = settings.engine_rows or self._auto_rows()
        """Of the engine."""
        self.folder = folder
        self._models: dict[bool, LoadedModel] = {}
        self._contestants: dict[str, Contestant] = {}

    def _auto_rows(self) -> int:
        on_cpu = self.settings.device == "cpu"
        memory = None if on_cpu else torch.cuda.get_device_properties(self.settings.device).total_memory
        return auto_rows(FAMILIES[self.architecture.class_name], self.side, self.side, self.dtype, memory)

    @classmethod
    def of_folder(cls, name: str, folder: Path, *, dtype: str, device: str, rows: int) -> "Subject":
        """A subject with settings that matter for rendering alone."""
        settings = Settings(
            device=device, dtypes=(dtype,), compile=True, scheduler="euler", steps=(4, 4, 7), table_rows=(),
            compiled_rows=(), engine_rows=rows, seconds=0.0, tasks=0, loop_tasks=0, parity_tasks=0, pairs=0, batch=None,
            work=(), contestants=(), roof_tflops=0.0,
        )  # fmt: skip
        return cls(name, folder, settings)

    def loaded(self, dtype: str) -> LoadedModel:
        """The model anew, without ``compile``."""
        return load_model(self.folder, dtype=dtype, device=self.settings.device)

    def model(self, compiled: bool) -> LoadedModel:
        """The engine's model; both have the same weights in memory."""
        if not self._models:
            self._models[False] = self.loaded(self.dtype)
            self._models[True] = compiled_too(self._models[False])
        return self._models[compiled]

    def contestant(self, name: str) -> Contestant:
        """One of ``CONTESTANTS``."""
        if name not in self._contestants:
            self._contestants[name] = self._load(name)
        return self._contestants[name]

    def _load(self, name: str) -> Contestant:
        stock = (self.folder, self.architecture.class_name, self.dtype, self.settings.device)
        if name == "B0":
            return Loop(*stock)
        if name in (ENGINE, COMPILED_ENGINE):
            return EngineWithFiles(self.model(name == COMPILED_ENGINE), self.rows)
        return Batched(*stock, self.settings.batch or max(1, self.rows // 2), compiled=name == "B2")

    def make(self, prompt: str, seed: int, guidance: float, steps: int) -> RenderTask:
        """A task of this architecture's own size."""
        family = self.model(False).adapter.family
        return task(family, self.settings.scheduler, self.side, prompt, seed, guidance, steps)

    def tasks(self, work: str) -> list[RenderTask]:
        """W1 to W3 as in ``work``; W4 as in MLPerf: guidance 8."""
        fewest, usual, most = self.settings.steps
        if work == "W4":
            return [self.make(prompt, seed, 8.0, usual) for seed, prompt in enumerate(prompts(self.settings.tasks))]
        steps = {"W1": (usual,), "W2": (usual, most), "W3": (fewest, most)}[work]
        return WORK[work](self.make, self.settings.tasks, steps)

    def varied(self, count: int, steps: Sequence[int]) -> list[RenderTask]:
        """Tasks of different prompts and seeds, every other one unguided."""
        return [
            self.make(prompt, SEED + index, (1.0, 7.5)[index % 2], steps[index % len(steps)])
            for index, prompt in enumerate(prompts(count))
        ]


def compiled_too(model: LoadedModel) -> LoadedModel:
    """The same weights with ``compile``."""
    return replace(model, adapter=replace(model.adapter, compiled=True))


def images_per_call(contestant: Contestant, tasks: Sequence[RenderTask]) -> float | None:
    """Of a stock pipeline, the mean; None for the engine, whose calls are rows."""
    if isinstance(contestant, Batched):
        return fmean(len(chunk) for chunk in contestant.chunks(tasks))
    return 1.0 if isinstance(contestant, Loop) else None


def warm_up(contestant: Contestant, tasks: Sequence[RenderTask]) -> float:
    """Render one short batch of every shape that the tasks lead to, so that nothing is compiled later; seconds."""
    chunks = contestant.chunks(tasks) if isinstance(contestant, Batched) else ([task] for task in tasks)
    shapes = {(len(chunk), chunk[0].recipe.guidance_scale == 1.0): chunk for chunk in chunks}
    return sum(seconds(contestant, [_short(task) for task in chunk]) for chunk in shapes.values())


def _short(task: RenderTask) -> RenderTask:
    return replace(task, recipe=replace(task.recipe, num_inference_steps=2))
