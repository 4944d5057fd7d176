"""Names that follow from content: ``task_id``, ``part_id``, and the set of ids already committed.

The byte layout is public and versioned (``docs/identity.md`` has it with test vectors); changing it would make every
existing run render everything again.
"""

import json
import struct
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from hashlib import blake2b
from typing import Any

import numpy as np
from numpy.typing import NDArray

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

    def digest(self) -> bytes:
        """blake2b-128 over the constants as JSON with sorted keys and no spaces, 16 bytes."""
        constants = asdict(self)
        if not self.call:
            del constants["call"]
        text = json.dumps(constants, sort_keys=True, separators=(",", ":"), ensure_ascii=True, allow_nan=False)
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


class IdSet:
    """An immutable set of ids, 16 bytes each, asked about whole columns at once."""

    def __init__(self, ids: Ids | None = None) -> None:
        ids = np.empty((0, 2), np.uint64) if ids is None else ids
        order = np.lexsort((ids[:, 1], ids[:, 0]))
        ordered = ids[order]
        if len(ordered) > 1:
            fresh = np.r_[True, (ordered[1:] != ordered[:-1]).any(axis=1)]
            ordered = ordered[fresh]
        self._high = np.ascontiguousarray(ordered[:, 0])
        self._low = np.ascontiguousarray(ordered[:, 1])

    def __len__(self) -> int:
        return len(self._high)

    def ids(self) -> Ids:
        """The ids in order, (n, 2)."""
        return np.stack([self._high, self._low], axis=1)

    def union(self, others: Sequence[Ids]) -> "IdSet":
        return IdSet(np.concatenate([self.ids(), *others])) if others else self

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
