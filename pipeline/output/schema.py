"""The metadata schema: one row per task, in every part and in ``metadata.parquet``; every export projects it."""

import pyarrow as pa

METADATA_SCHEMA = pa.schema(
    [
        pa.field("task_id", pa.string(), nullable=False),
        ("file_name", pa.string()),
        pa.field("part_id", pa.string(), nullable=False),
        pa.field("status", pa.string(), nullable=False),
        pa.field("verdict", pa.string(), nullable=False),
        ("error", pa.string()),
        ("prompt_id", pa.string()),
        ("manifest_file", pa.string()),
        ("manifest_row", pa.int64()),
        pa.field("prompt", pa.string(), nullable=False),
        ("negative_prompt", pa.string()),
        pa.field("seed", pa.uint64(), nullable=False),
        ("guidance_scale", pa.float64()),
        pa.field("num_inference_steps", pa.uint32(), nullable=False),
        pa.field("scheduler", pa.string(), nullable=False),
        pa.field("width", pa.uint32(), nullable=False),
        pa.field("height", pa.uint32(), nullable=False),
        ("model_id", pa.string()),
        ("model_fingerprint", pa.string()),
        ("dtype", pa.string()),
        ("pixel_sha256", pa.string()),
        ("file_sha256", pa.string()),
        ("file_bytes", pa.int64()),
        ("format", pa.string()),
        ("prompt_truncated", pa.bool_()),
        ("rows", pa.int32()),
        ("device", pa.string()),
        ("render_s", pa.float64()),
        ("encode_s", pa.float64()),
        ("attempt", pa.int32()),
        ("created_at", pa.timestamp("us", tz="UTC")),
        ("darkroom_version", pa.string()),
    ]
)
"""``task_id`` and ``part_id`` are 32 hex digits. The manifest's extra columns follow, unchanged."""

PAYLOAD_COLUMNS = (
    "task_id", "prompt_id", "manifest_file", "manifest_row", "prompt", "negative_prompt", "seed", "guidance_scale",
    "num_inference_steps", "scheduler", "width", "height", "model_id", "model_fingerprint", "dtype", "pixel_sha256",
    "file_sha256", "file_bytes", "format", "prompt_truncated",
)  # fmt: skip
"""What may stand beside an image: it follows from the task and the pixels, whoever renders them and whenever."""

IMAGE = pa.field("image", pa.struct([("bytes", pa.binary()), ("path", pa.string())]))
"""An image in a table, as Hugging Face's ``datasets`` have it."""

RESERVED = frozenset(METADATA_SCHEMA.names) | {"evaluations", IMAGE.name}
"""Names an extra manifest column may not have."""


def payload_columns(rows: pa.Table) -> pa.Table:
    """Of metadata rows what goes beside their images: those columns and the manifest's own."""
    extras = [name for name in rows.column_names if name not in METADATA_SCHEMA.names]
    return rows.select([*PAYLOAD_COLUMNS, *extras]).replace_schema_metadata()
