"""The learner in docker-compose.yml: what it has in common with the service, and what not."""

from __future__ import annotations

from pathlib import Path

import httpx
import yaml

from cli.main import _load
from learning.commands import ENDS_WITHIN_S
from service.environment import LEARNER_PREFIX
from tests.deploy.dockerfile import ROOT
from tests.deploy.test_compose import SERVICES, active, compose, mounts, names_in, seconds


def test_the_learner_has_what_the_service_has_and_options_that_exist() -> None:
    service, learner = SERVICES["service"], SERVICES["learner"]
    options = {parameter.envvar: parameter for parameter in _load("learn").params}
    own = {n: v for n, v in learner["environment"].items() if n.startswith(LEARNER_PREFIX)}
    assert own.keys() <= options.keys()
    shared = learner["environment"].keys() - own.keys()
    assert {name: learner["environment"][name] for name in shared} == {
        name: service["environment"][name] for name in shared
    }
    needed = ("REDIS_URL", "ADMIN_KEYS", "MODELS_DIR", "KINDS", "OUTCOME_WINDOW_S")
    assert shared == {f"TIM4REC_{name}" for name in needed}
    # One variable is enough: a trial is decided by outcomes, and models are published somewhere.
    empty = {name for name in shared if not learner["environment"][name]}
    assert empty == {"TIM4REC_ADMIN_KEYS", "TIM4REC_KINDS"}
    url = httpx.URL(own["TIM4REC_LEARN_SERVICE"])
    assert url.host == service["environment"]["TIM4REC_ALLOWED_HOSTS"]
    for profile in ("cpu", "gpu"):
        assert url.host in {
            known for n, s in active(profile).items() for known in names_in(s["networks"], n)
        }


def test_the_learner_publishes_where_the_service_looks() -> None:
    models = SERVICES["service"]["environment"]["TIM4REC_MODELS_DIR"]
    seen = {
        name: [(source, ro) for source, target, ro in mounts(SERVICES[name]) if target == models]
        for name in ("service", "service-gpu", "learner", "train")
    }
    ((volume, read_only),) = seen["learner"]
    assert not read_only
    assert seen["service"] == seen["service-gpu"] == [(volume, True)]
    assert seen["train"] == [(volume, False)]  # so the first model is an incumbent
    work = Path(SERVICES["learner"]["environment"]["TIM4REC_LEARN_WORK"])
    assert any(work.is_relative_to(target) for _, target, _ in mounts(SERVICES["learner"]))


def test_the_learner_leaves_the_cpu_to_the_service() -> None:
    learner = SERVICES["learner"]
    assert learner["cpu_shares"] <= 256  # of 1024, the others'
    assert not [name for name, service in SERVICES.items() if name != "learner" and
                "cpu_shares" in service]  # fmt: skip
    assert compose(LEARNER_CPUS="1.5")["services"]["learner"]["cpus"] == "1.5"
    assert seconds(learner["stop_grace_period"]) > ENDS_WITHIN_S


def test_prometheus_finds_the_learner() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    (found,) = (
        job["dns_sd_configs"][0]
        for job in config["scrape_configs"]
        if job["job_name"] == "tim4rec-learner"
    )
    learner = SERVICES["learner"]
    assert set(found["names"]) == names_in(learner["networks"], "learner")
    assert found["port"] == learner["environment"]["TIM4REC_LEARN_METRICS_PORT"]
    assert "ports" not in learner
