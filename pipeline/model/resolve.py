"""From what the job file calls a model to a folder on this machine."""

import re
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from pipeline.errors import ModelError, StoreError
from pipeline.model.files import CHECKER, EXTRACTOR, UNUSED_COMPONENTS, is_component, names_checker, read_json
from pipeline.storage.s3_settings import S3Settings

BUILT_IN = {"shapes": Path(__file__).parent.parent / "shapes" / "weights"}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_INDEX = "model_index.json"
_SUFFIXES_OF_FACTS = ("json", "txt", "model")
"""Tokenizers' vocabularies are among the facts: ``plan`` counts the prompts that are cut."""
_SUFFIXES_OF_WEIGHTS = ("json", "safetensors", "txt", "model")
_VARIANTS = ["*.*.safetensors"]
"""Such as ``model.fp16.safetensors``."""
_ALLOWED_LORA = "a safetensors file, a folder with one, or a Hub id such as org/name"
_ALLOWED = (
    f"a built-in model ({', '.join(BUILT_IN)}), a folder with model_index.json, s3://bucket/prefix, or a Hub id such "
    "as org/name"
)


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSource:
    """Low-rank weights that are fused into a model when it is loaded (Hu et al., arXiv:2106.09685)."""

    lora_id: str
    weight: float = 1.0
    revision: str | None = None
    """A commit of the Hub once resolved; None for files and folders."""

    def file(self) -> Path:
        """Its one safetensors file on this machine, fetched from the Hub if need be.

        Raises ``ModelError`` when there is none, when it is of another kind, or for several in its folder.
        """
        path = _local(self.lora_id)
        if path is not None and path.is_file():
            if path.suffix != ".safetensors":
                raise ModelError(
                    "a LoRA that is no safetensors file is refused, loading it may run code",
                    where="model.loras",
                    value=self.lora_id,
                    allowed=_ALLOWED_LORA,
                )
            return path
        folder = path or self._from_hub()
        files = sorted(folder.glob("*.safetensors"))
        if len(files) != 1:
            raise ModelError(
                f"a LoRA is one safetensors file, and here are {len(files)}",
                where="model.loras",
                value=self.lora_id,
                allowed=_ALLOWED_LORA,
            )
        return files[0]

    def pinned(self) -> "LoraSource":
        """The same weights for workers anywhere: an absolute path, or for the Hub the revision it resolves to now."""
        path = _local(self.lora_id)
        return replace(self, revision=self._from_hub().name) if path is None else replace(self, lora_id=str(path))

    def _from_hub(self) -> Path:
        if self.lora_id.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(self.lora_id):
            raise ModelError("there is no such LoRA", where="model.loras", value=self.lora_id, allowed=_ALLOWED_LORA)
        with _hub_errors("the LoRA is no file or folder", "model.loras", self.lora_id, _ALLOWED_LORA):
            from huggingface_hub import snapshot_download

            return Path(snapshot_download(self.lora_id, revision=self.revision, allow_patterns=["*.safetensors"]))


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model as named and pinned: enough for any machine to find the same files."""

    model_id: str
    revision: str | None = None
    """A commit of the Hub once resolved; None for folders."""
    loras: tuple[LoraSource, ...] = ()
    checked: bool = False
    """Its safety checker is wanted too, where it has one."""
    s3: S3Settings = field(default_factory=S3Settings)
    cache_folder: Path | None = None
    """Where models of object storage are kept, on each machine that needs them; ``~`` is that machine's home."""

    @property
    def stored(self) -> bool:
        """Whether it is in object storage."""
        return self.model_id.startswith("s3://")

    @property
    def here(self) -> bool:
        """Whether it is built in or a folder, so that nothing has to be fetched."""
        return not self.stored and self._here() is not None

    @property
    def remote(self) -> bool:
        """Whether something of it has to be fetched; only for what is pinned."""
        revisions = [self.revision, *(lora.revision for lora in self.loras)]
        return self.stored or any(revision is not None for revision in revisions)

    def folder(self, *, weights: bool = True) -> Path:
        """Where its files lie on this machine, fetched if need be; ``weights=False`` fetches JSON only.

        Raises ``ModelError`` when there is no such model, or one that has no revisions is given one.
        """
        folder = self._fetched(weights=weights) if self.stored else self._here()
        if folder is not None:
            if self.revision is not None:
                raise ModelError(
                    "only models of the Hub have revisions",
                    where="model.revision",
                    value=self.revision,
                    allowed=f"null, since the model is {self.model_id if self.stored else folder}",
                )
            return folder
        if self.model_id.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(self.model_id):
            raise ModelError("there is no such model", where="model.id", value=self.model_id, allowed=_ALLOWED)
        suffixes = _SUFFIXES_OF_WEIGHTS if weights else _SUFFIXES_OF_FACTS
        return _from_hub(self.model_id, self.revision, suffixes, checked=self.checked)

    def pinned(self) -> "ModelSource":
        """The same model for workers anywhere: absolute paths, and for the Hub the revision it resolves to now."""
        folder, loras = self.folder(), tuple(lora.pinned() for lora in self.loras)
        if self.stored:
            return replace(self, loras=loras, cache_folder=self.cache_folder and in_any_home(self.cache_folder))
        if self._here() is None:
            return replace(self, revision=folder.name, loras=loras)
        return replace(self, model_id=self.model_id if self.model_id in BUILT_IN else str(folder), loras=loras)

    def _fetched(self, *, weights: bool) -> Path:
        # Imported here: boto3 takes half a second that other models need not pay.
        from pipeline.model.fetch import fetched
        from pipeline.storage.location import open_store

        if self.cache_folder is None:
            raise ValueError("a model of object storage needs a cache folder")
        cache = in_this_home(self.cache_folder)
        try:
            store = open_store(self.model_id, self.s3, where="model.id")
            index = fetched(store, [_INDEX], (), cache) / _INDEX
            suffixes = _SUFFIXES_OF_WEIGHTS if weights else _SUFFIXES_OF_FACTS
            patterns = patterns_of_files(read_json(index), suffixes, checked=self.checked)
            return fetched(store, patterns, _VARIANTS, cache)
        except StoreError as error:
            raise ModelError(f"the model cannot be fetched: {error}", where="model.id", value=self.model_id) from None

    def _here(self) -> Path | None:
        """The folder of a built-in or local model, None for what may be of the Hub."""
        if self.model_id in BUILT_IN:
            return BUILT_IN[self.model_id]
        path = _local(self.model_id)
        return path if path is not None and path.is_dir() else None

    def lora_files(self) -> tuple[tuple[Path, float], ...]:
        """The file and the weight of each LoRA."""
        return tuple((lora.file(), lora.weight) for lora in self.loras)


