"""Where things lie in a run. Keys are made of digests only, never of a user's text."""

import re
from dataclasses import dataclass
from typing import Literal

Layout = Literal["files", "webdataset", "parquet"]
Format = Literal["png", "webp", "jpeg"]
Setting = Literal["full", "no_prompt", "off"]
"""What image files say of their making (``provenance.py``): all, all but the prompts, nothing."""

EXTENSIONS: dict[Format, str] = {"png": "png", "webp": "webp", "jpeg": "jpg"}

RUN_KEY = "_darkroom/run.json"
INDEX_PREFIX = "_darkroom/index/"
LAUNCHES_PREFIX = "_darkroom/launches/"
ADDED_PREFIX = "_darkroom/added/"
REQUESTS_PREFIX = "_darkroom/requests/"
PROMPTS_PREFIX = "_darkroom/prompts/"
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
SHARD_LIST_KEY = "shards.txt"
REPORT_KEY = "run_report.json"
EXPORT_MARK = b"darkroom.export"
"""The key in a Parquet file's metadata that tables of exports have."""
WRITTEN_PREFIXES = (
    IMAGES_PREFIX,
    "shards",
    DATA_PREFIX,
    PARTS_PREFIX,
    "_darkroom/",
    "metadata",
    "failures",
    "requests",
)
"""What every key of an output begins with, but for the card's."""

_NAME = r"[0-9a-f]{32}-[0-9a-f]{8}"
_PAYLOAD = re.compile(
    rf"{IMAGES_PREFIX}[0-9a-f]{{2}}/{_NAME}\.({'|'.join(EXTENSIONS.values())})"
    rf"|{SHARDS_PREFIX}{_NAME}\.tar|{DATA_PREFIX}{_NAME}\.parquet"
)
_TABLE = re.compile(
    rf"({DATA_PREFIX}|{PARTS_PREFIX}[0-9a-f]{{2}}/){_NAME}\.parquet|metadata-[0-9]{{5,}}\.parquet"
    rf"|{re.escape(METADATA_KEY)}|{re.escape(FAILURES_KEY)}|{re.escape(REQUESTS_KEY)}"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class Packing:
    """How a run keeps its images; the same for all of them."""

    layout: Layout = "files"
    format: Format = "png"
    jpeg_quality: int | None = None
    """1 to 100; None where the format is another."""
    provenance: Setting | None = None
    """None in runs that began before there was a choice: their files say nothing."""
    columns: Literal["readable"] | None = None
    """The manifest's own columns are kept in types that ``datasets`` reads; None in runs that began before that."""


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


def is_payload_key(key: str) -> bool:
    """Whether it is such as the three above make: what else lies in these folders is somebody's own."""
    return _PAYLOAD.fullmatch(key) is not None


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


def is_table(key: str) -> bool:
    """Tell whether a run writes a table under such a key."""
    return _TABLE.fullmatch(key) is not None


def added_key(launch_id: str) -> str:
    """``_darkroom/added/<launch>.parquet``: what a launch added."""
    return f"{ADDED_PREFIX}{launch_id}.parquet"


def requests_key(digest: str) -> str:
    """``_darkroom/requests/<digest of its own bytes>.parquet``."""
    return f"{REQUESTS_PREFIX}{digest}.parquet"


def prompt_key(digest: str) -> str:
    """``_darkroom/prompts/<digest of the prompts>.parquet``: the manifest of a job about one prompt."""
    return f"{PROMPTS_PREFIX}{digest}.parquet"


def part_of_key(key: str) -> str:
    """The part's name from its key."""
    return key.rpartition("/")[2].removesuffix(".parquet")
