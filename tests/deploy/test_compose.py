"""docker-compose.yml without an engine: what it says, and each service's own command line run."""

from __future__ import annotations

import contextlib
import gzip
import json
import os
import re
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from graphlib import TopologicalSorter
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from queue import Queue
from typing import Any

import httpx
import pytest
import redis
import yaml
from dotenv import dotenv_values
from dotenv.variables import parse_variables

from service.settings import Settings
from service.store.valkey_binary import valkey_binary
from tests.deploy.dockerfile import ROOT, Image
from tests.ports import free_port
from tests.service.processes import READY_WITHIN_S
from tests.waited import LONG_S

FILE = ROOT / "docker-compose.yml"


def compose(**variables: str) -> dict[str, Any]:
    """The file as Compose reads it where only these variables are set."""

    def filled(value: Any) -> Any:
        if isinstance(value, dict):
            return {key: filled(inner) for key, inner in value.items()}
        if isinstance(value, list):
            return [filled(inner) for inner in value]
        if isinstance(value, str):
            read = "".join(part.resolve(variables) for part in parse_variables(value))
            return read.replace("$$", "$")
        return value

    read: dict[str, Any] = filled(yaml.safe_load(FILE.read_text()))
    return read


SERVICES: dict[str, dict[str, Any]] = compose()["services"]
OURS = {name for name, service in SERVICES.items() if "build" in service}
ONE_SHOT = {"train", "train-gpu"}

every_service = pytest.mark.parametrize("name", SERVICES)
every_profile = pytest.mark.parametrize("profile", ["cpu", "gpu", "cpu,learn", "gpu,learn"])


def active(profiles: str) -> dict[str, dict[str, Any]]:
    """The services of COMPOSE_PROFILES."""
    chosen = set(profiles.split(","))
    return {n: s for n, s in SERVICES.items() if chosen & set(s.get("profiles", chosen))}


def names_in(networks: Any, name: str) -> set[str]:
    """By which a service is known in the network that Prometheus is in."""
    if "back" not in networks:
        return set()
    more = (networks["back"] or {}).get("aliases", []) if isinstance(networks, dict) else []
    return {name, *more}


def mounts(service: dict[str, Any]) -> Iterator[tuple[str, str, bool]]:
    """Source, target, and whether it is read-only."""
    for mount in service.get("volumes", []):
        source, target, *options = mount.split(":")
        yield source, target, options == ["ro"]


def size(text: str) -> int:
    """Bytes of a size as Compose writes it."""
    number, unit = re.fullmatch(r"(\d+)(mb|gb)", text).groups()  # type: ignore[union-attr]
    return int(number) * {"mb": 2**20, "gb": 2**30}[unit]


def seconds(duration: str) -> float:
    number, unit = re.fullmatch(r"(\d+)(s|m)", duration).groups()  # type: ignore[union-attr]
    return float(number) * {"s": 1, "m": 60}[unit]


# -- what it says ------------------------------------------------------------------------


