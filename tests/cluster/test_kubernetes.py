"""The Kubernetes files as kustomize builds them, against KubeRay's schemas, the README and the code."""

import json
import re
import shlex
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from itertools import pairwise
from pathlib import Path
from typing import Any

import pytest
import yaml
from jsonschema import Draft202012Validator
from ray._common.usage import usage_constants
from ray._private import ray_constants

from jobs.options import load

ROOT = Path(__file__).parents[2]
CLUSTER = ROOT / "cluster"
README = CLUSTER / "README.md"
SCHEMAS = ROOT.parent / "shared" / "data"
KINDS = {
    "RayCluster": "kuberay-crd-rayclusters.yaml",
    "RayJob": "kuberay-crd-rayjobs.yaml",
    "RayCronJob": "kuberay-crd-raycronjobs.yaml",
}
OBJECTS = {
    "setup": {"Namespace darkroom", "ServiceAccount darkroom", "NetworkPolicy darkroom-ray"},
    "job": {"ConfigMap darkroom-job", "RayJob darkroom"},
    "nightly": {"ConfigMap darkroom-job", "RayCronJob darkroom-nightly"},
    "cluster": {"ConfigMap darkroom-job", "RayCluster darkroom"},
    "monitoring": {"PodMonitor darkroom", "PrometheusRule darkroom", "ConfigMap darkroom-dashboard"},
    "queued-job": {"ConfigMap darkroom-job", "RayJob darkroom"},
}
"""What each directory of ``cluster/kuberay`` that can be applied consists of. Users know these names."""
LAUNCHES = ("job", "nightly", "cluster")

COMMAND = next(
    (
        [found, *words]
        for name, *words in (("kustomize", "build"), ("kubectl", "kustomize"))
        if (found := shutil.which(name))
    ),
    None,
)
needs_kustomize = pytest.mark.skipif(COMMAND is None, reason="neither kustomize nor kubectl is installed")

Object = dict[str, Any]


