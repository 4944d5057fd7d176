"""Names that follow from content: ``task_id``, ``part_id``, and the set of ids already committed.

The byte layout is public and versioned (``docs/identity.md`` has it with test vectors); changing it would make every
existing run render everything again.
"""

import struct
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

from pipeline.strict_json import dumps

RECIPE_VERSION = 1
ID_BYTES = 16

_NO_GUIDANCE = bytes.fromhex("000000000000f87f")
"""Little-endian quiet NaN: the one bit pattern that stands for "this model takes no guidance"."""

Ids = NDArray[np.uint64]
"""Ids in columns: (n, 2), the big-endian halves of each 16-byte id."""


@dataclass(frozen=True, slots=True, kw_only=True)
class RunConstants:
    """What decides pixels and is the same for every image of a run."""

    model_fingerprint: str
    dtype: str
    scheduler_config: Mapping[str, Any]
    call: Mapping[str, Any] = field(default_factory=dict)
    """Further arguments of the stock pipeline; an empty one does not enter the digest."""
    recipe_version: int = RECIPE_VERSION
    precision: str | None = None
    """``fp8`` where layers of the denoiser compute in float8; None does not enter the digest."""

    def digest(self) -> bytes:
        """Return the blake2b-128 of the constants as strict JSON with sorted keys and no spaces, 16 bytes."""
        constants = asdict(self)
        if not self.call:
            del constants["call"]
        if self.precision is None:
            del constants["precision"]
        text = dumps(constants, sort_keys=True, separators=(",", ":"), ensure_ascii=True)
        return blake2b(text.encode("ascii"), digest_size=ID_BYTES, person=b"darkroom.run.1").digest()


def task_prefix(run_digest: bytes, prompt: str, negative_prompt: str | None) -> blake2b:
    """The hash state shared by every point of one prompt row; copy it, then update it with ``pack_point``."""
    state = blake2b(run_digest, digest_size=ID_BYTES, person=b"darkroom.task.1")
    text, negative = prompt.encode(), (negative_prompt or "").encode()
    state.update(struct.pack("<I", len(text)) + text + struct.pack("<I", len(negative)) + negative)
    return state


def pack_point(
    *, seed: int, guidance_scale: float | None, num_inference_steps: int, scheduler: str, width: int, height: int
) -> bytes:
    """The packed sweep point: seed u64, guidance f64, steps u32, width u32, height u32, scheduler u16 length + ASCII.

    All little endian; ``guidance_scale`` is the effective one.
    """
    guidance = _NO_GUIDANCE if guidance_scale is None else struct.pack("<d", guidance_scale)
    name = scheduler.encode("ascii")
    return (
        struct.pack("<Q", seed) + guidance + struct.pack("<IIIH", num_inference_steps, width, height, len(name)) + name
    )


def task_id(run_digest: bytes, prompt: str, negative_prompt: str | None, point: bytes) -> str:
    """The id of one task, hex. Planning makes the same in columns."""
    state = task_prefix(run_digest, prompt, negative_prompt)
    state.update(point)
    return state.hexdigest()


def part_id(task_ids: Iterable[bytes]) -> str:
    """The id of the part that holds exactly these tasks in this order, hex."""
    digest = blake2b(digest_size=ID_BYTES, person=b"darkroom.part.1")
    for item in task_ids:
        assert len(item) == ID_BYTES
        digest.update(item)
    return digest.hexdigest()


def ids_from_bytes(packed: bytes | bytearray | memoryview) -> Ids:
    """Concatenated 16-byte ids to columns (n, 2); comparing the halves in turn is comparing the bytes."""
    return np.frombuffer(packed, dtype=">u8").reshape(-1, 2).astype(np.uint64)


def ids_to_bytes(ids: Ids) -> bytes:
    """Columns (n, 2) to concatenated 16-byte ids."""
    return ids.astype(">u8").tobytes()


class IdSet:
    """An immutable set of ids, 16 bytes each, asked about whole columns at once."""

    def __init__(self, ids: Ids | None = None) -> None:
        columns = () if ids is None else (ids,)
        self._fill(columns, sum(map(len, columns)))

    @classmethod
    def gathered(cls, columns: Iterable[Ids], count: int) -> "IdSet":
        """The set of ``count`` ids in all. A generator may let go of what it yields: then memory holds them once."""
        made = cls()
        made._fill(columns, count)
        return made

    def __len__(self) -> int:
        return len(self._high)

    def ids(self) -> Ids:
        """The ids in order, (n, 2)."""
        return np.stack([self._high, self._low], axis=1)

    def blocks(self, size: int) -> Iterator[Ids]:
        """The ids in order, so many at a time."""
        for start in range(0, len(self), size):
            part = slice(start, start + size)
            yield np.stack([self._high[part], self._low[part]], axis=1)

    def union(self, others: Sequence[Ids]) -> "IdSet":
        return IdSet(np.concatenate([self.ids(), *others])) if others else self

    def without(self, other: "IdSet") -> "IdSet":
        """Those that are not in the other set."""
        ids = self.ids()
        return IdSet(ids[~other.contains(ids)]) if len(other) else self

    def _fill(self, columns: Iterable[Ids], count: int) -> None:
        self._high, self._low = np.empty(count, np.uint64), np.empty(count, np.uint64)
        start = 0
        for ids in columns:
            self._high[start : start + len(ids)], self._low[start : start + len(ids)] = ids[:, 0], ids[:, 1]
            start += len(ids)
        assert start == count
        self._sort()

    def _sort(self) -> None:
        """Sort by the first half, which is several times faster than by both, then mend where it is the same."""
        if (self._high[1:] < self._high[:-1]).any():
            order = np.argsort(self._high)
            self._high = self._high[order]
            self._low = self._low[order]
        same = self._high[1:] == self._high[:-1]
        if same.any():
            tied = np.r_[False, same] | np.r_[same, False]
            self._low[tied] = self._low[tied][np.lexsort((self._low[tied], self._high[tied]))]
            fresh = np.r_[True, ~same | (self._low[1:] != self._low[:-1])]
            self._high, self._low = self._high[fresh], self._low[fresh]

    def contains(self, ids: Ids) -> NDArray[np.bool_]:
        """For each of ``ids`` (n, 2), whether it is in the set."""
        found = np.zeros(len(ids), np.bool_)
        if not len(self):
            return found
        at = np.searchsorted(self._high, ids[:, 0])
        open_ = np.arange(len(ids))
        # Ids that share their first half stand side by side; almost always there is one, so one round.
        while len(open_):
            inside = at[open_] < len(self)
            open_ = open_[inside]
            open_ = open_[self._high[at[open_]] == ids[open_, 0]]
            hit = self._low[at[open_]] == ids[open_, 1]
            found[open_[hit]] = True
            open_ = open_[~hit]
            at[open_] += 1
        return found