def test_it_follows_the_specification() -> None:
    command = [sys.executable, "-m", "check_jsonschema", "--builtin-schema", "vendor.compose-spec"]
    done = subprocess.run([*command, FILE], capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_env_file_lists_every_variable_with_its_default() -> None:
    used = dict(re.findall(r"\$\{(\w+):-([^}]*)\}", FILE.read_text()))
    env = ROOT / ".env"
    assert dict(re.findall(r"^# (\w+)=(\S*)", env.read_text(), re.MULTILINE)) == used
    assert dotenv_values(env) == {"COMPOSE_PROFILES": "cpu"}  # what is set by itself: no secret


@every_profile
def test_prometheus_finds_the_one_service_of_a_profile(profile: str) -> None:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    (found,) = (
        job["dns_sd_configs"][0] for job in config["scrape_configs"] if job["job_name"] == "tim4rec"
    )
    (service,) = (
        service
        for name, service in active(profile).items()
        if set(found["names"]) & names_in(service["networks"], name)
    )
    assert found["port"] == service["environment"]["TIM4REC_OPERATIONS_PORT"]
    assert [port.rpartition(":")[2] for port in service["ports"]] == [
        str(Settings(artefact=ROOT).port)
    ], "the port for operations is published"


def test_prometheus_finds_the_alertmanager() -> None:
    config = yaml.safe_load((ROOT / "deploy" / "prometheus" / "prometheus.yml").read_text())
    ((found,),) = (one["dns_sd_configs"] for one in config["alerting"]["alertmanagers"])
    assert found["names"] == ["alertmanager"]
    assert set(SERVICES["alertmanager"]["networks"]) == {"front", "back"}  # receivers are outside
    assert f":{found['port']}/" in SERVICES["alertmanager"]["healthcheck"]["test"][-1]


@every_profile
def test_only_what_people_look_at_is_published_and_only_here(profile: str) -> None:
    published = {n: s["ports"] for n, s in active(profile).items() if "ports" in s}
    looked_at = {"service", "grafana", "alertmanager"}
    assert {name.removesuffix("-gpu") for name in published} == looked_at
    for (port,) in published.values():
        assert port.startswith("127.0.0.1:")


def test_the_store_and_prometheus_are_out_of_reach() -> None:
    assert compose()["networks"]["back"] == {"internal": True}
    assert SERVICES["store"]["networks"] == SERVICES["prometheus"]["networks"] == ["back"]


@every_service
def test_services_are_confined(name: str) -> None:
    service = SERVICES[name]
    assert service["read_only"] is True
    assert service["cap_drop"] == ["ALL"]
    assert service["security_opt"] == ["no-new-privileges:true"]
    assert not {"privileged", "cap_add", "network_mode", "pid", "ipc", "devices"} & set(service)
    assert service["logging"]["options"]["max-size"]
    assert service["restart"] == ("no" if name in ONE_SHOT else "unless-stopped")
    assert re.search(r":(v?\d[\d.]+|cpu|cuda)$", service["image"])
    assert size(service["mem_limit"]) >= 2**28
    assert 0 < int(service["pids_limit"]) <= 4096


@every_service
def test_its_limits_are_variables(name: str) -> None:
    # Every variable that is no number of a limit keeps its default.
    limits = set(re.findall(r"(?:mem|pids)_limit: \$\{(\w+):-", FILE.read_text()))
    given = compose(**dict.fromkeys(limits, "12345678901"))["services"][name]
    assert (given["mem_limit"], given["pids_limit"]) == ("12345678901", "12345678901")


def test_the_store_has_room_to_rewrite_its_log() -> None:
    (most,) = (
        SERVICES["store"]["command"][place + 1]
        for place, word in enumerate(SERVICES["store"]["command"])
        if word == "--maxmemory"
    )
    assert size(SERVICES["store"]["mem_limit"]) >= 2 * size(most)


def test_without_keys_it_is_published_on_this_machine_only() -> None:
    """Which is why the service may listen on all addresses of its container without any."""
    for name in ("service", "service-gpu"):
        service = SERVICES[name]
        settings = Settings(
            artefact=ROOT,
            host=Image().environment["TIM4REC_HOST"],
            allow_open=service["environment"]["TIM4REC_ALLOW_OPEN"],
        )
        assert not settings.open_to_others
        assert settings.model_copy(update={"allow_open": False}).open_to_others
        assert all(port.startswith("127.0.0.1:") for port in service["ports"])
        assert service["environment"]["TIM4REC_ALLOWED_HOSTS"] == "service"


@every_service
def test_volumes_are_declared_and_files_are_there(name: str) -> None:
    for source, _, read_only in mounts(SERVICES[name]):
        if source.startswith("."):
            assert (ROOT / source).exists()
            assert read_only
        else:
            assert source in compose()["volumes"]


@every_profile
def test_the_start_order_can_be_kept(profile: str) -> None:
    services = active(profile)
    waits = {name: service.get("depends_on", {}) for name, service in services.items()}
    list(TopologicalSorter(waits).static_order())  # raises on a circle
    for on in waits.values():
        for other, how in on.items():
            if other not in services:
                assert how["required"] is False
            elif other in ONE_SHOT:
                assert how["condition"] == "service_completed_successfully"
            else:
                assert how["condition"] == "service_healthy"
                assert services[other]["healthcheck"]["test"][0] == "CMD"
    (needs,) = (set(on) for name, on in waits.items() if name.startswith("service"))
    assert {name.removesuffix("-gpu") for name in needs} == {"store", "train"}
    for on in (on for name, on in waits.items() if name == "learner"):
        assert {name.removesuffix("-gpu") for name in on if name in services} == {
            "store", "service",
        }  # fmt: skip


@pytest.mark.parametrize("name", ["service", "service-gpu"])
def test_the_service_s_variables_are_settings(
    name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    service = SERVICES[name]
    given = {k.removeprefix("TIM4REC_").lower(): v for k, v in service["environment"].items()}
    assert set(given) <= set(Settings.model_fields)
    for variable, value in service["environment"].items():
        monkeypatch.setenv(variable, str(value))
    monkeypatch.setenv("TIM4REC_MODELS_DIR", str(tmp_path))  # it has to be there
    settings = Settings(artefact=ROOT)
    assert settings.redis == given["redis_url"]
    assert seconds(service["stop_grace_period"]) > settings.drain_s + settings.shutdown_s


def test_grafana_starts_with_the_dashboard_and_has_no_password() -> None:
    grafana = SERVICES["grafana"]
    home = grafana["environment"]["GF_DASHBOARDS_DEFAULT_HOME_DASHBOARD_PATH"]
    (shown,) = (
        ROOT / source / Path(home).relative_to(target)
        for source, target, _ in mounts(grafana)
        if Path(home).is_relative_to(target)
    )
    assert shown.exists()
    assert grafana["environment"]["GF_SECURITY_DISABLE_INITIAL_ADMIN_CREATION"] == "true"
    assert not [name for name in grafana["environment"] if "PASSWORD" in name]


# -- each service's command line, run ------------------------------------------------------


class Machine:
    """Runs what the containers would run: volumes are folders of `folder`, every host is this one
    and each well-known port a free one."""

    def __init__(self, folder: Path, **variables: str) -> None:
        self.services: dict[str, dict[str, Any]] = compose(**variables)["services"]
        self.ports = {port: free_port() for port in (6379, 8000, 9000, 9001, 9090, 9093)}
        self._folder, self._bin = folder, folder / "bin"
        self._bin.mkdir(exist_ok=True)
        self.install("tini", "/usr/bin/env")  # `env -- COMMAND`, too, becomes that command
        self.places: dict[str, Path] = {}
        for service in self.services.values():
            for source, _, _ in mounts(service):
                if source.startswith("."):
                    self.places[source] = ROOT / source
                else:
                    self.places[source] = folder / source
                    self.places[source].mkdir(exist_ok=True)
        conf = next(source for source in self.places if source.endswith("valkey.conf"))
        copy = folder / "valkey.conf"
        copy.write_text(self.here("store", self.places[conf].read_text()))
        self.places[conf] = copy

    def install(self, name: str, program: str | Path) -> None:
        """Put a program under this name on the containers' PATH."""
        (self._bin / name).unlink(missing_ok=True)
        (self._bin / name).symlink_to(program)

    def here(self, name: str, text: str) -> str:
        """What a service's container says, with the paths, hosts and ports of this machine."""
        for source, target, _ in mounts(self.services[name]):
            text = re.sub(rf"(?<![\w/]){target}(?![\w-])", str(self.places[source]), text)
        for port, free in self.ports.items():
            text = re.sub(rf"\b{port}\b", str(free), text)
        return re.sub(r"//(store|service):", "//127.0.0.1:", text)

    @contextlib.contextmanager
    def running(
        self, name: str, *more: str, **environment: object
    ) -> Iterator[subprocess.Popen[str]]:
        """A service's process; `more` arguments and environment, for where it listens."""
        process = subprocess.Popen(
            [*self._command(name), *more],
            env=self._environment(name) | {k: str(v) for k, v in environment.items()},
            cwd=self._folder,
            text=True,
        )
        try:
            yield process
        finally:
            process.kill()
            process.wait()

    def run(self, name: str, *more: str) -> subprocess.CompletedProcess[str]:
        """A service that ends by itself, and what it said."""
        return self._run(name, [*self._command(name), *more])

    def healthy(self, name: str, **environment: object) -> bool:
        """What its health check says now."""
        kind, *command = self.services[name]["healthcheck"]["test"]
        assert kind == "CMD"
        done = self._run(name, command, **environment)
        return done.returncode == 0

    def wait_answer(self, url: str, process: subprocess.Popen[str]) -> None:
        until = time.monotonic() + READY_WITHIN_S
        while True:
            with contextlib.suppress(httpx.TransportError):
                if httpx.get(url).is_success:
                    return
            assert process.poll() is None
            assert time.monotonic() < until
            time.sleep(0.05)

    def _run(
        self, name: str, command: list[str], **environment: object
    ) -> subprocess.CompletedProcess[str]:
        return subprocess.run(
            [self.here(name, word) for word in command],
            env=self._environment(name) | {k: str(v) for k, v in environment.items()},
            cwd=self._folder,
            capture_output=True,
            text=True,
        )

    def _command(self, name: str) -> list[str]:
        service = self.services[name]
        entrypoint = service.get("entrypoint", Image().entrypoint if name in OURS else [])
        return [self.here(name, word) for word in [*entrypoint, *service["command"]]]

    def _environment(self, name: str) -> dict[str, str]:
        given = Image().environment if name in OURS else {}
        given |= self.services[name].get("environment", {})
        return {k: self.here(name, str(v)) for k, v in given.items()} | {
            "PATH": f"{self._bin}:{os.environ['PATH']}",
            "HOME": str(self._folder),
            "PYTHONPATH": str(ROOT),  # these sources, whatever is installed
        }


VALKEY = str(valkey_binary())
REDIS = shutil.which("redis-server")
CLIENT = shutil.which("valkey-cli") or shutil.which("redis-cli")


@contextlib.contextmanager
def running_store(machine: Machine, server: str) -> Iterator[redis.Redis]:
    machine.install("valkey-server", server)
    with (
        machine.running("store", "--bind", "127.0.0.1") as process,
        redis.Redis(port=machine.ports[6379]) as client,
    ):
        until = time.monotonic() + LONG_S
        while True:
            try:
                client.ping()
                break
            except redis.ConnectionError:
                assert process.poll() is None
                assert time.monotonic() < until
                time.sleep(0.02)
        yield client
        process.terminate()
        assert process.wait(seconds(machine.services["store"]["stop_grace_period"])) == 0


@pytest.mark.parametrize(
    "server",
    [
        pytest.param(VALKEY, id="valkey"),
        pytest.param(
            REDIS,
            id="redis",
            marks=pytest.mark.skipif(
                REDIS is None, reason="redis-server is missing: Debian package redis-server"
            ),
        ),
    ],
)
def test_the_store_s_configuration(server: str, folder: Path) -> None:
    machine = Machine(folder, STORE_MEMORY="100mb")
    with running_store(machine, server) as client:
        settings: Any = client.config_get("*")
    assert settings["appendonly"] == "yes"
    assert settings["appendfsync"] == "always"
    assert settings["maxmemory-policy"] == "noeviction"
    assert settings["maxmemory"] == str(100 * 2**20)
    assert settings["save"] == ""
    assert Path(settings["dir"]) == machine.places["store"]
    assert list(machine.places["store"].rglob("*.aof"))


@pytest.mark.skipif(CLIENT is None, reason="redis-cli is missing: Debian package redis-tools")
def test_the_store_s_health(folder: Path) -> None:
    machine = Machine(folder)
    client = folder / "valkey-cli"  # takes the default port, and here the store is elsewhere
    client.write_text(f'#!/bin/sh\nexec {CLIENT} -p {machine.ports[6379]} "$@"\n')
    client.chmod(0o755)
    machine.install("valkey-cli", client)
    assert not machine.healthy("store")
    with running_store(machine, VALKEY):
        assert machine.healthy("store")


def write_log(folder: Path) -> None:
    folder.mkdir()
    rows = [f"u{u},i{(u * n) % 12},{1_700_000_000 + 60 * n}" for u in range(20) for n in range(9)]
    items = [f"i{n},Title {n},A" for n in range(12)]
    for name, header, lines in (
        ("interactions", "user_id,item_id,timestamp", rows),
        ("items", "item_id,title,genres", items),
    ):
        text = "\n".join([header, *lines]) + "\n"
        (folder / f"{name}.csv.gz").write_bytes(gzip.compress(text.encode()))


@pytest.mark.slow
def test_a_model_is_trained_once_and_served_on_the_store(folder: Path) -> None:
    write_log(folder / "log")
    # Stands in for the one step that needs a network: it brings this log, not MovieLens-100K.
    stand_in = folder / "tim4rec"
    program = Path(sys.executable).with_name("tim4rec")
    stand_in.write_text(
        "#!/bin/sh\n"
        f'if [ "$*" = "data ml-100k --out {folder}/data/ml-100k" ]; then '
        f'exec cp -R "{folder}/log" "$4"; fi\n'
        f'exec "{program}" "$@"\n'
    )
    stand_in.chmod(0o755)

    # More workers are tested elsewhere, and take longer.
    machine = Machine(folder, WORKERS="1", ADMIN_KEYS="of the admin")
    machine.install("tim4rec", stand_in)
    done = machine.run("train")
    assert done.returncode == 0, done.stdout + done.stderr
    config = folder / "artefacts" / "ml-100k" / "config.json"
    trained = config.stat().st_mtime_ns
    assert machine.run("train").returncode == 0
    assert config.stat().st_mtime_ns == trained

    machine.install("tim4rec", program)
    port = {"TIM4REC_PORT": machine.ports[8000]}
    assert not machine.healthy("service", **port)
    with (
        running_store(machine, VALKEY) as store,
        machine.running("service", **port) as service,
    ):
        url = f"http://127.0.0.1:{machine.ports[8000]}"
        machine.wait_answer(f"{url}/readyz", service)
        assert machine.healthy("service", **port)
        with httpx.Client(base_url=url) as client:
            posted = client.post("/interactions", json={"user_id": "me", "item_id": "i3"})
            assert posted.json()["status"] == "applied"
            answer = client.get("/recommend", params={"user_id": "me", "k": 3}).json()
            assert answer["source"] == "model"
            assert len(answer["items"]) == 3
            assert client.get("/metrics").status_code == 404
        metrics = httpx.get(f"http://127.0.0.1:{machine.ports[9000]}/metrics")
        assert "tim4rec_workers 1.0" in metrics.text
        assert store.keys("tim4rec:u:*") == [b"tim4rec:u:me"]
        # The learner finds the log, the model that is served, and that it has too little to do.
        learned = machine.run("learner", "--once")
        assert learned.returncode == 0, learned.stdout + learned.stderr
        assert "too little has happened since ml-100k" in learned.stderr
        assert list(machine.places["learner"].glob("learner/exports/*/manifest.json"))
        service.terminate()
        assert service.wait(seconds(machine.services["service"]["stop_grace_period"])) == 0


def test_a_model_that_is_not_there_is_one_line(folder: Path) -> None:
    done = Machine(folder, MODEL="shop").run("train")
    assert done.returncode == 1
    assert done.stderr.count("\n") == 1
    assert "no model shop" in done.stderr


@contextlib.contextmanager
def started(machine: Machine, name: str, program: str, port: int) -> Iterator[str]:
    """The URL of a service that runs by the program installed here, and is healthy."""
    found = shutil.which(program)
    assert found is not None
    machine.install(name, found)
    machine.services[name].setdefault("entrypoint", [name])  # the image's
    assert not machine.healthy(name)
    listen = f"--web.listen-address=127.0.0.1:{machine.ports[port]}"
    with machine.running(name, listen, "--log.level=error") as process:
        url = f"http://127.0.0.1:{machine.ports[port]}"
        machine.wait_answer(f"{url}/-/ready", process)
        assert machine.healthy(name)
        yield url


@pytest.mark.skipif(
    not (shutil.which("prometheus") and shutil.which("wget")),
    reason="prometheus or wget is missing: Debian packages prometheus and wget",
)
def test_prometheus_starts_on_its_configuration(folder: Path) -> None:
    machine = Machine(folder)
    with started(machine, "prometheus", "prometheus", 9090) as url:
        flags = httpx.get(f"{url}/api/v1/status/flags").json()["data"]
        assert flags["storage.tsdb.path"] == str(machine.places["prometheus"])
        alerts = httpx.get(f"{url}/api/v1/rules?type=alert").json()["data"]["groups"]
        assert sum(len(group["rules"]) for group in alerts) > 0


alertmanager = pytest.mark.skipif(
    not (shutil.which("prometheus-alertmanager") and shutil.which("wget")),
    reason="Alertmanager or wget is missing: Debian packages prometheus-alertmanager and wget",
)


@alertmanager
def test_alertmanager_starts_on_its_configuration(folder: Path) -> None:
    machine = Machine(folder)
    with started(machine, "alertmanager", "prometheus-alertmanager", 9093) as url:
        told = [receiver["name"] for receiver in httpx.get(f"{url}/api/v2/receivers").json()]
        assert told == ["page", "ticket"]
        status = httpx.get(f"{url}/api/v2/status").json()
        assert "webhook" not in status["config"]["original"]


@alertmanager
def test_alerts_are_posted_to_the_webhook(folder: Path) -> None:
    received: Queue[Any] = Queue()

    class Hook(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            body = self.rfile.read(int(self.headers["content-length"]))
            received.put((self.path, json.loads(body)))
            self.send_response(200)
            self.end_headers()

        def log_message(self, format: str, *args: Any) -> None:
            pass

    server = ThreadingHTTPServer(("127.0.0.1", 0), Hook)
    threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
    hook = f"http://127.0.0.1:{server.server_port}/hook?key=a&b=$c"
    machine = Machine(folder, ALERT_WEBHOOK_URL=hook)
    try:
        with started(machine, "alertmanager", "prometheus-alertmanager", 9093) as url:
            labels = {"alertname": "StoreDown", "severity": "page", "job": "tim4rec"}
            # Not of now: others of its group are not waited for.
            alert = {"labels": labels, "startsAt": "2020-01-01T00:00:00Z"}
            httpx.post(f"{url}/api/v2/alerts", json=[alert]).raise_for_status()
            path, told = received.get(timeout=LONG_S)
    finally:
        server.shutdown()
        server.server_close()
    assert path == "/hook?key=a&b=$c"
    assert (told["receiver"], told["status"]) == ("page", "firing")
    assert [alert["labels"] for alert in told["alerts"]] == [labels]