def build(directory: Path) -> list[Object]:
    """Return the objects that ``kubectl apply -k`` of this directory would apply."""
    assert COMMAND
    done = subprocess.run([*COMMAND, str(directory)], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    return list(yaml.load_all(done.stdout, yaml.CSafeLoader))


@cache
def built(overlay: str) -> list[Object]:
    return build(CLUSTER / "kuberay" / overlay)


def one(objects: list[Object], kind: str) -> Object:
    (found,) = [each for each in objects if each["kind"] == kind]
    return found


def ray_object(objects: list[Object]) -> Object:
    (found,) = [each for each in objects if each["kind"] in KINDS]
    return found


def job_spec(document: Object) -> Object:
    spec: Object = document["spec"]
    found: Object = spec.get("jobTemplate", spec)
    return found


def cluster_spec(document: Object) -> Object:
    spec = job_spec(document)
    found: Object = spec.get("rayClusterSpec", spec)
    return found


def cluster() -> Object:
    return cluster_spec(ray_object(built("cluster")))


@cache
def validator_of(kind: str, version: str) -> Draft202012Validator:
    path = SCHEMAS / KINDS[kind]
    if not path.exists():
        pytest.skip(f"no schema of {kind} beside this checkout: {path}")
    found = yaml.load(path.read_text(), yaml.CSafeLoader)["spec"]["versions"]
    (schema,) = [entry["schema"]["openAPIV3Schema"] for entry in found if f"ray.io/{entry['name']}" == version]
    return Draft202012Validator(strict(schema))


def strict(schema: Any) -> Any:
    """The same as JSON Schema, where an unknown key is an error: Kubernetes would silently drop it."""
    if isinstance(schema, list):
        return [strict(item) for item in schema]
    if not isinstance(schema, dict):
        return schema
    made = {key: strict(value) for key, value in schema.items()}
    open_ = made.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in made
    if isinstance(made.get("properties"), dict) and made.get("type") == "object" and not open_:
        made["additionalProperties"] = False
    return made


def faults(document: Object) -> list[str]:
    found = validator_of(document["kind"], document["apiVersion"]).iter_errors(document)
    return [f"{error.json_path}: {error.message[:200]}" for error in found]


def changed(tmp_path: Path, *changes: tuple[str, str, str]) -> Path:
    """Return a copy of ``cluster/kuberay``, changed as a user would: (file, old text, new text)."""
    shutil.copytree(CLUSTER, tmp_path / "cluster")
    for name, old, new in changes:
        path = tmp_path / "cluster" / "kuberay" / name
        text = path.read_text()
        assert text.count(old) == 1, old
        path.write_text(text.replace(old, new))
    return tmp_path / "cluster" / "kuberay"


@needs_kustomize
@pytest.mark.parametrize("overlay", OBJECTS)
def test_each_directory_is_what_it_says(overlay: str) -> None:
    assert {f"{each['kind']} {each['metadata']['name']}" for each in built(overlay)} == OBJECTS[overlay]
    assert all(
        each["metadata"].get("namespace") == "darkroom" for each in built(overlay) if each["kind"] != "Namespace"
    )


def test_the_readme_applies_every_directory() -> None:
    folders = {path.parent.name for path in (CLUSTER / "kuberay").glob("*/kustomization.yaml")}
    assert folders == {*OBJECTS, "base", "kueue"}
    assert {*re.findall(r"kubectl apply -k cluster/kuberay/(\S+)", README.read_text())} == {*OBJECTS}


def test_the_readme_names_every_setting() -> None:
    base = yaml.safe_load((CLUSTER / "kuberay" / "base" / "kustomization.yaml").read_text())
    (settings,) = [made["literals"] for made in base["configMapGenerator"] if "literals" in made]
    table = README.read_text().split("| what | where |")[1].split("\n\n")[0]
    for key in ("namespace", "images", *(literal.split("=")[0] for literal in settings)):
        assert f"`{key}`" in table


@needs_kustomize
@pytest.mark.parametrize("overlay", [*LAUNCHES, "queued-job"])
def test_kuberays_objects_are_valid(overlay: str) -> None:
    assert not faults(ray_object(built(overlay)))


@needs_kustomize
def test_the_check_finds_faults() -> None:
    job = ray_object(built("job"))
    assert faults({**job, "spec": {**job["spec"], "entrypiont": "x"}})
    assert faults({**job, "spec": {**job["spec"], "backoffLimit": "two"}})


@needs_kustomize
def test_every_launch_has_the_same_cluster() -> None:
    job, night = ray_object(built("job"))["spec"], ray_object(built("nightly"))["spec"]["jobTemplate"]
    assert job["rayClusterSpec"] == cluster()
    assert night == {**job, "entrypoint": night["entrypoint"]}
    head = cluster()["headGroupSpec"]["template"]["spec"]["nodeSelector"]
    assert job["submitterPodTemplate"]["spec"]["nodeSelector"] == head != {}


VALUES = {
    "namespace: darkroom": "namespace: pictures",
    "newName: REGISTRY/darkroom": "newName: images.example/ours",
    "newTag: gpu": "newTag: v2",
    "gpus=8": "gpus=3",
    "role=arn:aws:iam::ACCOUNT:role/darkroom-render": "role=arn:aws:iam::1:role/r",
    "operator-namespace=kuberay-operator": "operator-namespace=ray-system",
    "prometheus-namespace=monitoring": "prometheus-namespace=metrics",
    "prometheus-release=kube-prometheus-stack": "prometheus-release=stack",
    "queue=darkroom": "queue=nights",
}


def strings(value: Any) -> Iterator[str]:
    """Every text in an object but for its keys."""
    if isinstance(value, dict):
        value = list(value.values())
    if isinstance(value, list):
        for each in value:
            yield from strings(each)
    else:
        yield str(value)


@needs_kustomize
def test_each_value_is_changed_in_one_place(tmp_path: Path) -> None:
    kuberay = changed(tmp_path, *(("base/kustomization.yaml", old, new) for old, new in VALUES.items()))
    made = {overlay: build(kuberay / overlay) for overlay in OBJECTS}
    found = {text for objects in made.values() for text in strings(objects)}
    old = {re.split("[=:] ?", before, maxsplit=1)[1] for before in VALUES}
    # Names stay, and a namespace and a queue of the same name are looked at below.
    assert not (old - {"darkroom", "8", "gpu", "monitoring"}) & found
    for objects in made.values():
        for each in objects:
            place = "name" if each["kind"] == "Namespace" else "namespace"
            assert each["metadata"][place] == "pictures"
    for overlay in (*LAUNCHES, "queued-job"):
        assert {box["image"] for box in boxes(ray_object(made[overlay]))} == {"images.example/ours:v2"}
        (group,) = cluster_spec(ray_object(made[overlay]))["workerGroupSpecs"]
        assert group["maxReplicas"] == 3
    assert workers_of(ray_object(made["job"])) == workers_of(ray_object(made["nightly"])) == 3
    account = one(made["setup"], "ServiceAccount")
    assert account["metadata"]["annotations"] == {"eks.amazonaws.com/role-arn": "arn:aws:iam::1:role/r"}
    assert let_in(one(made["setup"], "NetworkPolicy")) == [("ray-system", 8265), ("metrics", 8080)]
    for kind in ("PodMonitor", "PrometheusRule"):
        assert one(made["monitoring"], kind)["metadata"]["labels"]["release"] == "stack"
    assert ray_object(made["queued-job"])["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "nights"


@needs_kustomize
def test_objects_of_your_own_stay(tmp_path: Path) -> None:
    mine = "apiVersion: v1\nkind: Secret\nmetadata: {name: mine, labels: {app.kubernetes.io/component: x}}\n"
    kuberay = changed(tmp_path, ("job/kustomization.yaml", "[../base]", "[../base, mine.yaml]"))
    (kuberay / "job" / "mine.yaml").write_text(mine)
    assert one(build(kuberay / "job"), "Secret")["metadata"]["name"] == "mine"


def pods(document: Object) -> Iterator[Object]:
    """The specifications of all pods that belong to an object of KubeRay."""
    spec = cluster_spec(document)
    templates = [group["template"] for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"])]
    if document["kind"] != "RayCluster":
        templates.append(job_spec(document)["submitterPodTemplate"])
    for template in templates:
        yield template["spec"]


def boxes(document: Object) -> Iterator[Object]:
    for pod in pods(document):
        yield from pod["containers"]


@needs_kustomize
@pytest.mark.parametrize("overlay", [*LAUNCHES, "queued-job"])
def test_the_cluster_is_closed_and_its_pods_are_harmless(overlay: str) -> None:
    document = ray_object(built(overlay))
    spec = cluster_spec(document)
    assert spec["authOptions"] == {"mode": "token"}
    assert spec["headGroupSpec"]["serviceType"] == "ClusterIP"
    assert "dashboard-host" not in spec["headGroupSpec"]["rayStartParams"]
    for pod in pods(document):
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
    sidecar = [spec["autoscalerOptions"]] if spec["enableInTreeAutoscaling"] else []
    harmless = {"allowPrivilegeEscalation": False, "capabilities": {"drop": ["ALL"]}}
    assert all(box["securityContext"] == harmless for box in (*boxes(document), *sidecar))


def let_in(policy: Object) -> list[tuple[str, int]]:
    """Namespaces besides its own that a network policy lets in, and the ports."""
    assert policy["spec"]["podSelector"] == {}
    assert policy["spec"]["policyTypes"] == ["Ingress"]
    others = [rule for rule in policy["spec"]["ingress"] if rule["from"] != [{"podSelector": {}}]]
    return [
        (source["namespaceSelector"]["matchLabels"]["kubernetes.io/metadata.name"], port["port"])
        for rule in others
        for source in rule["from"]
        for port in rule["ports"]
    ]


@needs_kustomize
def test_only_the_operator_and_prometheus_get_in() -> None:
    policy = one(built("setup"), "NetworkPolicy")
    assert let_in(policy) == [("kuberay-operator", 8265), ("monitoring", 8080)]
    assert one(built("setup"), "Namespace")["metadata"]["labels"]["pod-security.kubernetes.io/enforce"] == "restricted"


def variables(group: Object) -> dict[str, Object]:
    (box,) = group["template"]["spec"]["containers"]
    return {entry["name"]: entry for entry in box["env"]}


@needs_kustomize
def test_a_node_that_leaves_drains_within_its_grace_period() -> None:
    for group in cluster()["workerGroupSpecs"]:
        drained_s = int(variables(group)["RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"]["value"])
        assert 30 < drained_s < group["template"]["spec"]["terminationGracePeriodSeconds"]
    assert hasattr(ray_constants, "RAY_GRACEFUL_SHUTDOWN_DRAIN_TIMEOUT_S"), "Ray reads it"


@needs_kustomize
def test_usage_statistics_are_off() -> None:
    head = variables(cluster()["headGroupSpec"])
    assert head[usage_constants.USAGE_STATS_ENABLED_ENV_VAR]["value"] == "0"
    assert "--disable-usage-stats" in README.read_text()


@needs_kustomize
def test_the_secret_of_the_hubs_token_may_be_missing_and_is_in_the_readme() -> None:
    spec = cluster()
    for group in (spec["headGroupSpec"], *spec["workerGroupSpecs"]):
        secret = variables(group)["HF_TOKEN"]["valueFrom"]["secretKeyRef"]
        assert secret == {"name": "darkroom-hub", "key": "token", "optional": True}
    assert "create secret generic darkroom-hub --namespace darkroom --from-file=token=" in README.read_text()


@needs_kustomize
def test_the_ray_of_the_files_is_ours() -> None:
    pinned = dict(line.split("==") for line in (ROOT / "constraints.txt").read_text().split())
    assert cluster()["rayVersion"] == pinned["ray"]


def settings_of(document: Object) -> list[str]:
    """Return what the command of a job gives to ``--set``."""
    words = shlex.split(job_spec(document)["entrypoint"])
    return [value for option, value in pairwise(words) if option == "--set"]


def workers_of(document: Object) -> int:
    (setting,) = settings_of(document)
    return int(setting.removeprefix("workers.count="))


@needs_kustomize
def test_the_job_of_the_files_loads(tmp_path: Path) -> None:
    job = ray_object(built("job"))
    (tmp_path / "job.yaml").write_text(one(built("job"), "ConfigMap")["data"]["job.yaml"])
    loaded = load(tmp_path / "job.yaml", settings_of(job))
    (group,) = cluster()["workerGroupSpecs"]
    assert loaded.workers.count == group["maxReplicas"] == 8
    (box,) = group["template"]["spec"]["containers"]
    assert loaded.workers.gpus == int(box["resources"]["limits"]["nvidia.com/gpu"])
    assert job_spec(job)["entrypoint"] == 'darkroom render /etc/darkroom/job.yaml --set workers.count="8" --json'
    night = job_spec(ray_object(built("nightly")))["entrypoint"]
    assert night == 'darkroom render /etc/darkroom/job.yaml --set workers.count="8" --skip-bad-rows --json'


@needs_kustomize
@pytest.mark.parametrize("overlay", LAUNCHES)
def test_what_waits_in_a_queue_has_a_fixed_size(overlay: str, tmp_path: Path) -> None:
    kuberay = changed(tmp_path, (f"{overlay}/kustomization.yaml", "[../base]", "[../base]\ncomponents: [../kueue]"))
    document = ray_object(build(kuberay / overlay))
    assert not faults(document)
    spec = cluster_spec(document)
    assert spec["enableInTreeAutoscaling"] is False
    assert "autoscalerOptions" not in spec
    (group,) = spec["workerGroupSpecs"]
    assert group["replicas"] == group["minReplicas"] == group["maxReplicas"] == 8
    queue = document["metadata"]["labels"].get("kueue.x-k8s.io/queue-name")
    assert queue == (None if overlay == "nightly" else "darkroom"), "a RayCronJob gives its jobs no labels"


@needs_kustomize
def test_a_job_in_the_queue_is_the_job() -> None:
    plain, queued = ray_object(built("job")), ray_object(built("queued-job"))
    assert queued["metadata"]["labels"]["kueue.x-k8s.io/queue-name"] == "darkroom"
    assert {**plain["spec"], "rayClusterSpec": queued["spec"]["rayClusterSpec"]} == queued["spec"]
    assert cluster_spec(queued)["headGroupSpec"] == cluster()["headGroupSpec"]


@needs_kustomize
def test_the_monitoring_has_the_rules_and_the_dashboard() -> None:
    objects = built("monitoring")
    groups = yaml.safe_load((CLUSTER / "prometheus" / "rules.yml").read_text())["groups"]
    assert one(objects, "PrometheusRule")["spec"]["groups"] == groups, "make rules"
    dashboard = one(objects, "ConfigMap")
    assert json.loads(dashboard["data"]["darkroom.json"]) == json.loads(
        (CLUSTER / "grafana" / "darkroom.json").read_text()
    )
    assert dashboard["metadata"]["labels"]["grafana_dashboard"] == "1"
    monitor = one(objects, "PodMonitor")["spec"]
    assert monitor["selector"] == {"matchLabels": {"ray.io/is-ray-node": "yes"}}
    assert [endpoint["port"] for endpoint in monitor["podMetricsEndpoints"]] == ["metrics"]


def test_make_rules_copies_the_rules(tmp_path: Path) -> None:
    changed(tmp_path, ("../prometheus/rules.yml", "failed_images:share > 0.05", "failed_images:share > 0.5"))
    shutil.copy(ROOT / "Makefile", tmp_path)
    subprocess.run(["make", "rules"], cwd=tmp_path, check=True, capture_output=True)
    made = yaml.safe_load((tmp_path / "cluster" / "kuberay" / "base" / "prometheusrule.yaml").read_text())
    assert made["metadata"]["name"] == "darkroom"
    rules = yaml.safe_load((tmp_path / "cluster" / "prometheus" / "rules.yml").read_text())
    assert made["spec"] == rules
