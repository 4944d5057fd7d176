"""Where things lie in a run. Keys are made of digests only, never of a user's text."""

RUN_KEY = "_darkroom/run.json"
INDEX_PREFIX = "_darkroom/index/"
LAUNCHES_PREFIX = "_darkroom/launches/"
PARTS_PREFIX = "metadata/"
METADATA_KEY = "metadata.parquet"
FAILURES_KEY = "failures.parquet"


def image_key(task_id: str, file_sha256: str) -> str:
    """``images/<2 hex>/<task_id>-<8 hex of its own digest>.png``: other bytes never overwrite these."""
    return f"images/{task_id[:2]}/{task_id}-{file_sha256[:8]}.png"


def part_prefix(part_id: str) -> str:
    """What the keys of all parts with exactly these tasks begin with; there are several after a retry."""
    return f"{PARTS_PREFIX}{part_id[:2]}/{part_id}-"


def part_key(part_id: str, file_sha256: str) -> str:
    """``metadata/<2 hex>/<part_id>-<8 hex of its own digest>.parquet``: other bytes never overwrite these."""
    return f"{part_prefix(part_id)}{file_sha256[:8]}.parquet"


def part_of_key(key: str) -> str:
    """The part's name from its key."""
    return key.rpartition("/")[2].removesuffix(".parquet")
