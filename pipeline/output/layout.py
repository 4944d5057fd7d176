"""Where things lie in a run. Keys are made of digests only, never of a user's text."""

from dataclasses import dataclass
from typing import Literal

Layout = Literal["files", "webdataset", "parquet"]
Format = Literal["png", "webp", "jpeg"]

EXTENSIONS: dict[Format, str] = {"png": "png", "webp": "webp", "jpeg": "jpg"}

RUN_KEY = "_darkroom/run.json"
INDEX_PREFIX = "_darkroom/index/"
LAUNCHES_PREFIX = "_darkroom/launches/"
ADDED_PREFIX = "_darkroom/added/"
REQUESTS_PREFIX = "_darkroom/requests/"
ATTEMPTS_PREFIX = "_darkroom/attempts/"
FINALIZED_KEY = "_darkroom/finalized.json"
PARTS_PREFIX = "metadata/"
IMAGES_PREFIX = "images/"
SHARDS_PREFIX = "shards/"
DATA_PREFIX = "data/"
METADATA_KEY = "metadata.parquet"
FAILURES_KEY = "failures.parquet"
REQUESTS_KEY = "requests.parquet"
CARD_KEY = "README.md"


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """How a run keeps its images; the same for all of them."""

    layout: Layout = "files"
    format: Format = "png"
    jpeg_quality: int | None = None
    """1 to 100; None where the format is another."""


PNG_FILES = Packing()


def image_key(task_id: str, file_sha256: str, extension: str) -> str:
    """``images/<2 hex>/<task_id>-<8 hex of its own digest>.png``: other bytes never overwrite these."""
    return f"{IMAGES_PREFIX}{task_id[:2]}/{task_id}-{file_sha256[:8]}.{extension}"


def shard_key(part_id: str, file_sha256: str) -> str:
    """``shards/<part_id>-<8 hex of its own digest>.tar``"""
    return f"{SHARDS_PREFIX}{part_id}-{file_sha256[:8]}.tar"


def data_key(part_id: str, file_sha256: str) -> str:
    """``data/<part_id>-<8 hex of its own digest>.parquet``"""
    return f"{DATA_PREFIX}{part_id}-{file_sha256[:8]}.parquet"


def object_of(file_name: str) -> tuple[str, str | None]:
    """The key of the object that holds an image, and the image's name in it; None where it is all of the object."""
    if file_name.startswith(IMAGES_PREFIX):
        return file_name, None
    key, _, member = file_name.rpartition("/")
    return key, member


def part_prefix(part_id: str) -> str:
    """What the keys of all parts with exactly these tasks begin with; there are several after a retry."""
    return f"{PARTS_PREFIX}{part_id[:2]}/{part_id}-"


def part_key(part_id: str, file_sha256: str) -> str:
    """``metadata/<2 hex>/<part_id>-<8 hex of its own digest>.parquet``: other bytes never overwrite these."""
    return f"{part_prefix(part_id)}{file_sha256[:8]}.parquet"


def added_key(launch_id: str) -> str:
    """``_darkroom/added/<launch>.parquet``: what a launch added."""
    return f"{ADDED_PREFIX}{launch_id}.parquet"


def requests_key(digest: str) -> str:
    """``_darkroom/requests/<digest of its own bytes>.parquet``."""
    return f"{REQUESTS_PREFIX}{digest}.parquet"


def part_of_key(key: str) -> str:
    """The part's name from its key."""
    return key.rpartition("/")[2].removesuffix(".parquet")
