"""What Prometheus sees of Darkroom's metrics, and what a query in its language names."""

import re
from collections.abc import Mapping
from dataclasses import dataclass

from pipeline.distributed.metrics import METRICS, WORKER_TAGS, Metric

_SUFFIXES = {"counter": ("_total",), "gauge": ("",), "histogram": ("_bucket", "_sum", "_count")}
_WORDS = {"and", "or", "unless", "bool", "offset"}


def names_of(name: str, metric: Metric) -> list[str]:
    """As Ray exports one metric."""
    return [f"ray_{name}{suffix}" for suffix in _SUFFIXES[metric.kind]]


def exposed() -> Mapping[str, set[str]]:
    """Labels by exported name."""
    return {
        found: {*metric.tags} | ({"le"} if found.endswith("_bucket") else set())
        for name, metric in METRICS.items()
        for found in names_of(name, metric)
    }


@dataclass(frozen=True, slots=True)
class Named:
    """By a query."""

    metrics: frozenset[str]
    labels: frozenset[tuple[str, str]]
    """Of metrics: in their braces."""
    groups: frozenset[str]
    """Labels that results are grouped or matched by."""


def named(query: str) -> Named:
    """Everything that is neither text, number, range, function nor keyword is the name of a metric."""
    query = re.sub(r'"[^"]*"', '""', query)
    query = re.sub(r"\[[^]]*\]", "", query)
    grouping = r"\b(?:by|without|on|ignoring|group_left|group_right)\s*\(([^)]*)\)"
    groups = {label.strip() for labels in re.findall(grouping, query) for label in labels.split(",") if label.strip()}
    query = re.sub(grouping, "", query)
    labels = {
        (metric, label)
        for metric, inside in re.findall(r"([a-zA-Z_:][\w:]*)\{([^}]*)\}", query)
        for label in re.findall(r"(\w+)\s*(?:=|!)", inside)
    }
    query = re.sub(r"\{[^}]*\}", "", query)
    metrics = {word for word in re.findall(r"(?<![\w:.])[a-zA-Z_:][\w:]*(?![\w:]|\s*\()", query) if word not in _WORDS}
    return Named(frozenset(metrics), frozenset(labels), frozenset(groups))


def faults(query: str, recorded: frozenset[str] = frozenset()) -> list[str]:
    """What a query names that does not exist; ``recorded``: names of recording rules."""
    found, known = named(query), {**exposed(), **{name: {*WORKER_TAGS} for name in recorded}}
    labels = {label for name in found.metrics for label in known.get(name, ())}
    return [
        *(f"no metric {name}" for name in found.metrics if name not in known),
        *(f"no label {label} of {name}" for name, label in found.labels if label not in known.get(name, {label})),
        *(f"no label {label}" for label in found.groups - labels),
        *(["no metric at all"] if not found.metrics else []),
    ]
