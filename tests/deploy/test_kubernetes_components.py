"""The manifests with their components: what Prometheus' operator needs, the learner, backups."""

from __future__ import annotations

import os
import re
import shutil
import subprocess
from pathlib import Path
from typing import Any

import kubernetes_validate
import pytest

from cli.main import _load
from learning.commands import ENDS_WITHIN_S
from service.environment import LEARNER_PREFIX
from service.settings import Settings
from tests.deploy.dockerfile import ROOT
from tests.deploy.test_kubernetes import VERSIONS, Overlay, needs_kustomize, ports_of, selects

pytestmark = needs_kustomize


@pytest.fixture(params=["production", "gpu"])
def whole(request: pytest.FixtureRequest, tmp_path: Path) -> Overlay:
    """An overlay with the components that it names in a comment."""
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    folder = tmp_path / "deploy" / "kubernetes"
    kustomization = folder / "overlays" / request.param / "kustomization.yaml"
    text = kustomization.read_text()
    uncommented = re.sub(r"^# (components:\n)((?:#   - \S+\n)+)", _without_marks, text, flags=re.M)
    assert uncommented != text
    kustomization.write_text(uncommented)
    return Overlay(request.param, folder)


def _without_marks(found: re.Match[str]) -> str:
    return found[1] + found[2].replace("#", "")


def learner_pod(cluster: Overlay) -> dict[str, Any]:
    job = cluster.one("CronJob", "tim4rec-learner")["spec"]["jobTemplate"]
    pod: dict[str, Any] = job["spec"]["template"]
    return pod


def test_the_pod_monitor_selects_the_service(whole: Overlay) -> None:
    monitor = whole.one("PodMonitor")
    deployment = whole.one("Deployment")
    assert selects(monitor["spec"]["selector"]["matchLabels"], deployment)
    (endpoint,) = monitor["spec"]["podMetricsEndpoints"]
    assert endpoint["port"] in {port["name"] for port in ports_of(deployment)}
    assert endpoint["path"] == "/metrics"


def test_from_outside_the_service_is_reached_by_tls_alone(whole: Overlay) -> None:
    ingress = whole.one("Ingress")
    (rule,) = ingress["spec"]["rules"]
    (tls,) = ingress["spec"]["tls"]
    assert tls["hosts"] == [rule["host"]]
    assert tls["secretName"]
    (path,) = rule["http"]["paths"]
    target = path["backend"]["service"]
    service = whole.one("Service", target["name"])
    assert target["port"]["name"] in {port["name"] for port in service["spec"]["ports"]}
    annotations = ingress["metadata"]["annotations"]
    assert annotations["nginx.ingress.kubernetes.io/ssl-redirect"] == "true"
    largest = annotations["nginx.ingress.kubernetes.io/proxy-body-size"]
    assert largest == f"{Settings.model_fields['max_body_bytes'].default // 2**20}m"


def test_objects_of_components_are_valid(whole: Overlay) -> None:
    for found in whole.objects:
        if found["kind"] != "PodMonitor":  # the operator's own
            for version in VERSIONS:
                kubernetes_validate.validate(found, version, strict=True)
        if found["kind"] != "Namespace":
            assert found["metadata"]["namespace"] == "tim4rec"


