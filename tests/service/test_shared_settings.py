"""Processes of one store and namespace have the same settings, as far as records depend on them."""

from __future__ import annotations

import asyncio
import json
import logging
import os
import subprocess
import sys
from collections.abc import Callable, Coroutine, Iterator
from dataclasses import dataclass
from pathlib import Path
from tempfile import NamedTemporaryFile
from typing import TYPE_CHECKING, Any

import httpx
import pytest
from typer.testing import CliRunner

from cli.main import app
from service.settings import SHARED, Settings
from service.store.client import Store
from service.store.errors import StoreError
from service.store.shared_settings import Difference, SettingsDiffer, SharedSettings
from tests.forked import Forked
from tests.service.conftest import ValkeyServer
from tests.service.processes import ROOT, Service, free_port, make_artefact
from tests.waited import LONG_S, until

if TYPE_CHECKING:
    from tests.service.conftest import ValkeyCluster

Run = Callable[[Coroutine[Any, Any, Any]], Any]

KEY = "tim4rec:settings"
OTHERS = {
    "kinds": "view:step,*:log", "late_policy": "reject", "dedup_window": "10",
    "idle_ttl_s": "3600", "history_limit": "5000", "popular_half_life_s": "3600",
    "popular_items": "5000", "live_neighbours": "8", "live_users": "1000",
}  # fmt: skip


@pytest.fixture(params=["valkey", "valkey_cluster"])
def either(request: pytest.FixtureRequest) -> ValkeyServer | ValkeyCluster:
    server: ValkeyServer | ValkeyCluster = request.getfixturevalue(request.param)
    return server


@pytest.fixture(scope="module")
def artefact_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artefact(tmp_path_factory.mktemp("shared") / "model", ["a", "b"]).folder


@pytest.fixture
def log(tmp_path: Path) -> Path:
    path = tmp_path / "log.csv"
    path.write_text("user_id,item_id,timestamp\nann,a,1700000000\n")
    return path


def shared(**settings: Any) -> dict[str, str]:
    return Settings(artefact=Path("a"), **settings).shared()


async def agree(
    url: str, mine: dict[str, str], namespace: str = "tim4rec", change: bool = False
) -> list[Difference]:
    async with Store(url, timeout_s=LONG_S) as store:
        noted = SharedSettings(store, namespace=namespace)
        return await noted.agree(mine, change=change)


def noted(server: ValkeyServer | ValkeyCluster, key: str = KEY) -> dict[str, str]:
    with server.client() as client:
        return {name.decode(): value.decode() for name, value in client.hgetall(key).items()}


# -- what is compared ------------------------------------------------------------------------


def test_the_first_process_notes_its_settings(
    run: Run, either: ValkeyServer | ValkeyCluster
) -> None:
    """So does the first one with this service on a store of an older one."""
    assert run(agree(either.url, shared())) == []
    assert noted(either) == shared()
    assert run(agree(either.url, shared())) == []


@pytest.mark.parametrize("name", OTHERS)
def test_a_difference_is_one_line_with_both_values(
    run: Run, either: ValkeyServer | ValkeyCluster, name: str
) -> None:
    run(agree(either.url, shared()))
    with pytest.raises(SettingsDiffer) as raised:
        run(agree(either.url, shared(**{name: OTHERS[name]})))
    line = str(raised.value)
    assert "\n" not in line
    assert f"{name} is {OTHERS[name]!r} here and {shared()[name]!r} there" in line
    assert sum(other in line for other in SHARED) == 1
    assert "TIM4REC_CHANGE_SHARED_SETTINGS=true" in line
    assert noted(either) == shared()
    assert run(agree(either.url, shared(**{name: OTHERS[name]}), namespace="another")) == []


def test_all_differences_are_in_the_line(run: Run, valkey: ValkeyServer) -> None:
    assert OTHERS.keys() | {"replay_limit"} == set(SHARED)
    run(agree(valkey.url, shared()))
    with pytest.raises(SettingsDiffer) as raised:
        run(agree(valkey.url, shared(**OTHERS)))
    assert all(f"{name} is {value!r} here" in str(raised.value) for name, value in OTHERS.items())


def test_the_limit_of_replays_counts_where_there_are_any(run: Run, valkey: ValkeyServer) -> None:
    run(agree(valkey.url, shared(replay_limit=7)))
    assert "replay_limit" not in noted(valkey)
    run(agree(valkey.url, shared(late_policy="replay", replay_limit=9), change=True))
    with pytest.raises(SettingsDiffer, match="replay_limit is '8' here and '9' there"):
        run(agree(valkey.url, shared(late_policy="replay", replay_limit=8)))


