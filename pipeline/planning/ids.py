"""The ids of tasks in columns; ``pipeline/identity.py`` says the same one task at a time."""

import numpy as np

from pipeline.identity import Ids, ids_from_bytes, task_prefix
from pipeline.planning.pieces import Piece
from pipeline.planning.points import Points


def task_ids(piece: Piece, run_digest: bytes) -> Ids:
    """The ids of all tasks of a piece, (n, 2). The negative prompt enters where the point uses it."""
    prompts, negatives = piece.batch["prompt"].to_pylist(), piece.batch["negative_prompt"].to_pylist()
    packed, uses = pack_points(piece.points), piece.points.uses_negative_prompt.tolist()
    starts, stops = piece.first_point.tolist(), (piece.first_point + piece.counts).tolist()
    digests: list[bytes] = []
    for prompt, negative, start, stop in zip(prompts, negatives, starts, stops, strict=True):
        if stop - start == 1:
            state = task_prefix(run_digest, prompt, negative if uses[start] else None)
            state.update(packed[start])
            digests.append(state.digest())
            continue
        plain = task_prefix(run_digest, prompt, None)
        guided = task_prefix(run_digest, prompt, negative) if negative else plain
        for point, with_negative in zip(packed[start:stop], uses[start:stop], strict=True):
            state = (guided if with_negative else plain).copy()
            state.update(point)
            digests.append(state.digest())
    return ids_from_bytes(b"".join(digests))


def pack_points(points: Points) -> list[bytes]:
    """Every point as ``pipeline.identity.pack_point`` packs it."""
    names = np.array([name.encode("ascii") for name in points.scheduler_names])
    lengths = np.array([len(name) for name in points.scheduler_names], np.uint16)
    columns = {
        "seed": ("<u8", points.seed),
        "guidance_scale": ("<f8", points.guidance_scale),
        "num_inference_steps": ("<u4", points.num_inference_steps),
        "width": ("<u4", points.width),
        "height": ("<u4", points.height),
        "name_bytes": ("<u2", lengths[points.scheduler]),
        "name": (names.dtype, names[points.scheduler]),
    }
    table = np.empty(len(points), [(name, dtype) for name, (dtype, _) in columns.items()])
    for name, (_, column) in columns.items():
        table[name] = column
    raw, size = table.tobytes(), table.itemsize
    begins = np.arange(len(points)) * size
    ends = begins + size - names.itemsize + lengths[points.scheduler]
    return [raw[begin:end] for begin, end in zip(begins.tolist(), ends.tolist(), strict=True)]
