"""The files in deploy/prometheus and deploy/grafana: sound by themselves, and every query in them
answered by a real Prometheus that scraped the running service under load."""

from __future__ import annotations

import asyncio
import json
import math
import re
import shutil
import signal
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterator
from itertools import combinations
from pathlib import Path
from typing import Any

import httpx
import pytest
import yaml
from grafana_foundation_sdk.cog.encoder import JSONEncoder
from grafana_foundation_sdk.cog.plugins import register_default_plugins
from grafana_foundation_sdk.models import dashboard as grafana
from grafana_foundation_sdk.models import units
from prometheus_client.parser import text_string_to_metric_families

from model.times import iso
from tests.deploy.learner import learned
from tests.ports import free_port
from tests.service.conftest import ValkeyServer
from tests.service.processes import Service, make_artefact
from tests.waited import at_last

ROOT = Path(__file__).parents[2]
sys.path.insert(0, str(ROOT))  # benchmarks/ is not installed
from benchmarks.dashboard import FILE, Dashboard  # noqa: E402
from benchmarks.load import Load, client_of  # noqa: E402
from benchmarks.prometheus import Prometheus  # noqa: E402

PROMETHEUS, GRAFANA = ROOT / "deploy" / "prometheus", ROOT / "deploy" / "grafana"
ITEMS = [f"item {i}" for i in range(50)]
ADMIN = {"X-API-Key": "of the admin"}
EVERY_S = 1
LOAD_S = 9

WHILE_ALL_IS_WELL = {
    ("Alerts firing", "page"),
    ("Alerts firing", "ticket"),
    ("Errors, reachability", "failed {{operation}}"),
    ("Errors, reachability", "instances without store"),
    ("Errors, reachability", "answered without it, from {{source}}"),
    ("Errors, reachability", "not on replicas in time"),
    ("Memory", "GPU {{instance}}"),
    ("Persistence, replicas", "failed: {{part}}"),
    ("Persistence, replicas", "replicas"),
    ("Persistence, replicas", "furthest behind"),
    ("Disk of an embedded store", "free {{instance}}"),
    ("Disk of an embedded store", "size {{instance}}"),
    ("Popularity not kept", "failures a second"),
    ("Changes of the models", "behind"),
    ("Changes of the models", "trial {{decision}}"),
    ("What is shown and taken to", "not counted"),
    ("Interactions judged", "not judged"),
    ("Event loop lag", "{{instance}}"),
    ("Workers", "replaced"),
    ("Trouble of the feed", "not written or read"),
    ("Trouble of the feed", "lost"),
    ("Trouble of the feed", "taken over"),
    ("Rounds and failures of a day", "failed: {{part}}"),
    ("What is shown and taken to", "explored"),
    ("What is shown and taken to", "taken of these"),
}
"""Panels and legends of queries that a healthy service may answer by nothing but zeros."""

SELECTOR = re.compile(r"\b((?:tim4rec_|tim4rec:|up\b)[\w:]*)(\{[^}]*\})?")

promtool = pytest.mark.skipif(
    shutil.which("promtool") is None, reason="promtool is missing: Debian package prometheus"
)


def rules(name: str) -> list[dict[str, Any]]:
    groups = yaml.safe_load((PROMETHEUS / name).read_text())["groups"]
    return [rule for group in groups for rule in group["rules"]]


def names(expression: str) -> set[str]:
    return {name for name, _ in SELECTOR.findall(expression)}


# -- the files by themselves -------------------------------------------------------------


