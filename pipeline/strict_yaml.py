"""YAML as job files are written: safe, and nothing in it is silently dropped."""

import re
from collections.abc import Hashable
from pathlib import Path
from typing import Any

import yaml

_DURATION = re.compile(r"(?:(\d{1,6})h)?(?:(\d{1,6})m)?(?:(\d{1,6})s)?", re.ASCII)


class _StrictLoader(yaml.SafeLoader):
    """Safe YAML that refuses a key written twice, where YAML would silently keep the last. Dates are texts."""

    yaml_implicit_resolvers = {  # noqa: RUF012  # as PyYAML has it
        first: [(tag, pattern) for tag, pattern in resolvers if tag != "tag:yaml.org,2002:timestamp"]
        for first, resolvers in yaml.SafeLoader.yaml_implicit_resolvers.items()
    }

    def construct_object(self, node: yaml.Node, deep: bool = False) -> Any:
        try:
            return super().construct_object(node, deep)
        except (ValueError, TypeError, LookupError, AttributeError):  # PyYAML's, for what only looks like a number
            kind = node.tag.rpartition(":")[2]
            raise yaml.constructor.ConstructorError(
                None, None, f"this is no {kind}; a text can be put in quotes", node.start_mark
            ) from None

    def construct_mapping(self, node: yaml.MappingNode, deep: bool = False) -> dict[Hashable, Any]:
        seen: set[Any] = set()
        for key_node, _ in node.value:
            key = self.construct_object(key_node, deep=True)
            if not isinstance(key, Hashable):
                continue  # refused below
            if key in seen:
                raise yaml.constructor.ConstructorError(
                    None, None, f"the key {key!r} stands twice", key_node.start_mark
                )
            seen.add(key)
        return super().construct_mapping(node, deep)


def parse_yaml(text: str) -> Any:
    """``yaml.YAMLError`` for whatever it cannot be read for."""
    try:
        return yaml.load(text, _StrictLoader)  # noqa: S506  # a SafeLoader
    except RecursionError:
        raise yaml.YAMLError("it is nested too deeply") from None


def yaml_reason(error: yaml.YAMLError) -> str:
    return str(getattr(error, "problem", None) or error).splitlines()[0]


def yaml_place(path: Path, error: yaml.YAMLError) -> str:
    mark = getattr(error, "problem_mark", None)
    return f"{path}, line {mark.line + 1}, column {mark.column + 1}" if mark else str(path)


def parse_seconds(given: Any) -> Any:
    """Return the seconds of a time such as ``1h30m``; ``ValueError`` for anything else."""
    if given is None:
        return None
    found = _DURATION.fullmatch(given.replace(" ", "")) if isinstance(given, str) else None
    total = sum(int(part or 0) * unit for part, unit in zip(found.groups(), (3600, 60, 1), strict=True)) if found else 0
    if not total:
        raise ValueError("not a time")
    return float(total)
