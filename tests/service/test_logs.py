"""What a process of the service writes to standard error."""

from __future__ import annotations

import contextlib
import json
import logging
import os
import pty
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import httpx
import pytest

from model.artefact import Artefact
from service.app import create_app
from tests.service.conftest import ValkeyServer
from tests.service.processes import ROOT, Service, in_process, make_artefact
from tests.waited import LONG_S, until

ITEMS = [f"i{n}" for n in range(20)]
TRACE, SPAN = "4bf92f3577b34da6a3ce929d0e0e4736", "00f067aa0ba902b7"
PARENT = f"00-{TRACE}-{SPAN}-01"
NEW_ID = re.compile(r"[0-9a-f]{32}")


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Artefact:
    return make_artefact(tmp_path_factory.mktemp("logs") / "model", ITEMS)


# -- the two formats ---------------------------------------------------------------------

EVIL = "a\nb\r\x1b[31m\u2028\x85\x00é"
"""What no line may hold as it is, and one harmless letter."""

SCRIPT = f"""
import logging, sys, threading, warnings
from pathlib import Path
from service.observe import logs
from service.observe.request_context import RequestContext, current
from service.settings import Settings

evil = {EVIL!r}

def write():
    log = logging.getLogger("service.x")
    log.info("user %s", evil, extra={{"number": 7, "taken": evil}})
    log.debug("not at this level")
    logging.getLogger("redis").info("nor of others")
    logging.getLogger("uvicorn.error").warning("of the server")
    logging.getLogger("uvicorn.access").info("has paths in it")
    warnings.warn("old " + evil)
    current.set(RequestContext("abc.1", "{TRACE}", "{SPAN}"))
    try:
        raise ValueError("\\n2026-01-01T00:00:00.000Z INFO service.x: feigned " + evil)
    except ValueError:
        log.exception("failed")
    current.set(None)
    thread = threading.Thread(target=lambda: 1 / 0)
    thread.start()
    thread.join()
    logging.shutdown()

warnings.simplefilter("always")
logs.configure("info", "auto")
write()
logs.configure("info", "json")
write()
raise RuntimeError("at the end " + evil)
"""


@pytest.fixture(scope="module")
def written() -> list[str]:
    """The lines that the script writes to standard error, a terminal."""
    terminal, stderr = pty.openpty()
    with subprocess.Popen(
        [sys.executable, "-c", SCRIPT], stdout=subprocess.PIPE, stderr=stderr, cwd=ROOT
    ) as process:
        os.close(stderr)
        shown = b""
        # An error is how the end of a terminal looks on Linux.
        with contextlib.suppress(OSError):
            while part := os.read(terminal, 65536):
                shown += part
        os.close(terminal)
        assert process.stdout is not None
        assert process.stdout.read() == b"", "logs are no results"
    # Not split at every kind of line end: a stray one has to be seen.
    return shown.replace(b"\r\n", b"\n").decode().removesuffix("\n").split("\n")


def check_json(lines: list[str]) -> list[dict[str, Any]]:
    records = []
    for line in lines:
        assert line.isprintable()
        assert line.isascii()
        record = json.loads(line)
        at = datetime.fromisoformat(record["time"])
        assert at.utcoffset() == UTC.utcoffset(None)
        assert abs(at.timestamp() - time.time()) < 300
        assert re.fullmatch(r"....-..-..T..:..:..\.\d{3}Z", record["time"])
        assert isinstance(record["pid"], int)
        records.append(record)
    return records


def test_json_is_an_object_a_line_whatever_is_logged(written: list[str]) -> None:
    first = next(place for place, line in enumerate(written) if line.startswith("{"))
    records = check_json(written[first:])
    assert len(records) == 6
    user, server, warned, failed, thread, last = records
    assert (user["level"], user["logger"], user["message"]) == (
        "INFO", "service.x", f"user {EVIL}",
    )  # fmt: skip
    assert (user["number"], user["taken"]) == (7, EVIL)
    assert "request_id" not in user
    assert (server["level"], server["logger"]) == ("WARNING", "uvicorn.error")
    assert warned["logger"] == "py.warnings"
    assert EVIL in warned["message"]
    ids = (failed["request_id"], failed["trace_id"], failed["span_id"])
    assert ids == ("abc.1", TRACE, SPAN)
    assert failed["exception"].startswith("Traceback (most recent call last)")
    assert failed["exception"].endswith(EVIL)
    assert "ZeroDivisionError" in thread["exception"]
    assert (last["level"], last["message"]) == ("CRITICAL", "uncaught")
    assert last["exception"].endswith(f"RuntimeError: at the end {EVIL}")


def test_text_is_for_terminals_and_no_line_of_it_can_be_feigned(written: list[str]) -> None:
    text = [line for line in written if not line.startswith("{")]
    assert all(line.isprintable() for line in text)
    own = re.compile(r"....-..-..T..:..:..\.\d{3}Z [A-Z]+ [\w.]+: .*")
    heads = [line for line in text if own.fullmatch(line)]
    assert len(heads) == 5
    assert all(line.startswith("  ") for line in text if line not in heads)
    assert heads[0].endswith(r"Z INFO service.x: user a\nb\r\x1b[31m\x2028\x85\x00é")
    assert heads[3].endswith("ERROR service.x: failed [abc.1]")


# -- requests of a running service -------------------------------------------------------

FAILING = """
import sys
from service import server
from service.app import create_app

def with_a_fault(settings):
    app = create_app(settings)
    @app.api.get("/fault/{user_id}")
    async def fault(user_id: str) -> None:
        raise RuntimeError("a fault of ours")
    return app

server._app = with_a_fault
sys.argv[0] = "tim4rec"
from cli.main import app
app()
"""


class FailingService(Service):
    """`tim4rec serve` in one process, with a route more, whose handler raises."""

    def __init__(self, *arguments: Any, **settings: Any) -> None:
        super().__init__(*arguments, fresh=True, **settings)
        self._command = [sys.executable, "-c", FAILING, *self._command[3:]]


@pytest.fixture(scope="module")
def service(artefact: Artefact) -> Iterator[Service]:
    folder = Path(tempfile.mkdtemp(prefix="tim4rec-"))
    store = ValkeyServer(folder)
    store.start()
    with store.client() as client:
        client.config_set("requirepass", "hunter2")
    running = FailingService(
        artefact.folder,
        folder / "output",
        redis_url=store.url.replace("://", "://:hunter2@"),
        api_keys="hunter3",
        log_requests="all",
    )
    try:
        running.start()
        yield running
    finally:
        running.kill()
        store.kill()
        shutil.rmtree(folder)


@pytest.fixture
def client(service: Service) -> Iterator[httpx.Client]:
    with service.client(headers={"X-API-Key": "hunter3"}) as client:
        yield client


def logged(service: Service, **fields: object) -> dict[str, Any]:
    """The record with these fields, once it is written."""
    until(lambda: service.logged(**fields), f"no record with {fields}")
    (record,) = service.logged(**fields)
    return record


def test_a_request_has_the_id_it_was_sent_with(service: Service, client: httpx.Client) -> None:
    own = "A-b_c.9" * 18
    body = {"user_id": "ann", "item_id": "i1"}
    answer = client.post(
        "/interactions", json=body, headers={"X-Request-ID": own, "traceparent": PARENT}
    )
    assert answer.status_code == 200
    assert answer.headers.get_list("X-Request-ID") == [own]
    record = logged(service, request_id=own)
    assert (record["method"], record["route"], record["status"]) == ("POST", "/interactions", 200)
    assert (record["trace_id"], record["span_id"]) == (TRACE, SPAN)
    assert record["level"] == "INFO"
    stages = record["stages_ms"]
    assert {"log", "http"} <= stages.keys()
    assert sum(stages.values()) == pytest.approx(record["duration_ms"], abs=0.01)


@pytest.mark.parametrize("sent", ["", "a" * 129, "a b", "a\tb", 'a"b', "é"])
def test_another_id_is_replaced(service: Service, client: httpx.Client, sent: str) -> None:
    answers = [
        client.get("/livez", headers={"X-Request-ID": sent.encode("latin-1")}) for _ in range(2)
    ]
    ids = [answer.headers["X-Request-ID"] for answer in answers]
    assert all(NEW_ID.fullmatch(given) for given in ids)
    assert len(set(ids)) == 2
    assert logged(service, request_id=ids[1])["route"] == "/livez"


@pytest.mark.parametrize(
    "parent",
    [
        f"ff-{TRACE}-{SPAN}-01",
        f"00-{'0' * 32}-{SPAN}-01",
        f"00-{TRACE}-{'0' * 16}-01",
        f"00-{TRACE}-{SPAN}-01-more",
        f"00-{TRACE.upper()}-{SPAN}-01",
        "nonsense",
    ],
)
def test_a_parent_that_is_none(service: Service, client: httpx.Client, parent: str) -> None:
    answer = client.get("/livez", headers={"traceparent": parent})
    record = logged(service, request_id=answer.headers["X-Request-ID"])
    assert "trace_id" not in record


def test_a_parent_of_a_later_version(service: Service, client: httpx.Client) -> None:
    answer = client.get("/livez", headers={"traceparent": f"01-{TRACE}-{SPAN}-01-more"})
    assert logged(service, request_id=answer.headers["X-Request-ID"])["trace_id"] == TRACE


@pytest.mark.parametrize(
    ("path", "status", "route"),
    [
        ("/recommend?user_id=ann&k=0", 422, "/recommend"),
        ("/users/nobody", 404, "/users/{user_id}"),
        ("/nowhere", 404, "unmatched"),
        ("/fault/nobody", 500, "/fault/{user_id}"),
    ],
)
def test_problems_carry_the_id(
    service: Service, client: httpx.Client, path: str, status: int, route: str
) -> None:
    answer = client.get(path, headers={"X-Request-ID": f"problem.{status}.{len(path)}"})
    assert answer.status_code == status
    problem = answer.json()
    assert problem["request_id"] == f"problem.{status}.{len(path)}"
    assert answer.headers.get_list("X-Request-ID") == [problem["request_id"]]
    record = logged(service, request_id=problem["request_id"], status=status)
    assert (record["route"], record["level"]) == (route, "WARNING" if status == 500 else "INFO")