@pytest.mark.slow
@promtool
@pytest.mark.parametrize(
    "arguments",
    [
        ("check", "config", "prometheus.yml"),
        ("check", "rules", "--lint=all", "--lint-fatal", "rules.yml", "alerts.yml"),
        ("test", "rules", "alerts_test.yml", "days_test.yml"),
    ],
    ids=lambda arguments: " ".join(arguments[:2]),
)
def test_promtool_finds_nothing_wrong(arguments: tuple[str, ...]) -> None:
    done = subprocess.run(
        ["promtool", *arguments], cwd=PROMETHEUS, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr


def test_each_alert_has_a_case_that_fires_and_one_that_does_not() -> None:
    fires, is_silent = set(), set()
    known = {alert["alert"] for alert in rules("alerts.yml")}
    for file in PROMETHEUS.glob("*_test.yml"):
        for case in yaml.safe_load(file.read_text())["tests"]:
            for check in case.get("alert_rule_test", ()):
                (fires if check["exp_alerts"] else is_silent).add(check["alertname"])
            for check in case["promql_expr_test"]:
                asked = re.search(r'alertname=~?"([^"]*)"', check["expr"])
                if not asked:
                    continue
                found = " ".join(sample["labels"] for sample in check["exp_samples"])
                fires |= {name for name in known if f'alertname="{name}"' in found}
                if not check["exp_samples"]:
                    is_silent |= {name for name in known if re.fullmatch(asked[1], name)}
    assert fires == is_silent == known


def test_each_alert_says_what_to_do() -> None:
    for alert in rules("alerts.yml"):
        assert alert["labels"] in [
            {"severity": severity, "service": "tim4rec"} for severity in ("page", "ticket")
        ]
        assert set(alert["annotations"]) == {"summary", "description", "runbook_url"}
        name = alert["alert"].lower()
        runbook = f"{{{{ $externalLabels.runbooks }}}}/operate.md#{name}"
        assert alert["annotations"]["runbook_url"] == runbook


def test_runbooks_can_be_opened() -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    assert config["global"]["external_labels"]["runbooks"].startswith("https://")


@pytest.mark.skipif(
    shutil.which("amtool") is None,
    reason="amtool is missing: Debian package prometheus-alertmanager",
)
def test_alertmanager_has_a_receiver_for_each_severity() -> None:
    file = ROOT / "deploy" / "alertmanager" / "alertmanager.yml"
    checked = subprocess.run(["amtool", "check-config", file], capture_output=True, text=True)
    assert checked.returncode == 0, checked.stdout + checked.stderr
    routes = ["amtool", "config", "routes", "test", f"--config.file={file}"]
    for alert in rules("alerts.yml"):
        labels = [f"{name}={value}" for name, value in alert["labels"].items()]
        told = subprocess.run([*routes, *labels], capture_output=True, text=True, check=True)
        assert told.stdout.strip() == alert["labels"]["severity"]


def lost(given: Any, kept: Any, place: str = "") -> Iterator[str]:
    """What of `given` is not in `kept`."""
    if isinstance(given, dict) and isinstance(kept, dict):
        for key, value in given.items():
            if key not in kept:
                yield f"{place}.{key}"
            else:
                yield from lost(value, kept[key], f"{place}.{key}")
    elif isinstance(given, list) and isinstance(kept, list) and len(given) == len(kept):
        for number, (value, other) in enumerate(zip(given, kept, strict=True)):
            yield from lost(value, other, f"{place}[{number}]")
    elif given != kept:
        yield f"{place}: {given!r} became {kept!r}"


def test_the_dashboard_is_what_its_file_makes() -> None:
    """By Grafana's own builders: python deploy/grafana/dashboard.py"""
    made = subprocess.run(
        [sys.executable, GRAFANA / "dashboard.py"], capture_output=True, text=True, check=True
    )
    assert made.stdout == FILE.read_text("utf-8")


def test_the_dashboard_is_one_by_grafanas_own_types() -> None:
    """Grafana's types drop what they do not know."""
    register_default_plugins()
    given = Dashboard.read().json
    kept = json.loads(JSONEncoder().encode(grafana.Dashboard.from_json(given)))
    # These are Prometheus' own part of an annotation, which the types leave to it.
    prometheus = re.compile(r"\.annotations\.list\[\d+\]\.(step|titleFormat|textFormat)")
    assert [where for where in lost(given, kept) if not prometheus.fullmatch(where)] == []


def test_panels_are_complete_and_do_not_overlap() -> None:
    dashboard = Dashboard.read()
    source = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())
    uid = {"type": "prometheus", "uid": source["datasources"][0]["uid"]}
    known_units = {value for name, value in vars(units).items() if not name.startswith("_")}
    titles = Counter((panel["type"], panel["title"]) for panel in dashboard.json["panels"])
    assert max(titles.values()) <= 2  # "Memory" of the store and of the processes
    for panel in dashboard.panels():
        where = panel["title"]
        assert len(panel["description"]) > 60, where
        assert panel["datasource"] == uid, where
        refs = [target["refId"] for target in panel["targets"]]
        assert refs, where
        assert len(set(refs)) == len(refs), where
        if panel["type"] not in ("table", "heatmap"):
            assert panel["fieldConfig"]["defaults"]["unit"] in known_units, where
        for override in panel["fieldConfig"]["overrides"]:
            wanted = override["matcher"]["options"]
            legends = [target["legendFormat"] for target in panel["targets"]]
            if override["matcher"]["id"] == "byName" and not any("{{" in each for each in legends):
                assert wanted in legends, where
    for asked in dashboard.json["annotations"]["list"] + dashboard.variables():
        assert asked["datasource"] == uid
    ids = [panel["id"] for panel in dashboard.json["panels"]]
    assert len(set(ids)) == len(ids)
    for one, other in combinations(dashboard.json["panels"], 2):
        a, b = one["gridPos"], other["gridPos"]
        apart = (
            a["x"] + a["w"] <= b["x"]
            or b["x"] + b["w"] <= a["x"]
            or a["y"] + a["h"] <= b["y"]
            or b["y"] + b["h"] <= a["y"]
        )
        assert apart, (one["title"], other["title"])
    assert all(p["gridPos"]["x"] + p["gridPos"]["w"] <= 24 for p in dashboard.json["panels"])


