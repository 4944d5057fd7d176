"""The files of cluster/ that read the metrics name only what exists, and promtool agrees with them."""

import json
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import pytest
import yaml

from pipeline.distributed.metrics import METRICS
from tests.metrics.exposed import exposed, faults, named, names_of

ROOT = Path(__file__).parent.parent.parent
PROMETHEUS = ROOT / "cluster" / "prometheus"
BOARD = json.loads((ROOT / "cluster" / "grafana" / "darkroom.json").read_text())
RULES = [rule for group in yaml.safe_load((PROMETHEUS / "rules.yml").read_text())["groups"] for rule in group["rules"]]
PROMTOOL = shutil.which("promtool")

needs_promtool = pytest.mark.skipif(
    PROMTOOL is None, reason="promtool is not installed; Debian: apt install prometheus"
)


def queries(panel: dict[str, Any]) -> list[str]:
    return [target["expr"] for target in panel["targets"]]


def test_what_a_query_names_is_found() -> None:
    found = named('sum by (a, b) (rate(x:y_total{c="d{e}", f=~"$g"}[$__rate_interval])) / on (h) z > 0.5 or vector(0)')
    assert found.metrics == {"x:y_total", "z"}
    assert found.labels == {("x:y_total", "c"), ("x:y_total", "f")}
    assert found.groups == {"a", "b", "h"}
    assert faults("sum by (nobody) (ray_darkroom_images)") == ["no metric ray_darkroom_images", "no label nobody"]
    assert faults('ray_darkroom_images_total{state="ok"}') == ["no label state of ray_darkroom_images_total"]


@pytest.mark.parametrize("panel", BOARD["panels"], ids=lambda panel: panel["title"])
def test_the_dashboards_queries_name_metrics_that_exist(panel: dict[str, Any]) -> None:
    for query in queries(panel):
        assert faults(query) == []


def test_the_dashboards_choices_are_labels() -> None:
    choices = [choice for choice in BOARD["templating"]["list"] if choice["type"] == "query"]
    for choice in choices:
        metric, label = re.fullmatch(r"label_values\((\w+), (\w+)\)", choice["definition"]).groups()  # type: ignore[union-attr]
        assert choice["query"]["query"] == choice["definition"]
        assert label in exposed()[metric]
    used = {word for panel in BOARD["panels"] for query in queries(panel) for word in re.findall(r"\$(\w+)", query)}
    assert used == {choice["name"] for choice in choices} | {"__range", "__rate_interval"}


def test_every_metric_is_shown_and_documented() -> None:
    shown = {name for panel in BOARD["panels"] for query in queries(panel) for name in named(query).metrics}
    page = (ROOT / "docs" / "metrics.md").read_text()
    for name, metric in METRICS.items():
        assert shown & {*names_of(name, metric)}, name
        assert f"`{name}`" in page, name
        assert all(f"`{value}`" in page for value in metric.values if value), name
    assert {*re.findall(r"`(darkroom_\w+)`", page)} == {*METRICS}
    assert {*re.findall(r"`(Darkroom\w+)`", page)} == {rule["alert"] for rule in RULES if "alert" in rule}


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.get("record") or rule["alert"])
def test_the_rules_name_metrics_that_exist(rule: dict[str, Any]) -> None:
    recorded = frozenset(other["record"] for other in RULES if "record" in other)
    assert faults(rule["expr"], recorded) == []


@needs_promtool
@pytest.mark.parametrize("name", ["prometheus.yml", "kubernetes.yml"])
def test_promtool_takes_the_files(name: str, tmp_path: Path) -> None:
    """But for the discovery of Kubernetes' pods, which Debian builds without."""
    config = yaml.safe_load((PROMETHEUS / name).read_text())
    config["rule_files"] = [str(PROMETHEUS / file) for file in config["rule_files"]]
    for scrape in config["scrape_configs"]:
        scrape.pop("kubernetes_sd_configs", None)
    (tmp_path / name).write_text(yaml.safe_dump(config))
    promtool("check", "config", str(tmp_path / name))


@needs_promtool
def test_alerts_fire_when_they_should() -> None:
    promtool("test", "rules", str(Path(__file__).parent / "alerts.yml"))


@needs_promtool
def test_promtool_takes_the_dashboards_queries(tmp_path: Path) -> None:
    exprs = [re.sub(r"\$__\w+", "5m", query) for panel in BOARD["panels"] for query in queries(panel)]
    rules = [{"record": f"panel:{number}", "expr": expr} for number, expr in enumerate(exprs)]
    (tmp_path / "rules.yml").write_text(yaml.safe_dump({"groups": [{"name": "panels", "rules": rules}]}))
    promtool("check", "rules", str(tmp_path / "rules.yml"))


def promtool(*words: str) -> None:
    assert PROMTOOL
    done = subprocess.run([PROMTOOL, *words], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr
