"""The JSON files of a model's folder."""

import json
from pathlib import Path
from typing import Any

from pipeline.errors import ModelError


def read_json(path: Path) -> dict[str, Any]:
    """A JSON object of a model's folder; ``ModelError`` names the file."""
    try:
        read = json.loads(path.read_text("utf-8"))
    except FileNotFoundError:
        raise ModelError(
            "a file of the model is missing", where=str(path), allowed="a folder in diffusers format"
        ) from None
    except (OSError, ValueError, RecursionError) as error:
        raise ModelError(
            f"a file of the model cannot be read: {error}", where=str(path), allowed="a JSON object"
        ) from None
    if not isinstance(read, dict):
        raise ModelError(
            "a file of the model is not a JSON object", where=str(path), value=read, allowed="a JSON object"
        )
    return read