def test_what_is_configured_in_two_places_agrees() -> None:
    config = yaml.safe_load((PROMETHEUS / "prometheus.yml").read_text())
    source = yaml.safe_load((GRAFANA / "provisioning/datasources/prometheus.yml").read_text())
    seen = source["datasources"][0]["jsonData"]["timeInterval"]
    assert seen == config["global"]["scrape_interval"]
    assert set(config["rule_files"]) == {"rules.yml", "alerts.yml"}


# -- all together ------------------------------------------------------------------------


class Watched:
    """What a Prometheus saw of a service and its learner between two times."""

    def __init__(
        self, prometheus: Prometheus, exporters: tuple[str, ...], start: float, end: float
    ) -> None:
        self.prometheus, self._exporters = prometheus, exporters
        self.start, self.end = start, end
        self.dashboard = Dashboard.read()

    def values(self, expression: str) -> list[float]:
        """All finite values in that time."""
        series = self.prometheus.query_range(expression, self.start, self.end, EVERY_S)
        found = [float(value) for one in series for _, value in one["values"]]
        return [value for value in found if math.isfinite(value)]

    # Each of these yields faults.

    def panels(self) -> Iterator[str]:
        for panel in self.dashboard.panels():
            for target in panel["targets"]:
                values = self.values(self.dashboard.filled(target["expr"], EVERY_S))
                where = f"panel {panel['title']!r}, {target['legendFormat']!r}"
                if not values:
                    yield f"{where}: no data"
                elif (
                    not any(values)
                    and (panel["title"], target["legendFormat"]) not in WHILE_ALL_IS_WELL
                ):
                    yield f"{where}: nothing but zeros"

    def other_queries(self) -> Iterator[str]:
        for annotation in self.dashboard.json["annotations"]["list"]:
            if not self.values(annotation["expr"]):
                yield f"annotation {annotation['name']!r}: no data"
        for variable in self.dashboard.variables():
            asked = re.fullmatch(r"label_values\((.*), (\w+)\)", variable["query"]["query"])
            assert asked
            found = {one["metric"].get(asked[2]) for one in self.prometheus.query(asked[1])}
            current = variable["current"]["value"]
            if not (found - {None}) or not (variable["multi"] or current in found):
                yield f"variable {variable['name']!r}: {found}"

    def rules(self) -> Iterator[str]:
        loaded = {rule["name"]: rule for rule in self.prometheus.rules()}
        for rule in rules("rules.yml") + rules("alerts.yml"):
            name = rule.get("record") or rule["alert"]
            if name not in loaded:
                yield f"rule {name}: not loaded"
            elif loaded[name]["health"] != "ok":
                yield f"rule {name}: {loaded[name].get('lastError', loaded[name]['health'])}"
            if "record" in rule and not self.values(name):
                yield f"rule {name}: no data"
            for metric, labels in SELECTOR.findall(rule["expr"]):
                if not self.values(metric + labels):
                    yield f"rule {name}: no data of {metric}{labels}"

    def metrics(self) -> Iterator[str]:
        """Metrics that exist and are not shown, or the other way round."""
        expressions = [t["expr"] for p in self.dashboard.panels() for t in p["targets"]]
        records = {rule["record"]: names(rule["expr"]) for rule in rules("rules.yml")}
        shown = set().union(*map(names, expressions))
        shown |= set().union(*(of for record, of in records.items() if record in shown))
        alerted = set().union(*(names(rule["expr"]) for rule in rules("alerts.yml")))
        text = "".join(httpx.get(f"{url}/metrics").text for url in self._exporters)
        families = list(text_string_to_metric_families(text))
        exported = {sample.name for family in families for sample in family.samples}
        for name in sorted((shown | alerted) - exported - set(records) - {"up"}):
            yield f"{name}: used in deploy/, but not exported"
        for family in families:
            if not shown & {sample.name for sample in family.samples}:
                yield f"{family.name}: exported, but in no panel"

    def stages(self) -> Iterator[str]:
        """All stages of a route together took as long as its requests."""
        parts, whole = "tim4rec_stage_duration_seconds_sum", "tim4rec_request_duration_seconds_sum"
        share = f'sum by (route) ({parts}{{route!="/metrics"}}) / sum by (route) ({whole})'
        shares = {
            one["metric"]["route"]: float(one["value"][1])
            for one in self.prometheus.query(share, self.end)
        }
        assert {"/recommend", "/interactions", "/interactions/batch", "unmatched"} <= set(shares)
        for route, value in shares.items():
            if not math.isclose(value, 1, rel_tol=1e-3):
                yield f"{route}: the stages are {value:.1%} of the whole time"


