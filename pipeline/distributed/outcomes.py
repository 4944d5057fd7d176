"""What workers tell the driver of each shard: a table with a row per task, and how it adds up.

This module loads neither torch nor Ray.
"""

import sys
from collections import Counter
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field, fields, replace
from typing import Any

import pyarrow as pa
import pyarrow.compute as pc

from pipeline.distributed.report import Drawn, Mark, Progress, Telling
from pipeline.identity import Ids, ids_from_bytes
from pipeline.output.schema import METADATA_SCHEMA
from pipeline.planning.amount import Amount
from pipeline.rendering.counters import EngineCounters
from pipeline.storage.traffic import Traffic

OUTCOME_COLUMNS = (
    "task_id", "file_name", "status", "verdict", "error", "prompt_id", "manifest_file", "manifest_row", "file_bytes",
    "render_s", "encode_s",
)  # fmt: skip
SHOWN_FAILURES = 10

_OUTCOME_SCHEMA = pa.schema(
    [
        *(METADATA_SCHEMA.field(name).with_nullable(True) for name in OUTCOME_COLUMNS),
        ("megapixel_evaluations", pa.float64()),
    ]
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Worked:
    """What one process has done since it began, or several together."""

    engine: EngineCounters = field(default_factory=EngineCounters)
    traffic: Traffic = field(default_factory=Traffic)

    def __add__(self, other: "Worked") -> "Worked":
        return Worked(engine=self.engine + other.engine, traffic=self.traffic + other.traffic)


@dataclass(frozen=True, slots=True, kw_only=True)
class Teller:
    """The process that tells."""

    worker: str
    """Host and process."""
    model_load: str
    """Another one for each time that a model was loaded."""

    def told(self, rows: pa.Table, shard: pa.Table, worked: Worked) -> pa.Table:
        """The outcomes of a shard, given their metadata and what this process has done so far."""
        ids = pa.array([task_id.hex() for task_id in shard["task_id"].to_pylist()])
        planned = shard.take(pc.index_in(rows["task_id"], ids).combine_chunks())
        pixels = pc.multiply(planned["width"].cast(pa.float64()), planned["height"])
        work = pc.divide(pc.multiply(pixels, planned["evaluations"]), 1e6)
        outcomes = rows.select(OUTCOME_COLUMNS).append_column("megapixel_evaluations", work).cast(_OUTCOME_SCHEMA)
        return self._signed(outcomes, worked)

    def _signed(self, outcomes: pa.Table, worked: Worked) -> pa.Table:
        for name, value in (asdict(self) | asdict(worked.engine) | asdict(worked.traffic)).items():
            outcomes = outcomes.append_column(_SUM.get(name, name), pa.array([value] * outcomes.num_rows))
        return outcomes


_SUM = {f.name: f"sum_{f.name}" for kind in (EngineCounters, Traffic) for f in fields(kind)}
"""Columns of what a process has done so far: some are named as those of a task."""


@dataclass(slots=True, kw_only=True)
class Tally:
    """Everything workers told. Owned by the waves of one launch."""

    progress: Progress
    failures: list[dict[str, object]] = field(default_factory=list)
    """The first tasks that failed."""
    reported: list[Ids] = field(default_factory=list)
    told: Counter[str] = field(default_factory=Counter)
    """Of how many tasks, by model load."""
    verdicts: Counter[str] = field(default_factory=Counter)
    """Of images and failures, but for ``ok``."""
    encode_s: float = 0.0
    """Of images, in threads beside the engines."""
    _drawn: dict[str, Drawn] = field(default_factory=dict)
    """By process, of those that are at work."""
    _worked: dict[str, Worked] = field(default_factory=dict)
    _engine: EngineCounters = field(default_factory=EngineCounters)
    """The sum over all processes, kept up to date: with a thousand of them, adding them up costs milliseconds."""
    _tellings: dict[str, Telling] = field(default_factory=dict)
    _most_workers: int = sys.maxsize

    @classmethod
    def of(cls, total: Amount, most_workers: int = sys.maxsize) -> "Tally":
        """Before the first outcome; ``most_workers`` can be at work at once."""
        return cls(progress=Progress(total=total), _most_workers=most_workers)

    @property
    def model_loads(self) -> int:
        return len(self._worked)

    @property
    def worked(self) -> Worked:
        """What all processes together have done."""
        return sum(self._worked.values(), Worked())

    def take(self, told: pa.Table, now_s: float) -> pa.Table:
        """Add a worker's table, which arrived now, by a monotonic clock; returns the outcomes in it."""
        loads = told.group_by("model_load", use_threads=False)
        for row in loads.aggregate([(name, "max") for name in _SUM.values()]).to_pylist():
            self._keep_latest(row["model_load"], {name: row[f"{column}_max"] for name, column in _SUM.items()})
            own = told.filter(pc.equal(told["model_load"], row["model_load"]))
            self._note(row["model_load"], now_s, _sum(own["megapixel_evaluations"]))
        self.told.update(told["model_load"].to_pylist())
        self.reported.append(ids_from_bytes(bytes.fromhex("".join(told["task_id"].to_pylist()))))
        self.verdicts.update(verdict for verdict in told["verdict"].to_pylist() if verdict not in (None, "ok"))
        failed = told.filter(pc.equal(told["status"], "failed"))
        shown = failed.slice(0, max(0, SHOWN_FAILURES - len(self.failures)))
        self.failures += shown.select([*OUTCOME_COLUMNS]).to_pylist()
        self.encode_s += _sum(told["encode_s"])
        self.progress = replace(
            self.progress,
            ok=self.progress.ok + told.num_rows - failed.num_rows,
            failed=self.progress.failed + failed.num_rows,
            megapixel_evaluations=self.progress.megapixel_evaluations + _sum(told["megapixel_evaluations"]),
            tellings=tuple(self._tellings.values())[-self._most_workers :],
            engine=self._engine,
        )
        return told

    def hear(self, drawn: Mapping[str, Drawn], now_s: float) -> None:
        """Take in what processes have drawn since they began, of which not all has been told."""
        for model_load, one in drawn.items():
            known = self._worked.get(model_load, Worked())
            # A mark without new work would be taken for a slow worker.
            if one.engine.megapixel_evaluations > known.engine.megapixel_evaluations:
                self._keep(model_load, replace(known, engine=one.engine))
                self._note(model_load, now_s, 0.0)
        self._drawn.update(drawn)
        self.progress = replace(
            self.progress,
            drawn=self._not_committed(),
            tellings=tuple(self._tellings.values())[-self._most_workers :],
            engine=self._engine,
        )

    def forget(self, model_load: str) -> None:
        """Leave out what a process has drawn and not committed: it is gone."""
        if self._drawn.pop(model_load, None) is not None:
            self.progress = replace(self.progress, drawn=self._not_committed())

    def _not_committed(self) -> int:
        return sum(max(0, one.images - self.told[model_load]) for model_load, one in self._drawn.items())

    def _note(self, model_load: str, now_s: float, committed: float) -> None:
        """The process that told last is the last: of more than can be at work, who was silent longest is gone."""
        engine = self._worked[model_load].engine
        mark = Mark(at_s=now_s, work=engine.megapixel_evaluations)
        before = self._tellings.pop(model_load, None) or Telling(first=mark, recent=(), busy_s=0.0)
        self._tellings[model_load] = before.then(mark, engine.busy_s, committed)

    def _keep_latest(self, model_load: str, sums: Mapping[str, Any]) -> None:
        """Tables of one process may come in another order than they were written; its sums only grow."""
        known = self._worked.get(model_load, Worked())
        latest = Worked(
            engine=EngineCounters(**_larger(asdict(known.engine), sums)),
            traffic=Traffic(**_larger(asdict(known.traffic), sums)),
        )
        self._keep(model_load, latest)

    def _keep(self, model_load: str, latest: Worked) -> None:
        before = self._worked.get(model_load, Worked())
        self._engine += latest.engine - before.engine
        self._worked[model_load] = latest


def _sum(column: pa.ChunkedArray) -> float:
    return pc.sum(column).as_py() or 0.0


def _larger(known: Mapping[str, Any], now: Mapping[str, Any]) -> dict[str, Any]:
    return {name: max(value, now[name]) for name, value in known.items()}
