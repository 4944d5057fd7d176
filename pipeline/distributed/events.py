"""What a worker tells the driver, as values: this module loads neither torch nor Ray."""

from dataclasses import dataclass
from typing import Literal

import pyarrow as pa

from pipeline.distributed.report import Drawn
from pipeline.errors import DarkroomError


@dataclass(frozen=True, slots=True, kw_only=True)
class Begun:
    """The worker's process runs, and begins to load the model."""

    node_id: str
    process_id: str
    """32 hex digits, others for each process."""
    journal: str
    """The path of its journal on that node (``journal.py``)."""


@dataclass(frozen=True, slots=True)
class Ready:
    """The model is loaded."""


@dataclass(frozen=True, slots=True)
class Waiting:
    """The worker cannot go on now, and tries again."""

    reason: str


@dataclass(frozen=True, slots=True)
class GaveUp:
    """The worker ends, and no task is to blame.

    It could not load the model (``start``), found no room for the model on a device that nobody else uses (``room``),
    or other processes hold the device (``held``).
    """

    why: Literal["start", "room", "held"]
    error: DarkroomError
    only_node: bool = False
    """No other node has such devices."""


@dataclass(frozen=True, slots=True)
class Broken:
    """Something that no other worker would do better."""

    error: DarkroomError


@dataclass(frozen=True, slots=True)
class Working:
    """What the process has drawn since it began; not all of it is committed."""

    drawn: Drawn


@dataclass(frozen=True, slots=True)
class Committed:
    """Tasks of a lease are committed."""

    lease: int
    outcomes: pa.Table
    """A row per task (``outcomes.py``)."""


@dataclass(frozen=True, slots=True)
class Ended:
    """Nothing more comes of a lease: what is not committed of it was not begun."""

    lease: int


@dataclass(frozen=True, slots=True)
class Idle:
    """A worker that was told to stop has nothing in hand any more."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Died:
    """The worker's process is gone. Told by whoever watches over it."""

    reason: str
    lost_node: bool = False
    """Its node is gone as well, or about to go."""
    in_flight: frozenset[bytes] = frozenset()
    """Ids of the tasks it had begun and not finished, as far as its journal could be read."""
    parts: tuple[str, ...] = ()
    """The ids of parts that it was about to commit; some may be in the store though nobody was told."""


Event = Begun | Ready | Waiting | GaveUp | Broken | Working | Committed | Ended | Idle | Died
