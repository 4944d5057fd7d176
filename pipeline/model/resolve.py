"""From what the job file calls a model to a folder on this machine."""

import re
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import partial
from pathlib import Path
from typing import Any

from pipeline.errors import ModelError, StoreError
from pipeline.model.check import check_files
from pipeline.model.files import INDEX, read_json
from pipeline.model.hub import fetch_file, fetch_model, hub_errors, list_files
from pipeline.model.lora import check_loras
from pipeline.model.recognize import refuse_file, require_index, what_files_are
from pipeline.model.selection import SUFFIXES_OF_FACTS, SUFFIXES_OF_WEIGHTS, files_of_model
from pipeline.model.weights import PICKLED
from pipeline.storage.s3_settings import S3Settings

BUILT_IN = {"shapes": Path(__file__).parent.parent / "shapes" / "weights"}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_HUB_FILE = re.compile(r"([\w.-]+/[\w.-]+)/(.+\.\w+)")
_ALLOWED_LORA = (
    "a safetensors file, a folder with one, or a Hub id such as org/name or org/name/file.safetensors; the key file "
    "names one of several"
)
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
    """A branch, tag or commit of the Hub, a commit once resolved; None for files and folders."""
    file_name: str | None = None
    """The file in a folder or repository; None where it holds one alone."""

    @classmethod
    def named(cls, entry: Mapping[str, Any]) -> "LoraSource":
        """Return a LoRA as a job or a run names it; runs of earlier versions name neither file nor revision."""
        return cls(
            lora_id=entry["id"], weight=entry["weight"], revision=entry.get("revision"), file_name=entry.get("file")
        )

    def file(self) -> Path:
        """Return its one safetensors file on this machine, fetched from the Hub if need be.

        Raises ``ModelError`` when there is none, when it is of another kind, or for several and none named.
        """
        path = _local(self.lora_id)
        if path is None:
            return self._from_hub()[1]
        if self.revision is not None:
            raise self._error("only LoRAs of the Hub have revisions")
        if path.is_file() and self.file_name is not None:
            raise self._error("this LoRA is a file already, and a file in it is named")
        if path.is_dir():
            names = [found.relative_to(path).as_posix() for found in path.rglob("*") if found.is_file()]
            path /= self.file_name or self._only(names)
        if path.suffix != ".safetensors":
            raise self._error("a LoRA that is no safetensors file is refused, loading it may run code")
        if not path.is_file():
            raise self._error("there is no such file")
        return path

    @property
    def here(self) -> bool:
        """Whether it is on this machine, or named as if it were, so that nothing has to be fetched."""
        return _local(self.lora_id) is not None or self.lora_id.startswith((".", "/", "~"))

    def pinned(self) -> "LoraSource":
        """Return the same weights for workers anywhere: an absolute path, or for the Hub a file and its commit."""
        path = _local(self.lora_id)
        if path is not None:
            return replace(self, lora_id=str(path))
        repository, file, commit = self._from_hub()[0]
        return replace(self, lora_id=repository, file_name=file, revision=commit)

    def _from_hub(self) -> tuple[tuple[str, str, str], Path]:
        """Return the repository, the file's name there and its commit, and the file."""
        repository, file = self._in_hub()
        with hub_errors("the LoRA is no file or folder", "model.loras", self._shown, _ALLOWED_LORA):
            name = file or self._only(list_files(repository, self.revision))
            if not name.endswith(".safetensors"):
                raise self._error("a LoRA that is no safetensors file is refused, loading it may run code")
            path, commit = fetch_file(repository, name, self.revision)
            return (repository, name, commit), path

    def _in_hub(self) -> tuple[str, str | None]:
        """Return the repository and the name of a file in it, which the id or ``file_name`` gives."""
        named = _HUB_FILE.fullmatch(self.lora_id)
        repository = named[1] if named else self.lora_id
        if self.lora_id.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(repository):
            raise self._error("there is no such LoRA")
        if named and self.file_name is not None:
            raise self._error("this LoRA names a file twice, in its id and in its key file")
        return repository, named[2] if named else self.file_name

    def _only(self, names: list[str]) -> str:
        """Return the only safetensors file; those in folders count where there is none beside them."""
        found = sorted(name for name in names if name.endswith(".safetensors"))
        files = [name for name in found if "/" not in name] or found
        if len(files) != 1:
            listed = f": {', '.join(files[:20])}{' …' * (len(files) > 20)}" if files else ""
            raise self._error(f"a LoRA is one safetensors file, and here are {len(files)}{listed}")
        return files[0]

    def _error(self, what: str) -> ModelError:
        return ModelError(what, where="model.loras", value=self._shown, allowed=_ALLOWED_LORA)

    @property
    def _shown(self) -> str:
        name = self.lora_id if self.file_name is None else f"{self.lora_id}, file {self.file_name}"
        return name if self.revision is None else f"{name}@{self.revision}"


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
            if not weights:
                require_index(folder)
            return folder
        if (file := _local(self.model_id)) is not None:
            raise refuse_file(file)
        if self.model_id.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(self.model_id):
            raise self._nowhere()
        suffixes = SUFFIXES_OF_WEIGHTS if weights else SUFFIXES_OF_FACTS
        return fetch_model(self.model_id, self.revision, suffixes, checked=self.checked, allowed=_ALLOWED)

    def check(self, folder: Path) -> None:
        """Look at all files of a model and of LoRAs on this machine; others are looked at when they have been fetched.

        Raises ``ModelError`` for what is missing, incomplete, refused, or does not fit.
        """
        if self.here:
            check_files(folder, checked=self.checked)
            check_loras([lora.file() for lora in self.loras if lora.here], folder)

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
            index = read_json(fetched(store, self._index_of, cache) / INDEX)
            suffixes = SUFFIXES_OF_WEIGHTS if weights else SUFFIXES_OF_FACTS
            choose = partial(files_of_model, index=index, suffixes=suffixes, checked=self.checked, where=self.model_id)
            return fetched(store, choose, cache)
        except StoreError as error:
            raise ModelError(f"the model cannot be fetched: {error}", where="model.id", value=self.model_id) from None

    def _nowhere(self) -> ModelError:
        what = "there is no such model"
        if _HUB_FILE.fullmatch(self.model_id) and self.model_id.endswith((".safetensors", ".gguf", *PICKLED)):
            what += "; a single file of a Hub repository is not a model in diffusers format"
        return ModelError(what, where="model.id", value=self.model_id, allowed=_ALLOWED)

    def _index_of(self, keys: list[str]) -> list[str]:
        if INDEX not in keys:
            raise ModelError(
                f"here is no model in diffusers format: {what_files_are(keys)}",
                where="model.id",
                value=self.model_id,
                allowed=f"a prefix with {INDEX}",
            )
        return [INDEX]

    def _here(self) -> Path | None:
        """The folder of a built-in or local model, None for what may be of the Hub."""
        if self.model_id in BUILT_IN:
            return BUILT_IN[self.model_id]
        path = _local(self.model_id)
        return path if path is not None and path.is_dir() else None

    def lora_files(self) -> tuple[tuple[Path, float], ...]:
        """The file and the weight of each LoRA."""
        return tuple((lora.file(), lora.weight) for lora in self.loras)


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
