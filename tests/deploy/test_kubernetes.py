"""The Kubernetes manifests: built by kustomize itself, checked against the published schemas, and
against each other and the service."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest
import yaml

from service.http.routes.health import router
from service.settings import Settings
from tests.deploy.dockerfile import ROOT, Image
from tests.deploy.test_compose import SERVICES

KUBERNETES = ROOT / "deploy" / "kubernetes"
OVERLAYS = ("production", "gpu", "local")
VERSIONS = ("1.30", "1.37")
KUSTOMIZE = 5
"""The oldest version that knows `labels` with selectors and patches in a list."""


def kustomize_version() -> int:
    if shutil.which("kubectl") is None:
        return 0
    command = ["kubectl", "version", "--client", "-o", "json"]
    done = subprocess.run(command, capture_output=True, text=True)
    try:
        return int(json.loads(done.stdout)["kustomizeVersion"].lstrip("v").split(".")[0])
    except (ValueError, KeyError):
        return 0


needs_kustomize = pytest.mark.skipif(
    kustomize_version() < KUSTOMIZE,
    reason="kubectl 1.27 or newer is missing: Debian package kubernetes-client",
)
pytestmark = needs_kustomize
every_overlay = pytest.mark.parametrize("overlay", OVERLAYS)


@cache
def built(folder: Path) -> tuple[dict[str, Any], ...]:
    done = subprocess.run(["kubectl", "kustomize", folder], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert done.stderr == ""  # it warns of what is deprecated
    return tuple(yaml.safe_load_all(done.stdout))


class Overlay:
    def __init__(self, name: str, folder: Path = KUBERNETES) -> None:
        self.objects = built(folder / "overlays" / name)

    def all(self, kind: str) -> list[dict[str, Any]]:
        return [found for found in self.objects if found["kind"] == kind]

    def one(self, kind: str, name: str = "tim4rec") -> dict[str, Any]:
        (found,) = (found for found in self.all(kind) if found["metadata"]["name"] == name)
        return found

    @property
    def workloads(self) -> list[dict[str, Any]]:
        return self.all("Deployment") + self.all("StatefulSet")

    @property
    def pod(self) -> dict[str, Any]:
        spec: dict[str, Any] = self.one("Deployment")["spec"]["template"]["spec"]
        return spec

    @property
    def container(self) -> dict[str, Any]:
        (container,) = self.pod["containers"]
        found: dict[str, Any] = container
        return found

    def environment(self) -> dict[str, str | None]:
        """The service's variables; None: from a secret."""
        maps = {found["metadata"]["name"]: found["data"] for found in self.all("ConfigMap")}
        given: dict[str, str | None] = {}
        for source in self.container["envFrom"]:
            given |= maps[source["configMapRef"]["name"]]
        return given | {entry["name"]: entry.get("value") for entry in self.container["env"]}


def labels_of(workload: dict[str, Any]) -> dict[str, str]:
    labels: dict[str, str] = workload["spec"]["template"]["metadata"]["labels"]
    return labels


def selects(selector: dict[str, str], workload: dict[str, Any]) -> bool:
    return selector.items() <= labels_of(workload).items()


@every_overlay
def test_objects_are_valid(overlay: str) -> None:
    names = set()
    for found in Overlay(overlay).objects:
        for version in VERSIONS:
            kubernetes_validate.validate(found, version, strict=True)
        names.add((found["kind"], found["metadata"]["name"]))
        if found["kind"] != "Namespace":
            assert found["metadata"]["namespace"] == "tim4rec"
        assert found["kind"] != "Secret"
    assert len(names) == len(Overlay(overlay).objects)


@every_overlay
def test_selectors_select_what_they_are_meant_for(overlay: str) -> None:
    cluster = Overlay(overlay)
    deployment = cluster.one("Deployment")
    for workload in cluster.workloads:
        assert selects(workload["spec"]["selector"]["matchLabels"], workload)
    for found in cluster.all("Service"):
        (chosen,) = (w for w in cluster.workloads if selects(found["spec"]["selector"], w))
        assert chosen["metadata"]["name"] == found["metadata"]["name"]
        ports = {p["name"]: p["containerPort"] for p in ports_of(chosen)}
        for port in found["spec"]["ports"]:
            target = port.get("targetPort", port["port"])
            assert target in ports or target in ports.values()
    for found in cluster.all("NetworkPolicy"):
        selector = found["spec"]["podSelector"]["matchLabels"]
        (chosen,) = (w for w in cluster.workloads if selects(selector, w))
        assert chosen["metadata"]["name"] == found["metadata"]["name"]
        opened = {p["port"] for rule in found["spec"]["ingress"] for p in rule["ports"]}
        assert opened == {p["name"] for p in ports_of(chosen)}
    for constraint in cluster.pod["topologySpreadConstraints"]:
        assert selects(constraint["labelSelector"]["matchLabels"], deployment)
    if overlay == "local":
        assert deployment["spec"]["replicas"] == 1
        assert not cluster.all("HorizontalPodAutoscaler") + cluster.all("PodDisruptionBudget")
        return
    assert "replicas" not in deployment["spec"]  # the autoscaler's
    scaler = cluster.one("HorizontalPodAutoscaler")["spec"]
    assert scaler["scaleTargetRef"] == {
        "apiVersion": deployment["apiVersion"],
        "kind": "Deployment",
        "name": deployment["metadata"]["name"],
    }
    assert "cpu" in cluster.container["resources"]["requests"]  # else there is no utilization
    budget = cluster.one("PodDisruptionBudget")["spec"]
    assert selects(budget["selector"]["matchLabels"], deployment)
    assert scaler["minReplicas"] > budget["maxUnavailable"]


