"""The images of a part in one file: a tar as WebDataset wants it, or Parquet as Hugging Face's datasets want it."""

import base64
import io
import json
import math
import tarfile
from collections.abc import Callable, Iterator
from datetime import date, datetime, time
from typing import Any, BinaryIO

import pyarrow as pa
import pyarrow.parquet as pq

from pipeline.output.schema import IMAGE, payload_columns
from pipeline.output.values import python_rows

GROUP_IMAGES = 100
GROUP_BYTES = 16 * 2**20
"""Whichever is reached first ends a row group. A reader holds one in memory, a writer some eight times as much."""

_HUGGING_FACE = json.dumps({"info": {"features": {IMAGE.name: {"_type": "Image"}}}})
"""Tells ``datasets`` what the image column is; the types of all others it reads from the schema."""


def write_tar(file: BinaryIO, rows: pa.Table, image_of: Callable[[str], bytes], extension: str) -> None:
    """A sample of three members per row, in order: the image, ``.json`` with all of the row, ``.txt`` with the prompt.

    Names have one dot, since readers split them at the first.
    """
    with tarfile.open(fileobj=file, mode="w", format=tarfile.USTAR_FORMAT) as tar:
        for row in python_rows(payload_columns(rows), maps="lossy"):
            name, prompt = row["task_id"], row["prompt"]
            described = json.dumps(_without_nulls(plain_json(row)), ensure_ascii=False).encode()
            for suffix, body in ((extension, image_of(name)), ("json", described), ("txt", prompt.encode())):
                member = tarfile.TarInfo(f"{name}.{suffix}")
                member.size = len(body)
                tar.addfile(member, io.BytesIO(body))


def _without_nulls(row: dict[str, Any]) -> dict[str, Any]:
    """Readers that take types from the first samples stumble over null where a later one has a value."""
    return {name: value for name, value in row.items() if value is not None}


def plain_json(value: Any) -> Any:
    """A value of Arrow as JSON has it: times in ISO 8601, bytes in base64, NaN and infinities null."""
    if isinstance(value, dict):
        return {str(key): plain_json(inner) for key, inner in value.items()}
    if isinstance(value, list | tuple):
        return [plain_json(inner) for inner in value]
    if isinstance(value, bytes):
        return base64.b64encode(value).decode()
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if isinstance(value, datetime | date | time):
        return value.isoformat()
    return value if value is None or isinstance(value, bool | int | str) else str(value)


def write_table(file: BinaryIO, rows: pa.Table, image_of: Callable[[str], bytes], extension: str) -> None:
    """A row per image: the image as {bytes, path}, then its description. Images are compressed already."""
    described = payload_columns(rows)
    schema = pa.schema([IMAGE, *described.schema], {"huggingface": _HUGGING_FACE})
    others = described.column_names
    with pq.ParquetWriter(file, schema, compression="none", use_dictionary=others, write_statistics=others) as writer:
        for start, length in _groups(rows["file_bytes"].to_pylist()):
            group = described.slice(start, length)
            names = group["task_id"].to_pylist()
            bodies, paths = [image_of(name) for name in names], [f"{name}.{extension}" for name in names]
            images = pa.StructArray.from_arrays([bodies, paths], fields=list(IMAGE.type))
            writer.write_table(pa.table([images, *group.columns], schema=schema))


def _groups(sizes: list[int]) -> Iterator[tuple[int, int]]:
    """First row and number of rows of each row group."""
    start = total = 0
    for number, size in enumerate(sizes):
        if number > start and (number - start == GROUP_IMAGES or total + size > GROUP_BYTES):
            yield start, number - start
            start, total = number, 0
        total += size
    yield start, len(sizes) - start