def test_a_fault_is_logged_with_its_request_in_one_line(
    service: Service, client: httpx.Client
) -> None:
    client.get("/fault/nobody", headers={"X-Request-ID": "fault", "traceparent": PARENT})
    record = logged(service, request_id="fault", level="ERROR")
    assert "a fault of ours" in record["exception"]
    assert record["trace_id"] == TRACE


def test_nobody_and_no_secret_is_named(service: Service, client: httpx.Client) -> None:
    who = "vincent.van.gogh"
    client.post("/interactions", json={"user_id": who, "item_id": "i1"})
    client.get("/recommend", params={"user_id": who})
    for path in (f"/users/{who}", f"/users/{who}/history", f"/nowhere/{who}", f"/fault/{who}"):
        client.get(path)
    last = client.delete(f"/users/{who}")
    assert last.status_code == 200
    logged(service, request_id=last.headers["X-Request-ID"])
    assert who not in service.said()
    assert "hunter" not in service.said()


def test_the_settings_are_told_at_the_start(service: Service, client: httpx.Client) -> None:
    (record,) = [record for record in service.logged() if "settings" in record]
    changed = ["artefact", "port", "redis_url", "store_timeout_s", "api_keys", "log_requests"]
    assert record["changed"] == changed
    assert record["settings"]["max_batch"] == 128
    assert record["settings"]["api_keys"] == "1 hidden"
    assert record["message"].startswith("settings: artefact=")
    assert "log_requests=all" in record["message"]
    assert "max_batch" not in record["message"]


@pytest.mark.parametrize(
    ("log_requests", "statuses"), [("all", [200, 404, 503, 503]), ("errors", [503]), ("none", [])]
)
def test_which_requests_are_logged(
    artefact: Artefact,
    store_url: str,
    valkey: ValkeyServer,
    run: Any,
    caplog: pytest.LogCaptureFixture,
    log_requests: str,
    statuses: list[int],
) -> None:
    caplog.set_level(logging.INFO, "service.http.observer")
    with valkey.client() as store:  # a record that can't be read
        store.hset("tim4rec:u:damaged", mapping={"n": "1", "e1": "nonsense"})

    async def ask() -> None:
        async with in_process(artefact.folder, store_url, log_requests=log_requests) as client:
            assert (await client.get("/livez")).status_code == 200
            assert (await client.get("/nowhere")).status_code == 404
            answer = await client.get("/recommend", params={"user_id": "damaged"})
            assert answer.status_code == 503, answer.text
            client._transport.app.api.state.drain.begun = True
            assert (await client.get("/readyz")).status_code == 503  # a probe

    run(ask())
    found = [record for record in caplog.records if record.name == "service.http.observer"]
    assert [getattr(record, "status", None) for record in found] == statuses


# -- another server ----------------------------------------------------------------------


def test_the_factory_refuses_wrong_settings_in_one_line(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setenv("TIM4REC_ARTEFACT", "a")
    monkeypatch.setenv("TIM4REC_MAX_BACH", "1")
    with pytest.raises(SystemExit) as end:
        create_app()
    assert end.value.code == 3  # uvicorn starts no other worker then
    assert capsys.readouterr() == (
        "", "error: TIM4REC_MAX_BACH is no setting: did you mean TIM4REC_MAX_BATCH?\n",
    )  # fmt: skip


@pytest.mark.slow
def test_the_factory_configures_logging(artefact: Artefact, store_url: str, tmp_path: Path) -> None:
    output = tmp_path / "output"
    environment = {k: v for k, v in os.environ.items() if not k.startswith("TIM4REC_")} | {
        "TIM4REC_ARTEFACT": str(artefact.folder),
        "TIM4REC_REDIS_URL": store_url,
        "TIM4REC_LOG_LEVEL": "debug",
    }
    with output.open("wb") as file:
        process = subprocess.Popen(
            [sys.executable, "-m", "uvicorn", "service.app:create_app", "--factory", "--port", "0"],
            env=environment,
            cwd=ROOT,
            stdout=file,
            stderr=subprocess.STDOUT,
        )
    try:
        until(lambda: "Uvicorn running" in output.read_text() or process.poll() is not None)
        assert process.poll() is None, output.read_text()
    finally:
        process.terminate()
        process.wait(timeout=LONG_S)
    lines = output.read_text().splitlines()
    messages = [record["message"] for record in check_json(lines)]
    assert any(message.startswith("serving model") for message in messages)
    assert any(message.startswith("Uvicorn running") for message in messages)