def test_what_is_only_spelt_differently_is_the_same(run: Run, valkey: ValkeyServer) -> None:
    run(agree(valkey.url, shared(kinds="view:step, buy:hide+step ,*:count,x:count")))
    assert noted(valkey)["kinds"] == "buy:step+hide,view:step,*:count"
    assert run(agree(valkey.url, shared(kinds="*:count,buy:step+hide,view:step"))) == []
    assert shared(kinds="")["kinds"] == shared(kinds="view:step")["kinds"] == "*:step"
    assert shared(kinds="*:log")["kinds"] == "*:log"


def test_a_change_is_noted_and_told(run: Run, either: ValkeyServer | ValkeyCluster) -> None:
    run(agree(either.url, shared()))
    changed = run(agree(either.url, shared(dedup_window=10), change=True))
    assert changed == [Difference("dedup_window", "10", "1000")]
    assert noted(either) == shared(dedup_window=10)
    assert run(agree(either.url, shared(dedup_window=10), change=True)) == []
    with pytest.raises(SettingsDiffer, match="dedup_window is '1000' here and '10' there"):
        run(agree(either.url, shared()))


def test_of_many_first_processes_one_is_the_first(run: Run, valkey: ValkeyServer) -> None:
    async def all_at_once() -> list[Any]:
        tasks = [agree(valkey.url, shared(dedup_window=10 + n % 4)) for n in range(24)]
        return await asyncio.gather(*tasks, return_exceptions=True)

    found = run(all_at_once())
    assert all(isinstance(one, SettingsDiffer) or one == [] for one in found), found
    assert sum(one == [] for one in found) == 6


def test_a_store_that_cannot_be_written(run: Run, folder: Path) -> None:
    """Who only compares does as ever; who wants a change hears that there is none."""
    server = ValkeyServer(folder)
    server.start()
    try:
        with server.client() as client:
            for refusing, sound in (
                (("CONFIG", "SET", "maxmemory", "1"), ("CONFIG", "SET", "maxmemory", "0")),
                (("REPLICAOF", "127.0.0.1", str(free_port())), ("REPLICAOF", "NO", "ONE")),
            ):
                client.execute_command(*refusing)
                assert run(agree(server.url, shared())) == []
                client.execute_command(*sound)
                assert noted(server) == {}
                run(agree(server.url, shared()))
                client.execute_command(*refusing)
                assert run(agree(server.url, shared())) == []
                with pytest.raises(SettingsDiffer):
                    run(agree(server.url, shared(dedup_window=10)))
                with pytest.raises(StoreError, match="the store refused: "):
                    run(agree(server.url, shared(dedup_window=10), change=True))
                client.execute_command(*sound)
                client.flushall()
    finally:
        server.kill()


# -- processes -------------------------------------------------------------------------------


@dataclass
class Done:
    returncode: int
    stderr: str


def command(*arguments: object, **settings: str) -> Done:
    """`serve` in a process of its own, others in this one."""
    words = list(map(str, arguments))
    given = {f"TIM4REC_{name.upper()}": value for name, value in settings.items()}
    if words[0] != "serve":
        result = CliRunner().invoke(app, words, env=given)
        return Done(result.exit_code, result.stderr)
    with NamedTemporaryFile() as file:
        output = Path(file.name)
        code = Forked(words, os.environ | given, output).wait(LONG_S)
        return Done(code, output.read_text())


def differs(done: Done, *told: str) -> None:
    assert done.returncode == 3, done.stderr
    lines = [line for line in done.stderr.splitlines() if not line.startswith("{")]
    lines = [line for line in lines if ", times from " not in line]  # of the log that was read
    assert len(lines) == 1, done.stderr
    assert lines[0].startswith("error: store ")
    assert all(part in lines[0] for part in told), lines[0]
    logged = [json.loads(line) for line in done.stderr.splitlines() if line.startswith("{")]
    assert [record for record in logged if record["level"] != "INFO"] == []


@pytest.fixture(params=["redis", "data_dir"])
def where(request: pytest.FixtureRequest, folder: Path) -> dict[str, str]:
    """A store of one's own, or an embedded one."""
    if request.param == "redis":
        valkey: ValkeyServer = request.getfixturevalue("durable_valkey")
        return {"redis_url": valkey.url}
    return {"data_dir": str(folder / "state")}