def test_one_learner_runs_at_a_time_and_goes_on_where_it_was(whole: Overlay) -> None:
    spec = whole.one("CronJob", "tim4rec-learner")["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    assert spec["jobTemplate"]["spec"]["backoffLimit"] == 0
    pod = learner_pod(whole)["spec"]
    assert pod["restartPolicy"] == "Never"
    assert pod["terminationGracePeriodSeconds"] > ENDS_WITHIN_S
    (container,) = pod["containers"]
    assert container["args"] == ["learn", "--once"]
    assert "--once" in {flag for parameter in _load("learn").params for flag in parameter.opts}
    work = Path(environment_of(container)["TIM4REC_LEARN_WORK"] or "")
    assert claims(whole, pod, container)[str(work.parent)] == ["ReadWriteOnce"]


def environment_of(container: dict[str, Any]) -> dict[str, str | None]:
    return {entry["name"]: entry.get("value") for entry in container["env"]}


def claims(
    cluster: Overlay, pod: dict[str, Any], container: dict[str, Any]
) -> dict[str, list[str]]:
    """How the volumes that outlive a pod may be had, by where they are mounted."""
    modes = {
        claim["metadata"]["name"]: claim["spec"]["accessModes"]
        for claim in cluster.all("PersistentVolumeClaim")
    }
    named = {
        volume["name"]: volume["persistentVolumeClaim"]["claimName"]
        for volume in pod["volumes"]
        if "persistentVolumeClaim" in volume
    }
    return {
        mount["mountPath"]: modes[named[mount["name"]]]
        for mount in container["volumeMounts"]
        if mount["name"] in named
    }


def test_the_learner_has_what_the_service_has_and_options_that_exist(whole: Overlay) -> None:
    pod = learner_pod(whole)["spec"]
    (container,) = pod["containers"]
    assert container["image"] == whole.container["image"]
    assert container["envFrom"] == whole.container["envFrom"]  # kinds, outcomes, models
    given = environment_of(container)
    own = {name for name in given if name.startswith(LEARNER_PREFIX)}
    assert own <= {parameter.envvar for parameter in _load("learn").params}
    assert given.keys() - own == {"TIM4REC_REDIS_URL", "TIM4REC_ADMIN_KEYS"}
    for entry in container["env"]:
        if entry["name"] not in own:
            (same,) = (one for one in whole.container["env"] if one["name"] == entry["name"])
            wanted = same["valueFrom"]["secretKeyRef"] | {"optional": False}
            assert entry["valueFrom"]["secretKeyRef"] | {"optional": False} == wanted
    settings = whole.environment()
    assert float(settings["TIM4REC_OUTCOME_WINDOW_S"] or 0) > 0
    (service,) = whole.all("Service")
    assert given["TIM4REC_LEARN_SERVICE"] == f"http://{service['metadata']['name']}"
    assert [port["port"] for port in service["spec"]["ports"]] == [80]
    # What the service starts with is the first incumbent.
    (init,), (of_service,) = pod["initContainers"], whole.pod["initContainers"]
    assert (init["image"], init["command"]) == (of_service["image"], of_service["command"])
    (place,) = (m["mountPath"] for m in container["volumeMounts"] if m["name"] == "artefact")
    assert given["TIM4REC_LEARN_INCUMBENT"] == place


def test_the_learner_publishes_where_the_service_looks(whole: Overlay) -> None:
    models = whole.environment()["TIM4REC_MODELS_DIR"] or ""
    pod = learner_pod(whole)["spec"]
    for spec, read_only in ((pod, False), (whole.pod, True)):
        (container,) = spec["containers"]
        assert claims(whole, spec, container)[models] == ["ReadWriteMany"]
        (mount,) = (m for m in container["volumeMounts"] if m["mountPath"] == models)
        assert mount.get("readOnly", False) is read_only


def test_the_learner_is_confined(whole: Overlay) -> None:
    template = learner_pod(whole)
    pod = template["spec"]
    assert pod["automountServiceAccountToken"] is False
    assert pod["enableServiceLinks"] is False
    assert pod["securityContext"] | {"fsGroupChangePolicy": None} == whole.pod[
        "securityContext"
    ] | {"fsGroupChangePolicy": None}
    assert {kind for volume in pod["volumes"] for kind in volume} == {
        "name", "emptyDir", "persistentVolumeClaim",
    }  # fmt: skip
    for container in pod["containers"] + pod["initContainers"]:
        assert container["securityContext"] == whole.container["securityContext"]
        assert "memory" in container["resources"]["limits"]
        assert "cpu" in container["resources"]["requests"]
    # No Service, budget or policy of the service's is the learner's, too.
    labels = template["metadata"]["labels"]
    for found in (*whole.all("Service"), *whole.all("PodDisruptionBudget")):
        selector = found["spec"]["selector"]
        assert not selector.get("matchLabels", selector).items() <= labels.items()
    (policy,) = (
        found["spec"]
        for found in whole.all("NetworkPolicy")
        if found["spec"]["podSelector"]["matchLabels"].items() <= labels.items()
    )
    assert policy["policyTypes"] == ["Ingress", "Egress"]
    assert "ingress" not in policy
    reached = {rule["ports"][0]["port"]: rule.get("to") for rule in policy["egress"]}
    assert reached.keys() == {53, 6379, "http"}
    (to,) = reached["http"] or ()
    assert selects(to["podSelector"]["matchLabels"], whole.one("Deployment"))


def test_models_on_a_volume_need_no_learner(tmp_path: Path) -> None:
    shutil.copytree(ROOT / "deploy", tmp_path / "deploy")
    folder = tmp_path / "deploy" / "kubernetes"
    kustomization = folder / "overlays" / "production" / "kustomization.yaml"
    with kustomization.open("a") as file:
        file.write("components:\n  - ../../components/models-volume\n")
    cluster = Overlay("production", folder)
    assert cluster.environment()["TIM4REC_MODELS_DIR"] == "/models"
    assert not cluster.all("CronJob")


def test_a_backup_every_night(whole: Overlay) -> None:
    spec = whole.one("CronJob", "tim4rec-backup")["spec"]
    assert spec["concurrencyPolicy"] == "Forbid"
    template = spec["jobTemplate"]["spec"]["template"]
    pod = template["spec"]
    (container,) = pod["containers"]
    assert container["image"] == whole.container["image"]
    assert container["envFrom"] == whole.container["envFrom"]
    assert environment_of(container).keys() == {"TIM4REC_REDIS_URL"}
    assert container["securityContext"] == whole.container["securityContext"]
    assert pod["securityContext"]["runAsUser"] == whole.pod["securityContext"]["runAsUser"]
    assert claims(whole, pod, container) == {"/backups": ["ReadWriteOnce"]}
    (policy,) = (
        found["spec"]
        for found in whole.all("NetworkPolicy")
        if found["spec"]["podSelector"]["matchLabels"].items()
        <= template["metadata"]["labels"].items()
    )
    assert {rule["ports"][0]["port"] for rule in policy["egress"]} == {53, 6379}
    assert "ingress" not in policy


def test_the_seven_newest_backups_stay(whole: Overlay, tmp_path: Path) -> None:
    """What the job runs, with a command in the place of `tim4rec` that makes a folder."""
    pod = whole.one("CronJob", "tim4rec-backup")["spec"]["jobTemplate"]["spec"]["template"]["spec"]
    shell, flags, script = pod["containers"][0]["command"]
    backups, commands = tmp_path / "backups", tmp_path / "bin"
    commands.mkdir()
    command = commands / "tim4rec"
    command.write_text('#!/bin/sh\ntest "$1" = backup && test ! -e "$2" && mkdir "$2"\n')
    command.chmod(0o755)
    for name in ("2026-11-30T0215Z.partial", *(f"2020-01-0{day}T0215Z" for day in range(1, 9))):
        (backups / name).mkdir(parents=True)
        (backups / name / "manifest.json").touch()
    path = f"{commands}:{os.environ['PATH']}"
    here = [shell, flags, script.replace("/backups", str(backups))]
    subprocess.run(here, env={"PATH": path}, check=True)
    *kept, newest = sorted(one.name for one in backups.iterdir())
    assert kept == [f"2020-01-0{day}T0215Z" for day in range(3, 9)]
    assert newest > "2026"
    command.write_text("#!/bin/sh\nexit 1\n")  # a failed one removes nothing
    assert subprocess.run(here, env={"PATH": path}, check=False).returncode != 0
    assert len(list(backups.iterdir())) == 7
