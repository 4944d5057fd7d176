"""From what the job file calls a model to a folder on this machine."""

import re
from dataclasses import dataclass, replace
from pathlib import Path

from pipeline.errors import ModelError

BUILT_IN = {"shapes": Path(__file__).parent.parent / "shapes" / "weights"}
_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_FILES_OF_FACTS = ["*.json"]
_FILES_OF_WEIGHTS = ["*.json", "*.safetensors", "*.txt", "*.model"]
_ALLOWED_LORA = "a safetensors file, a folder with one, or a Hub id such as org/name"
_ALLOWED = f"a built-in model ({', '.join(BUILT_IN)}), a folder with model_index.json, or a Hub id such as org/name"


@dataclass(frozen=True, slots=True, kw_only=True)
class LoraSource:
    """Low-rank weights that are fused into a model when it is loaded (Hu et al., arXiv:2106.09685)."""

    lora_id: str
    weight: float = 1.0

    def file(self) -> Path:
        """Its one safetensors file on this machine, fetched from the Hub if need be.

        Raises ``ModelError`` when there is none, or several in its folder.
        """
        path = Path(self.lora_id).expanduser()
        if path.is_file():
            return path.resolve()
        folder = path.resolve() if path.is_dir() else self._from_hub()
        files = sorted(folder.glob("*.safetensors"))
        if len(files) != 1:
            raise ModelError(
                f"a LoRA is one safetensors file, and here are {len(files)}",
                where="model.loras",
                value=self.lora_id,
                allowed=_ALLOWED_LORA,
            )
        return files[0]

    def _from_hub(self) -> Path:
        if self.lora_id.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(self.lora_id):
            raise ModelError("there is no such LoRA", where="model.loras", value=self.lora_id, allowed=_ALLOWED_LORA)
        return _from_hub(self.lora_id, None, ["*.safetensors"])


@dataclass(frozen=True, slots=True, kw_only=True)
class ModelSource:
    """A model as named and pinned: enough for any machine to find the same files."""

    model_id: str
    revision: str | None = None
    """A commit of the Hub once resolved; None for folders."""
    loras: tuple[LoraSource, ...] = ()

    def folder(self, *, weights: bool = True) -> Path:
        """Where its files lie on this machine, fetched from the Hub if need be; ``weights=False`` fetches JSON only.

        Raises ``ModelError`` when there is no such model.
        """
        if self.model_id in BUILT_IN:
            return BUILT_IN[self.model_id]
        folder = Path(self.model_id).expanduser()
        if folder.is_dir():
            return folder.resolve()
        if self.model_id.startswith((".", "/", "~")) or not _HUB_ID.fullmatch(self.model_id):
            raise ModelError("there is no such model", where="model.id", value=self.model_id, allowed=_ALLOWED)
        return _from_hub(self.model_id, self.revision, _FILES_OF_WEIGHTS if weights else _FILES_OF_FACTS)

    def pinned(self) -> "ModelSource":
        """The same model with the revision it resolves to now."""
        folder = self.folder()
        in_hub_cache = folder.parent.name == "snapshots"
        return replace(self, revision=folder.name if in_hub_cache else self.revision)

    def lora_files(self) -> tuple[tuple[Path, float], ...]:
        """The file and the weight of each LoRA."""
        return tuple((lora.file(), lora.weight) for lora in self.loras)


def _from_hub(model_id: str, revision: str | None, patterns: list[str]) -> Path:
    # Imported here: it costs a third of a second that built-in models and folders need not pay.
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(model_id, revision=revision, allow_patterns=patterns))
    except (HfHubHTTPError, HFValidationError, LocalEntryNotFoundError, OSError) as error:
        reason = str(error).strip().splitlines()[0]
        raise ModelError(
            f"the model is neither built in nor a folder, and the Hub did not give it: {reason}",
            where="model.id",
            value=model_id if revision is None else f"{model_id}@{revision}",
            allowed=_ALLOWED,
        ) from None