@pytest.mark.slow
def test_the_commands_compare(
    artefact_folder: Path, log: Path, where: dict[str, str], caplog: pytest.LogCaptureFixture
) -> None:
    serve = ("serve", artefact_folder, "--port", free_port(), "--workers", 2)
    done = command("import-log", log, kinds="*:step", **where)
    assert done.returncode == 0, done.stderr
    told = "dedup_window is '10' here and '1000' there"
    differs(command("import-log", log, dedup_window="10", **where), told)
    differs(command("warm", artefact_folder, dedup_window="10", **where), told)
    differs(
        command(*serve, dedup_window="10", kinds="*:log", **where),
        told, "kinds is '*:log' here and '*:step' there",
    )  # fmt: skip
    with caplog.at_level(logging.WARNING):
        done = command("import-log", log, dedup_window="10", change_shared_settings="true", **where)
    assert done.returncode == 0, done.stderr
    assert "shared settings changed: dedup_window from '1000' to '10'" in caplog.text
    differs(command("warm", artefact_folder, **where), "dedup_window is '1000' here")
    assert command("warm", artefact_folder, dedup_window="10", **where).returncode == 0
    # It clamps late events whatever services do, and does not say what they are to do.
    done = command("import-log", log, dedup_window="10", late_policy="reject", **where)
    assert done.returncode == 0, done.stderr


@pytest.fixture
def services(artefact_folder: Path, folder: Path) -> Iterator[Callable[..., Service]]:
    started: list[Service] = []

    def start(*arguments: str, **settings: object) -> Service:
        started.append(
            Service(artefact_folder, folder / f"out{len(started)}", *arguments, **settings)
        )
        started[-1].start()
        return started[-1]

    yield start
    for service in started:
        service.kill()


@pytest.mark.slow
def test_a_rolling_change(services: Callable[..., Service], valkey: ValkeyServer) -> None:
    """The first new process brings the new value; old ones serve on, with all their workers."""
    old = services("--workers", "2", redis_url=valkey.url)
    assert noted(valkey) == shared()
    new = services(redis_url=valkey.url, dedup_window=100, change_shared_settings=True)
    assert noted(valkey) == shared(dedup_window=100)
    (warning,) = new.logged(level="WARNING", logger="service.store.shared_settings")
    assert "dedup_window from '1000' to '100'" in warning["message"]
    services(redis_url=valkey.url, dedup_window=100)
    worker = old.logged(logger="service.app")[0]["pid"]
    os.kill(worker, 9)
    until(lambda: len(old.logged(logger="service.app")) == 3, "no worker in its place")
    for service in (old, new):
        answer = httpx.get(f"{service.url}/readyz")
        assert answer.json()["status"] == "ready"
        assert service.logged(level="ERROR", logger="uvicorn.error") == []


FACTORY = """
import sys, uvicorn
uvicorn.run("service.app:create_app", factory=True, log_config=None, port=int(sys.argv[1]))
"""


@pytest.mark.slow
def test_a_server_of_ones_own_compares_too(artefact_folder: Path, valkey: ValkeyServer) -> None:
    with valkey.client() as client:
        client.hset(KEY, "dedup_window", "10")
    environment = os.environ | {
        "TIM4REC_ARTEFACT": str(artefact_folder), "TIM4REC_REDIS_URL": valkey.url,
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", FACTORY, str(free_port())],
        cwd=ROOT, env=environment, capture_output=True, text=True, timeout=LONG_S,
    )  # fmt: skip
    assert done.returncode == 3, done.stderr
    errors = [r for r in map(json.loads, done.stderr.splitlines()) if r["level"] == "ERROR"]
    assert "dedup_window is '1000' here and '10' there" in errors[0]["message"]
    assert "\n" not in errors[0]["message"]
    assert [record["message"] for record in errors[1:]] == ["Application startup failed. Exiting."]


@pytest.mark.slow
def test_a_resent_event_is_there_once(
    services: Callable[..., Service], artefact_folder: Path, valkey: ValkeyServer
) -> None:
    """With windows of 1,000 and 10 half of these would be there twice."""
    service = services(redis_url=valkey.url)
    other = command(
        "serve", artefact_folder, "--port", free_port(), redis_url=valkey.url, dedup_window="10"
    )
    differs(other, "dedup_window")
    same = services(redis_url=valkey.url)
    events = [{"user_id": "u", "item_id": "a", "event_id": f"{n}"} for n in range(40)]
    for one, asked in ((service, same), (same, service)):
        answers = [httpx.post(f"{one.url}/interactions", json=event).json() for event in events]
        assert {answer["status"] for answer in answers} <= {"applied", "duplicate"}
        assert httpx.get(f"{asked.url}/users/u").json()["version"] == 40
