"""Darkroom: a distributed batch renderer for latent diffusion models."""

from importlib import import_module
from typing import Any

__version__ = "0.1.0"
_PUBLIC = ("draw", "job", "plan", "render")
"""``pipeline/api.py``; documented in docs/python.md."""


def __getattr__(name: str) -> Any:
    """The few public names, imported when first asked for: the command's own start should not pay for them."""
    if name not in _PUBLIC:
        raise AttributeError(f"module 'pipeline' has no attribute {name!r}")
    return getattr(import_module("pipeline.api"), name)


def __dir__() -> list[str]:
    return sorted([*globals(), *_PUBLIC])
