"""Which digests of files are believed, and which are taken."""

from hashlib import sha256
from pathlib import Path

import pytest

from pipeline.model.fingerprint import DigestCache

BODY = b"weights"
CLAIMED = "0" * 63 + "a"
"""Not the digest of ``BODY``: whoever gives it has believed a name."""


def hub(root: Path, *, model: str = "models--org--name", blobs: str = "blobs", name: str = CLAIMED) -> Path:
    """A file as the Hub's cache keeps it, or nearly so; returns the link to it."""
    blob = root / model / blobs / name
    blob.parent.mkdir(parents=True)
    blob.write_bytes(BODY)
    link = root / model / "snapshots" / "c0ffee" / "unet" / "model.safetensors"
    link.parent.mkdir(parents=True)
    link.symlink_to(f"../../../{blobs}/{name}")
    return link


def test_names_in_the_hubs_cache_are_believed(tmp_path: Path) -> None:
    link = hub(tmp_path / "cache")
    assert DigestCache(tmp_path / "digests").sha256(link) == CLAIMED
    (tmp_path / "elsewhere").symlink_to(tmp_path / "cache")
    moved = tmp_path / "elsewhere" / link.relative_to(tmp_path / "cache")
    assert DigestCache(tmp_path / "digests").sha256(moved) == CLAIMED


@pytest.mark.parametrize(
    "changed",
    [
        {"model": "mymodel"},
        {"model": "datasets--org--name"},
        {"blobs": "files"},
        {"name": CLAIMED.upper()},
        {"name": "x" * 64},
        {"name": CLAIMED + "0"},
        {"name": "0" * 40},
    ],
    ids=str,
)
def test_other_names_are_not(tmp_path: Path, changed: dict[str, str]) -> None:
    link = hub(tmp_path, **changed)
    assert DigestCache(tmp_path / "digests").sha256(link) == sha256(BODY).hexdigest()


def test_a_file_that_is_no_link_of_a_snapshot_is_read(tmp_path: Path) -> None:
    link = hub(tmp_path)
    other = tmp_path / "mine.safetensors"
    other.symlink_to(link.resolve())
    for path in (link.resolve(), other):
        assert DigestCache(tmp_path / "digests").sha256(path) == sha256(BODY).hexdigest()
