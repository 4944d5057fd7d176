"""Write the manifests and the LoRA of the stored runs into the working directory."""

import uuid
from datetime import date, datetime, time, timedelta
from decimal import Decimal
from pathlib import Path

import numpy as np
import pyarrow as pa
import pyarrow.parquet as pq
from safetensors.numpy import save_file

PROMPTS = [
    "a red star on a white background",
    "a small blue ring on a yellow background",
    "a green cross",
    "ein Kreis – «grün»",
]


def mixed() -> pa.Table:
    """Return rows with settings of their own, columns named like words of the page, and two rows that are equal."""
    prompts = [PROMPTS[0], PROMPTS[1], PROMPTS[0], PROMPTS[2]]
    return pa.table(
        {
            "prompt": prompts,
            "prompt_id": ["a", "b", "c", "d"],
            "negative_prompt": [None, "blurry", None, None],
            "seed": pa.array([None, 7, None, 2**32 - 1], pa.uint32()),
            "guidance_scale": [None, 2.5, None, None],
            "num_inference_steps": pa.array([None, None, None, 3], pa.int32()),
            "scheduler": [None, None, None, "euler"],
            "model": ["m0", "m1", "m2", None],
            "strength": [0.25, 0.5, None, 1.0],
            "mask": [True, False, None, True],
        }
    )


def plain() -> pa.Table:
    """Return rows with an index for a prompt_id, and columns named like words of the page."""
    return pa.table(
        {
            "prompt": PROMPTS,
            "model": [1, 2, 3, 4],
            "strength": ["weak", "strong", "", None],
            "mask": [b"\x00\xff", None, b"", b"m"],
        }
    )


def types() -> pa.Table:
    """Return rows with a column of each type that a Parquet file can hold."""
    texts = ['{"a": 1}', None]
    columns = {
        "json": pa.array(texts, pa.json_()),
        "uuid": pa.array([uuid.UUID(int=5).bytes, None], pa.uuid()),
        "map": pa.array([[("k", 1), ("l", None)], None], pa.map_(pa.string(), pa.int32())),
        "duration": pa.array([timedelta(days=1, microseconds=1), None], pa.duration("us")),
        "time32": pa.array([time(1, 2, 3), None], pa.time32("ms")),
        "time64": pa.array([time(1, 2, 3, 4), None], pa.time64("us")),
        "far": pa.array([datetime(9999, 12, 31, 23, 59, 59), datetime(1, 1, 1)], pa.timestamp("us")),
        "seconds": pa.array([253402300799, None], pa.timestamp("s")),
        "nanos": pa.array([1, None], pa.timestamp("ns", "UTC")),
        "day": pa.array([date(9999, 12, 31), None], pa.date32()),
        "day64": pa.array([date(2020, 1, 2), None], pa.date64()),
        "decimal": pa.array([Decimal("1.10"), None], pa.decimal128(5, 2)),
        "wide": pa.array([Decimal("1" * 50), None], pa.decimal256(60, 0)),
        "half": pa.array([np.float16(0.5), None], pa.float16()),
        "fixed": pa.array([b"abcd", None], pa.binary(4)),
        "category": pa.array(["x", None]).dictionary_encode(),
        "numbers": pa.array([[1, None], None], pa.list_(pa.int64())),
        "pair": pa.array([[0.5, 1.5], None], pa.list_(pa.float32(), 2)),
        "box": pa.array(
            [{"x": 1, "tags": ["t"]}, None], pa.struct([("x", pa.int8()), ("tags", pa.list_(pa.string()))])
        ),
        "big": pa.array(["L", None], pa.large_string()),
        "nothing": pa.nulls(2),
    }
    return pa.table({"prompt": PROMPTS[:2], **columns})


def lora() -> dict[str, np.ndarray]:
    """Return low-rank weights, rank 1, of one layer of the built-in model's U-Net."""
    numbers = np.random.default_rng(0)
    layer = "unet.up_blocks.1.attentions.1.transformer_blocks.0.attn2.to_out.0"
    return {
        f"{layer}.lora_A.weight": numbers.normal(size=(1, 64)).astype(np.float32),
        f"{layer}.lora_B.weight": numbers.normal(size=(64, 1)).astype(np.float32),
    }


if __name__ == "__main__":
    for table in (mixed, plain, types):
        pq.write_table(table(), Path("manifests", f"{table.__name__}.parquet"))
    save_file(lora(), Path("loras", "tint.safetensors"))