def patterns_of_files(index: Mapping[str, Any], suffixes: tuple[str, ...], *, checked: bool = False) -> list[str]:
    """The files to fetch of a model that is elsewhere, as patterns, from its ``model_index.json``.

    A repository often holds the weights several times: those that are loaded lie in the folders the index names.
    """
    wanted = (CHECKER, EXTRACTOR) if checked and names_checker(index) else ()
    unused = set(UNUSED_COMPONENTS).difference(wanted)
    components = sorted(name for name, entry in index.items() if is_component(entry) and name not in unused)
    return [_INDEX, *(f"{name}/*.{suffix}" for name in components for suffix in suffixes)]


def _from_hub(model_id: str, revision: str | None, suffixes: tuple[str, ...], *, checked: bool) -> Path:
    shown = model_id if revision is None else f"{model_id}@{revision}"
    with _hub_errors("the model is neither built in nor a folder", "model.id", shown, _ALLOWED):
        # Imported here: it costs a third of a second that built-in models and folders need not pay.
        from huggingface_hub import hf_hub_download, snapshot_download

        index = Path(hf_hub_download(model_id, _INDEX, revision=revision))
        patterns = patterns_of_files(read_json(index), suffixes, checked=checked)
        commit = index.parent.name  # a branch may move between the two calls
        found = Path(snapshot_download(model_id, revision=commit, allow_patterns=patterns, ignore_patterns=_VARIANTS))
        # Where the Hub does not list its files, it gives the folder that is there: with the index alone.
        if patterns != [_INDEX] and not any(path.is_dir() for path in found.iterdir()):
            raise OSError("it did not list the files of the model")
        return found


@contextmanager
def _hub_errors(what: str, where: str, value: str, allowed: str) -> Iterator[None]:
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError
    from huggingface_hub.errors import HTTPError as NetworkError  # type: ignore[attr-defined]  # of its HTTP library

    try:
        yield
    # What breaks off a download is the Hub's, of its HTTP library, or a RuntimeError of hf_xet.
    except (HfHubHTTPError, NetworkError, HFValidationError, LocalEntryNotFoundError, OSError, RuntimeError) as error:
        reason = (str(error).strip() or type(error).__name__).splitlines()[0]
        if getattr(error, "filename", None):  # a file of this machine
            reason += "; HF_HOME names the folder for models of the Hub"
        raise ModelError(
            f"{what}, and the Hub did not give it: {reason}", where=where, value=value, allowed=allowed
        ) from None


def in_any_home(folder: Path) -> Path:
    """A folder below this user's home as one below anybody's, with ``~``: machines have other users and other homes."""
    try:
        home = Path.home()
        return folder if home == Path(home.anchor) else "~" / folder.relative_to(home)
    except (ValueError, RuntimeError):  # it is elsewhere, there is no home
        return folder


def in_this_home(folder: Path) -> Path:
    """What ``in_any_home`` made, on this machine. ``ModelError`` where this user has no home."""
    try:
        return folder.expanduser()
    except RuntimeError:
        raise ModelError(
            "the cache folder is in the home of the user, who has none on this machine",
            where="XDG_CACHE_HOME",
            value=str(folder),
            allowed="for the driver, a folder that all machines have",
        ) from None


def _local(text: str) -> Path | None:
    """The absolute path of what is on this machine under this name, if anything is."""
    try:
        path = Path(text).expanduser()
        return path.resolve() if path.exists() else None
    except (OSError, RuntimeError):  # a name too long, a folder that may not be entered, no such user
        return None