def ports_of(workload: dict[str, Any]) -> Iterator[dict[str, Any]]:
    for container in workload["spec"]["template"]["spec"]["containers"]:
        yield from container["ports"]


@every_overlay
def test_the_service_s_variables_are_settings(
    overlay: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    cluster = Overlay(overlay)
    given = cluster.environment()
    assert {name.removeprefix("TIM4REC_").lower() for name in given} <= set(Settings.model_fields)
    for name, value in (Image().environment | given).items():
        if name.startswith("TIM4REC_"):
            monkeypatch.setenv(name, "redis://a-secret" if value is None else value)
    settings = Settings(artefact=Path("/artefact"))
    secret = {name for name, value in given.items() if value is None}
    local = {"TIM4REC_API_KEYS", "TIM4REC_ADMIN_KEYS"}
    assert secret == (local if overlay == "local" else local | {"TIM4REC_REDIS_URL"})
    assert settings.redis is not None  # else each replica had a store of its own
    assert settings.port == cluster.container["ports"][0]["containerPort"]
    assert cluster.pod["terminationGracePeriodSeconds"] > settings.drain_s + settings.shutdown_s
    assert not settings.open_to_others
    (keys,) = (e for e in cluster.container["env"] if e["name"] == "TIM4REC_API_KEYS")
    without = settings.model_copy(update={"api_keys": ()})
    # Where there are none, a pod is not made, or else somebody has said that this is meant.
    optional = keys["valueFrom"]["secretKeyRef"].get("optional", False)
    assert optional is settings.allow_open is (overlay == "local")
    assert without.open_to_others is (overlay != "local")
    # A Service named tim4rec would otherwise set TIM4REC_PORT in every pod.
    assert cluster.pod["enableServiceLinks"] is False


@every_overlay
def test_probes_and_scrapes_ask_routes_that_exist(overlay: str) -> None:
    cluster = Overlay(overlay)
    routes = {getattr(route, "path", None) for route in router.routes}
    container = cluster.container
    asked = {}
    for probe in ("startupProbe", "livenessProbe", "readinessProbe"):
        get = container[probe]["httpGet"]
        asked[probe] = get["path"]
        assert get["port"] in {port["name"] for port in container["ports"]}
    # A store that is down must not restart replicas, only turn requests away.
    assert asked == {
        "startupProbe": "/livez",
        "livenessProbe": "/livez",
        "readinessProbe": "/readyz",
    }
    annotations = cluster.one("Deployment")["spec"]["template"]["metadata"]["annotations"]
    ports = {port["name"]: str(port["containerPort"]) for port in container["ports"]}
    assert annotations["prometheus.io/port"] == ports["operations"]
    assert cluster.environment()["TIM4REC_OPERATIONS_PORT"] == ports["operations"]
    assert set(asked.values()) | {annotations["prometheus.io/path"]} <= routes
    # The drain is worth nothing unless unreadiness is noticed while it lasts.
    ready = container["readinessProbe"]
    noticed_s = ready["periodSeconds"] * ready["failureThreshold"]
    assert noticed_s < float(cluster.environment()["TIM4REC_DRAIN_S"] or 0)


@every_overlay
def test_pods_meet_the_restricted_standard(overlay: str) -> None:
    cluster = Overlay(overlay)
    enforced = cluster.one("Namespace")["metadata"]["labels"]
    assert enforced["pod-security.kubernetes.io/enforce"] == "restricted"
    for workload in cluster.workloads:
        pod = workload["spec"]["template"]["spec"]
        assert pod["automountServiceAccountToken"] is False
        assert pod["securityContext"]["runAsNonRoot"] is True
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert not {"hostNetwork", "hostPID", "hostIPC"} & set(pod)
        assert {kind for volume in pod["volumes"] for kind in volume} <= {
            "name",
            "emptyDir",
            "configMap",
        }
        for container in pod["containers"] + pod.get("initContainers", []):
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert "memory" in container["resources"]["limits"]
            assert re.search(r":\S+$", container["image"])  # a tag, so not by chance the latest
    user, group = map(int, Image().user.split(":"))
    context = cluster.pod["securityContext"]
    assert (context["runAsUser"], context["runAsGroup"]) == (user, group)


@every_overlay
def test_the_model_comes_to_where_the_image_looks_for_it(overlay: str, tmp_path: Path) -> None:
    cluster = Overlay(overlay)
    container = cluster.container
    places = {mount["mountPath"]: mount for mount in container["volumeMounts"]}
    artefact = Image().command[1]
    assert "args" not in container
    assert "command" not in container  # so the image's
    assert places[artefact]["readOnly"] is True
    (init,) = cluster.pod["initContainers"]
    (target,) = init["volumeMounts"]
    assert target["name"] == places[artefact]["name"]
    model, mounted = tmp_path / "model", tmp_path / "mounted"
    for folder in (model, mounted):
        folder.mkdir()
    (model / "config.json").write_text("{}")
    here = {"/model/.": f"{model}/.", f"{target['mountPath']}/": f"{mounted}/"}
    for _ in range(2):  # a restarted pod does it again
        subprocess.run([here.get(word, word) for word in init["command"]], check=True)
    assert os.listdir(mounted) == ["config.json"]
    assert "/model/" in (KUBERNETES / "model.Dockerfile").read_text().split()


def test_the_local_store_is_compose_s() -> None:
    cluster = Overlay("local")
    compose = SERVICES["store"]
    (container,) = cluster.one("StatefulSet", "store")["spec"]["template"]["spec"]["containers"]
    assert container["image"] == compose["image"]
    assert container["command"] == compose["command"][:2]
    assert ["CMD", *container["readinessProbe"]["exec"]["command"]] == compose["healthcheck"][
        "test"
    ]
    (conf,) = (found for found in cluster.all("ConfigMap") if "valkey.conf" in found["data"])
    assert conf["data"]["valkey.conf"] == (ROOT / "deploy" / "store" / "valkey.conf").read_text()
    mounts = {mount["name"]: mount["mountPath"] for mount in container["volumeMounts"]}
    assert f"{mounts['conf']}/valkey.conf" == container["command"][1]
    assert f"dir {mounts['data']}\n" in conf["data"]["valkey.conf"]
    assert cluster.environment()["TIM4REC_REDIS_URL"] == "redis://store:6379/0"
    policy = cluster.one("NetworkPolicy", "store")["spec"]
    let_in = [one["podSelector"]["matchLabels"] for one in policy["ingress"][0]["from"]]
    name = "app.kubernetes.io/component"
    assert let_in == [{name: "service"}, {name: "learner"}]
    assert selects(let_in[0], cluster.one("Deployment"))
    assert "egress" not in policy


@every_overlay
def test_policies_name_both_sides_and_who_asks_may_resolve_names(overlay: str) -> None:
    for policy in Overlay(overlay).all("NetworkPolicy"):
        spec = policy["spec"]
        assert spec["policyTypes"] == ["Ingress", "Egress"]
        if "egress" in spec:
            names, *_ = spec["egress"]
            assert {(port["port"], port["protocol"]) for port in names["ports"]} == {
                (53, "UDP"), (53, "TCP"),
            }  # fmt: skip


@every_overlay
def test_metrics_are_reached_from_the_monitoring_namespace_alone(overlay: str) -> None:
    cluster = Overlay(overlay)
    policy = cluster.one("NetworkPolicy")["spec"]
    assert "Ingress" in policy["policyTypes"]
    assert selects(policy["podSelector"]["matchLabels"], cluster.one("Deployment"))
    sources = {
        port["port"]: rule.get("from") for rule in policy["ingress"] for port in rule["ports"]
    }
    monitoring = {"matchLabels": {"kubernetes.io/metadata.name": "monitoring"}}
    assert sources == {"http": None, "operations": [{"namespaceSelector": monitoring}]}
    # No Service leads there either.
    targets = [p.get("targetPort") for s in cluster.all("Service") for p in s["spec"]["ports"]]
    assert "operations" not in targets


def test_the_gpu_overlay_asks_for_one_gpu_and_no_spare_one() -> None:
    cluster = Overlay("gpu")
    assert cluster.container["resources"]["limits"]["nvidia.com/gpu"] == "1"
    assert cluster.environment()["TIM4REC_DEVICE"] == "cuda"
    assert ":cuda@" in cluster.container["image"]
    rolling = cluster.one("Deployment")["spec"]["strategy"]["rollingUpdate"]
    assert rolling == {"maxSurge": 0, "maxUnavailable": 1}
