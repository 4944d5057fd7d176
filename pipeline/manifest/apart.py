"""A manifest and an output in one place: no file of prompts is replaced."""

import os

from pipeline.errors import JobFileError
from pipeline.manifest.open import Manifest
from pipeline.output.layout import is_table
from pipeline.storage.location import open_store


def check_apart(manifest: Manifest, output: str | None) -> None:
    """Raise ``JobFileError`` for an output whose tables would replace a file of the manifest."""
    assert output is not None  # load_job fills it in
    root = f"{_real(open_store(output, where='output.uri').uri)}/"
    above = _real(manifest.store.uri)
    for file in manifest.files:
        place = f"{above}/{file.key}"
        if place.startswith(root) and is_table(key := place.removeprefix(root)):
            raise JobFileError(
                f"this output would write its own {key} in place of the manifest's",
                where="output.uri",
                value=output,
                allowed="another place, or another name for the file of prompts",
            )


def _real(uri: str) -> str:
    return uri if "://" in uri else os.path.realpath(uri)