async def put_under_load(url: str, store: ValkeyServer) -> Counter[int]:
    async with client_of(url) as client:
        load = Load(client, ITEMS, users=200)
        async with asyncio.TaskGroup() as tasks:
            tasks.create_task(load.run(LOAD_S, lambda t: 25 + 10 * math.sin(t)))
            await client.post("/admin/model", json={"model": "other"}, headers=ADMIN)
            for _ in range(3):  # a rate shows only from the second refusal on
                await asyncio.sleep(0.25 * LOAD_S)
                await load.each_kind()
                refused = load.statuses[503]
                store.send(signal.SIGSTOP)  # the queues fill
                burst = tasks.create_task(load.burst(100))
                while load.statuses[503] < refused + 30 and not burst.done():  # noqa: ASYNC110
                    await asyncio.sleep(0.02)
                await asyncio.sleep(2 * EVERY_S)  # somebody looks at them meanwhile
                store.send(signal.SIGCONT)
                await burst
    return load.statuses


@pytest.mark.slow
@pytest.mark.skipif(
    shutil.which("prometheus") is None, reason="prometheus is missing: Debian package prometheus"
)
def test_a_real_prometheus_answers_every_query(folder: Path) -> None:
    store = ValkeyServer(folder, "--maxmemory", "64mb", "--maxmemory-policy", "noeviction")
    artefact = make_artefact(folder / "models" / "artefact", ITEMS).folder
    long_ago = json.dumps({"until": iso(round(1000 * time.time()) - 7 * 86_400_000)})
    (artefact / "metrics.json").write_text(long_ago)  # so that a step of learning is due
    make_artefact(folder / "models" / "other", ITEMS, seed=1)
    service = Service(
        artefact,
        folder / "output",
        "--workers",
        "2",
        redis_url=store.url,
        models_dir=folder / "models",
        admin_keys=ADMIN["X-API-Key"],
        # Small, so that users do not all fit and requests are refused.
        max_batch=8,
        pool_capacity=64,
        max_queue=8,
        snapshot_every=4,
        outcome_window_s=60,
        quality_sample=1,
        exactness_every_s=0.2,
    )
    port = free_port()
    learner = f"127.0.0.1:{port}"
    exporters = (service.url, f"http://{learner}")
    with Prometheus(f"127.0.0.1:{service.port}", EVERY_S, learner) as prometheus:
        store.start()
        try:
            service.start()
            start = time.time()
            backup = ["backup", folder / "backup", "--redis", store.url]
            subprocess.run([sys.executable, "-m", "cli.main", *backup], cwd=ROOT, check=True)

            def check() -> None:  # what Prometheus knows is some seconds old
                watched = Watched(prometheus, exporters, start, time.time())
                faults = [
                    *watched.panels(),
                    *watched.other_queries(),
                    *watched.rules(),
                    *watched.metrics(),
                    *watched.stages(),
                ]
                assert not faults, "\n".join(faults)
                # The refusals were real ones: they burn the error budget.
                assert watched.values('ALERTS{alertname="ErrorBudgetBurnsFast"}')

            with learned(folder, ITEMS, service, store.url, ADMIN["X-API-Key"], port):
                statuses = asyncio.run(put_under_load(service.url, store))
                assert statuses.keys() == {200, 404, 409, 422, 503}, statuses
                at_last(check)
        finally:
            service.kill()
            store.kill()
