"""Which model exactly: a digest over the files that are loaded."""

import json
import re
from collections.abc import Iterable, Iterator
from hashlib import blake2b, file_digest
from pathlib import Path

from pipeline.errors import ModelError
from pipeline.model.files import INDEX, UNUSED_COMPONENTS, is_component, read_json
from pipeline.model.lora import has_text_weights
from pipeline.model.weights import is_weights, variant_of, weights_among

_SHA256 = re.compile("[0-9a-f]{64}")
_TEXT_ONCE_LEFT_OUT = ("FluxPipeline", "ChromaPipeline")
"""Classes for which earlier versions left out the text encoders' weights of a LoRA."""
_LOADED_SUFFIXES = {".json", ".safetensors", ".txt", ".model"}


class DigestCache:
    """SHA-256 of files by path, size and modification time, so that a model is hashed once per machine."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def sha256(self, path: Path) -> str:
        """The digest of a file, hex. The Hub's cache names large files by it already, and is believed."""
        target = path.resolve()
        if _is_blob_of_hub(path, target):
            return target.name
        entry = self._folder / f"{blake2b(str(target).encode(), digest_size=16).hexdigest()}.json"
        status = target.stat()
        key = [status.st_size, status.st_mtime_ns]
        known = self._read(entry)
        if known is not None and known["key"] == key:
            return str(known["sha256"])
        with target.open("rb") as file:
            digest = file_digest(file, "sha256").hexdigest()
        self._write(entry, {"key": key, "sha256": digest})
        return digest

    def _read(self, entry: Path) -> dict[str, object] | None:
        try:
            known = json.loads(entry.read_text())
        except (OSError, ValueError):
            return None
        return known if isinstance(known, dict) and {"key", "sha256"} <= known.keys() else None

    def _write(self, entry: Path, known: dict[str, object]) -> None:
        try:
            self._folder.mkdir(parents=True, exist_ok=True)
            unfinished = entry.with_suffix(f".{id(known)}.tmp")
            unfinished.write_text(json.dumps(known))
            unfinished.rename(entry)
        except OSError:
            return  # a cache that cannot be written only costs time


def _is_blob_of_hub(path: Path, target: Path) -> bool:
    """Whether a link in ``models--org--name/snapshots/`` leads to a SHA-256 in ``blobs/`` of the same model."""
    model = target.parent.parent
    if not path.is_symlink() or target.parent.name != "blobs" or not _SHA256.fullmatch(target.name):
        return False
    place = path.parent.resolve()
    return model.name.startswith("models--") and place.is_relative_to(model / "snapshots")


def loaded_files(folder: Path) -> Iterator[Path]:
    """The files that loading the model reads, in a fixed order."""
    index = read_json(folder / "model_index.json")
    yield folder / "model_index.json"
    for component in sorted(name for name, entry in index.items() if is_component(entry)):
        if component in UNUSED_COMPONENTS:
            continue
        variant = _variant_of(folder / component)
        for path in sorted((folder / component).rglob("*")):
            if path.suffix in _LOADED_SUFFIXES and (path.suffix != ".safetensors" or _is_loaded(path, variant)):
                yield path


def _variant_of(component: Path) -> str | None:
    """Return the variant whose weights are loaded, None where plain ones are, or where there are no weights."""
    names = [path.name for path in component.glob("*.safetensors*")]
    found = any(name.endswith(".safetensors") for name in names)
    return weights_among(names, str(component)).variant if found else None


def _is_loaded(path: Path, variant: str | None) -> bool:
    return is_weights(path.name) if variant is None else variant_of(path.name) == variant


def fingerprint(
    folder: Path,
    cache: DigestCache,
    loras: Iterable[tuple[Path, float]] = (),
) -> str:
    """Return the blake2b-128 of the loaded files' paths and SHA-256, then of the LoRAs' SHA-256 and weights, in hex.

    A mark follows a LoRA with which earlier versions drew other images: their runs are not continued.
    """
    digest = blake2b(digest_size=16, person=b"darkroom.model.1")
    class_name = read_json(folder / INDEX).get("_class_name")
    try:
        for path in loaded_files(folder):
            name = path.relative_to(folder).as_posix()
            digest.update(f"{name}\0{cache.sha256(path)}\n".encode())
        for path, weight in loras:
            digest.update(f"lora\0{cache.sha256(path)}\0{weight!r}\n".encode())
            if class_name in _TEXT_ONCE_LEFT_OUT and has_text_weights(path):
                digest.update(b"text encoder\n")
    except OSError as error:
        raise ModelError(f"a file of the model cannot be read: {error.strerror}", where=str(error.filename)) from None
    return digest.hexdigest()
