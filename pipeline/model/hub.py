"""Files of the Hugging Face Hub, fetched into its cache. huggingface_hub is imported where it is needed.

Its import costs a third of a second that built-in models and folders need not pay.
"""

import glob
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from pipeline.errors import ModelError
from pipeline.model.files import INDEX, read_json
from pipeline.model.recognize import what_files_are
from pipeline.model.selection import NO_VARIANTS, files_of_model, patterns_of_files, without_weights


def fetch_model(model_id: str, revision: str | None, suffixes: Sequence[str], *, checked: bool, allowed: str) -> Path:
    """Return the folder of a model's commit in the Hub's cache, with the files of these suffixes that are loaded.

    Raises ``ModelError`` when the Hub does not give them, and where the repository holds no model.
    """
    shown = model_id if revision is None else f"{model_id}@{revision}"
    with hub_errors("the model is neither built in nor a folder", "model.id", shown, allowed):
        from huggingface_hub import snapshot_download

        index_file = _index_of(model_id, revision)
        index, commit = read_json(index_file), index_file.parent.name  # a branch may move between the calls
        patterns = patterns_of_files(index, suffixes, checked=checked)
        found = Path(snapshot_download(model_id, revision=commit, allow_patterns=patterns, ignore_patterns=NO_VARIANTS))
        # Where the Hub does not list its files, it gives the folder that is there: with the index alone.
        if patterns != [INDEX] and not any(path.is_dir() for path in found.iterdir()):
            raise OSError("it did not list the files of the model")
        if "safetensors" in suffixes and without_weights(found, index, checked=checked):
            names = list_files(model_id, commit, found)
            wanted = files_of_model(names, index, suffixes, checked=checked, where=model_id)
            snapshot_download(model_id, revision=commit, allow_patterns=[glob.escape(name) for name in wanted])
        return found


def fetch_file(repository: str, file: str, revision: str | None) -> tuple[Path, str]:
    """Return one file of a repository in the Hub's cache, and the commit it is of; no other file is fetched."""
    from huggingface_hub import hf_hub_download

    path = Path(hf_hub_download(repository, file, revision=revision))
    return path, path.parents[file.count("/")].name


def list_files(repository: str, revision: str | None, cached: Path | None = None) -> list[str]:
    """Return the names of all files of a repository; where the Hub cannot be asked, those in its ``cached`` folder."""
    from huggingface_hub import list_repo_files
    from huggingface_hub.errors import HTTPError as NetworkError  # type: ignore[attr-defined]  # of its HTTP library

    try:
        return sorted(list_repo_files(repository, revision=revision))
    except (OSError, NetworkError):  # no connection, an answer that is none, or offline mode
        if cached is None:
            raise
        return sorted(path.relative_to(cached).as_posix() for path in cached.rglob("*") if path.is_file())


def _index_of(model_id: str, revision: str | None) -> Path:
    from huggingface_hub import hf_hub_download
    from huggingface_hub.errors import RemoteEntryNotFoundError

    try:
        return Path(hf_hub_download(model_id, INDEX, revision=revision))
    except RemoteEntryNotFoundError:
        raise ModelError(
            f"this repository holds no model in diffusers format: {what_files_are(list_files(model_id, revision))}",
            where="model.id",
            value=model_id,
            allowed=f"a repository with {INDEX}",
        ) from None


@contextmanager
def hub_errors(what: str, where: str, value: str, allowed: str) -> Iterator[None]:
    """Turn what the Hub's client raises into a ``ModelError``."""
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
