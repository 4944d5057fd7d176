"""What renders a model's tasks: the engine where its family has an adapter, one call per image otherwise."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol

from pipeline.model.facts import read_facts
from pipeline.model.precision import not_batched
from pipeline.recipe import RenderTask
from pipeline.rendering.counters import EngineCounters
from pipeline.rendering.determinism import set_up_process
from pipeline.rendering.engine import Engine
from pipeline.rendering.loading import load_model, load_stock, schedulers_of
from pipeline.rendering.results import Outcome
from pipeline.rendering.single import SingleEngine


class Renderer(Protocol):
    """Tasks in, outcomes in completion order. Owned and stepped by one thread."""

    @property
    def busy(self) -> bool:
        """Whether some added task has no outcome yet."""

    @property
    def waiting(self) -> int:
        """The number of added tasks that have not begun."""

    @property
    def counters(self) -> EngineCounters:
        """Sums since the renderer was made."""

    def add(self, tasks: Iterable[RenderTask], *, grouped: bool = False) -> None:
        """Append to the backlog. A group's tasks may pass each other, but none of an earlier group."""

    def drop_waiting(self) -> list[RenderTask]:
        """Forget the tasks that have not begun, and return them: they will have no outcome."""

    def step(self) -> list[Outcome]:
        """Do a bounded amount of work; returns what finished."""

    def render(self, tasks: Iterable[RenderTask]) -> Iterator[Outcome]:
        """Add tasks and step until nothing is left."""


def load_renderer(
    folder: Path,
    *,
    dtype: str,
    device: str,
    rows: int | Callable[[int, int], int],
    loras: Sequence[tuple[Path, float]] = (),
    compiled: bool = False,
    call: Mapping[str, Any] | None = None,
    as_once_read: bool = False,
    precision: str | None = None,
    on_begin: Callable[[RenderTask], None] = lambda _: None,
) -> Renderer:
    """Load a model to render with. ``rows`` of the denoiser's batch are for all pictures, or by width and height (px).

    ``call``, further arguments of its stock pipeline, means one call per image. ``as_once_read`` draws what a run
    that began when the model's own scheduler was read otherwise holds (``OwnScheduler.read_otherwise``).
    ``on_begin`` gets each task before any work for it begins, from any thread.
    Settings of torch that decide last bits are those of ``determinism`` from now on, for the whole process.

    Raises ``ModelError`` as ``load_model`` does, and for an argument the pipeline does not take.
    """
    set_up_process()
    facts = read_facts(folder, single=bool(call))
    if not facts.family.single:
        model = load_model(
            folder,
            dtype=dtype,
            device=device,
            loras=loras,
            compiled=compiled,
            as_once_read=as_once_read,
            precision=precision,
        )
        return Engine(model, rows, on_begin=on_begin)
    if precision is not None:
        raise not_batched(facts.class_name)
    stock = load_stock(folder, facts, dtype=dtype, device=device, loras=loras)
    schedulers = schedulers_of(stock, facts, as_once_read=as_once_read)
    return SingleEngine(stock, schedulers=schedulers, device=device, call=call or {}, on_begin=on_begin)
