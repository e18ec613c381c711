"""No secret is told: whatever is in it, wherever it is given, and whatever goes wrong with it."""

from __future__ import annotations

import base64
import socketserver
import threading
import traceback
from collections.abc import Iterator
from pathlib import Path
from urllib.parse import quote, quote_plus

import psutil
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from typer.testing import CliRunner

from cli.console import CommandError
from cli.distributed import _apart
from cli.main import app
from cli.service_url import ServiceUrl
from service.environment import SettingsError, read_settings
from service.store.url import StoreUrl, UrlError
from tests.depth import examples
from tests.ports import free_port
from tests.service.conftest import ValkeyServer
from tests.service.processes import Service, make_artefact
from tests.waited import until
from tim4rec_client import Client

ODD = ["/", "#", "?", ":", "@", "%", "[", "]", " ", "é", "\\", "%2", ",", "&a=", "://"]
FIRST, LAST = "kRx7QzWp", "Jm3TvHb9"
"""Around each of ODD, so that it is found whole, in part, and in any spelling."""


def marked(odd: str) -> str:
    return FIRST + odd + LAST


def secret_in(text: str) -> str | None:
    """A part of a secret in a text: six of its characters in a row, as they are or in base64."""
    spelt = [FIRST, LAST]
    spelt += [base64.b64encode(part.encode()).decode().rstrip("=") for part in spelt]
    for part in spelt:
        for start in range(len(part) - 5):
            if part[start : start + 6] in text:
                return part[start : start + 6]
    return None


def untold(text: str) -> None:
    found = secret_in(text)
    assert found is None, f"{found} in {text}"


@pytest.fixture(scope="module")
def files(tmp_path_factory: pytest.TempPathFactory) -> Path:
    folder = tmp_path_factory.mktemp("secrets")
    make_artefact(folder / "model", ["a", "b"])
    (folder / "log.csv").write_text("user_id,item_id,timestamp\nann,a,1700000000\n")
    (folder / "items.csv").write_text("item_id,title\na,A\n")
    return folder


@pytest.fixture(scope="module")
def guarded(folder_of_module: Path) -> Iterator[str]:
    """Where a store is that wants another password."""
    port = free_port()
    server = ValkeyServer(folder_of_module, "--port", str(port))
    server.start()
    with server.client() as client:
        client.config_set("requirepass", "another")
    yield f"127.0.0.1:{port}"
    server.kill()


def told(*arguments: object, **environment: str) -> str:
    """All that a command which fails has printed."""
    words = list(map(str, arguments))
    result = CliRunner().invoke(app, words, env=environment)
    assert result.exit_code not in (0, None), result.output
    assert isinstance(result.exception, SystemExit), repr(result.exception)
    return result.output


# -- URLs are read in one way, or not at all ---------------------------------------------------

SECRETS = st.text(st.characters(codec="utf-8"), min_size=1, max_size=20)


@settings(max_examples=examples(300), deadline=None)
@given(user=SECRETS, password=SECRETS, encoded=st.booleans())
def test_a_url_is_shown_without_its_login(user: str, password: str, encoded: bool) -> None:
    login = (
        f"{quote(user, safe='')}:{quote(password, safe='')}" if encoded else f"{user}:{password}"
    )
    store, said = None, ""
    try:
        store = StoreUrl(f"redis://{login}@store:7000/3")
    except UrlError as error:
        said = str(error)
    if store is None:
        assert not encoded
        assert said.startswith("the store URL can't be read; give redis://USER:PASSWORD@")
    else:
        assert store.shown == "redis://store:7000/3"
        ((_, options),) = store.hosts
        assert (options["host"], options["port"], options["db"]) == ("store", 7000, 3)
        if encoded:
            assert (options["username"], options["password"]) == (user, password)

    service, said = None, ""
    try:
        service = ServiceUrl.parse(f"https://{login}@service:7000/below")
    except CommandError as error:
        said = str(error)
    if service is None:
        assert not encoded
        assert said.startswith("--url can't be read: give http")
    else:
        assert service.base == "https://service:7000/below"
        if encoded:
            assert service.login == (user, password)


@pytest.mark.parametrize(
    ("url", "shown"),
    [
        ("redis://store", "redis://store"),
        ("rediss://u:p@[::1]:7000/2?ssl_ca_certs=/x.pem", "rediss://[::1]:7000/2"),
        ("redis://:p@a:1,b:2", "redis://a:1,b:2"),
        ("unix:///tmp/a@b/s?db=2", "unix:///tmp/a@b/s"),
        ("unix://u:p@/tmp/s", "unix:///tmp/s"),
    ],
)
def test_a_url_that_can_be_read(url: str, shown: str) -> None:
    assert StoreUrl(url).shown == shown


@pytest.mark.parametrize(
    "url",
    [
        "", "store:6379", "http://store", "redis://store:port", "redis://store:65536",
        "redis://store/zero", "redis://st\nore", "redis://[::1", "redis://[::g]",
        "redis://store?db=one", "redis://store?nonsense=1", "redis://store?db", "unix://store/s",
        "redis://:12/34@store", "redis://u:12?db=3@store", "unix://u:p/q@/s",
    ],
)  # fmt: skip
def test_a_url_that_cannot_be_read(url: str) -> None:
    with pytest.raises(UrlError, match=r"store URL .*can't be read"):
        StoreUrl(url)


# -- commands ------------------------------------------------------------------------------------

STORE_COMMANDS = {
    "serve": ("serve", "model", "--port"), "import-log": ("import-log", "log.csv"),
    "import-items": ("import-items", "items.csv"), "warm": ("warm", "model"),
}  # fmt: skip


@pytest.mark.slow
@pytest.mark.parametrize("name", STORE_COMMANDS)
def test_the_login_of_the_store(
    files: Path, guarded: str, name: str, monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
) -> None:  # fmt: skip
    monkeypatch.chdir(files)
    command = list(STORE_COMMANDS[name])
    if name == "serve":
        command.append(str(free_port()))
    away = f"127.0.0.1:{free_port()}"
    for odd in ODD:
        secret, encoded = marked(odd), quote(marked(odd), safe="")
        logins = [f"{secret}:{secret}", f":{encoded}", f"{encoded}:{encoded}"]
        for login, host in zip(logins, (away, guarded, guarded), strict=True):
            said = told(*command, TIM4REC_REDIS_URL=f"redis://{login}@{host}/0")
            untold(said)
            lines = [line for line in said.splitlines() if ", times from " not in line]
            assert len(lines) == said.count("error: ") == 1, said
        assert "invalid username-password" in said
        untold(told(*command, "--redis", f"redis://{host}/0?password={secret}"))
        untold(told(*command, "--redis", f"unix://:{secret}@/nowhere"))
        untold(told(*command, "--redis", f"redis://{FIRST}", f"{odd}{LAST}@{host}"))
    wrong = ["--redis", f"redis://:{marked('/')}@{away}"]
    result = CliRunner().invoke(app, ["--traceback", *command, *wrong])
    assert result.exception is not None
    untold("".join(traceback.format_exception(result.exception)))
    untold(caplog.text)


class _Repeats(socketserver.StreamRequestHandler):
    """Refuses every command, and repeats it."""

    def handle(self) -> None:
        while head := self.rfile.readline():
            words = []
            for _ in range(int(head[1:])):
                length = int(self.rfile.readline()[1:])
                words.append(self.rfile.read(length + 2)[:-2])
            name, *arguments = words
            repeated = b" ".join(b"'%s'" % word for word in arguments)
            line = b"-ERR unknown command '%s', with args beginning with: %s\r\n"
            self.wfile.write(line % (name, repeated))


@pytest.mark.parametrize("odd", ODD)
def test_a_server_that_repeats_what_it_refuses(files: Path, odd: str) -> None:
    login = f"{quote(marked(odd), safe='')}:{quote(marked(odd), safe='')}"
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), _Repeats) as server:
        server.daemon_threads = True
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        try:
            url = f"redis://{login}@127.0.0.1:{server.server_address[1]}"
            said = told("import-log", files / "log.csv", "--redis", url)
            untold(said)
            assert "unknown command 'AUTH'" in said
        finally:
            server.shutdown()


@pytest.mark.parametrize("command", ["health", "replay", "evaluate"])
def test_the_login_of_what_stands_before_a_service(
    files: Path, command: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    arguments = {
        "health": ["health"], "replay": ["replay", "log.csv", "--retry-for", 0],
        "evaluate": ["evaluate", "model", "log.csv", "--core", 1, "--mode", "service"],
    }[command]  # fmt: skip
    port = free_port()
    for odd in ODD if command != "evaluate" else ODD[:3]:
        for secret in (marked(odd), quote(marked(odd), safe="")):
            said = told(*arguments, "--url", f"http://{secret}:{secret}@127.0.0.1:{port}/")
            untold(said)
            assert "Traceback" not in said


@pytest.mark.parametrize("odd", [*ODD, "\r", "\n", "\t", "\x1b"])
def test_the_key_that_a_command_shows(
    files: Path, odd: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(files)
    nobody = ("--url", f"http://127.0.0.1:{free_port()}")
    said = told("replay", "log.csv", "--retry-for", 0, *nobody, TIM4REC_API_KEY=marked(odd))
    untold(said)
    assert ("a control character" in said) == (odd < " "), said
    untold(told("replay", "log.csv", "--retry-for", 0, *nobody, "--api-key", f"{marked(odd)}\r\n"))


@pytest.mark.parametrize("odd", ODD)
def test_the_clients(odd: str) -> None:
    for url in (f"http://:{marked(odd)}@127.0.0.1:1", f"http://{marked(odd)}"):
        try:
            Client(url)
        except ValueError as error:
            untold(str(error))
    with pytest.raises(ValueError, match="control character") as raised:
        Client("http://127.0.0.1:1", api_key=f"{marked(odd)}\nX")
    untold(str(raised.value))
    Client("http://127.0.0.1:1", api_key=f" {marked(odd)}\n").close()


def test_what_is_not_expected_is_not_repeated() -> None:
    untold(told("health", f"http://u:{marked('/')}@h"))
    untold(told("import-log", f"redis://:{marked('/')}@h"))
    untold(told("warm", "a", f"--redi=redis://:{marked('/')}@h"))


def test_tasks_on_other_machines_get_the_url_by_their_environment() -> None:
    command = ["import-log", "l.csv", "--redis", "redis://:p@h", "--onto-existing"]
    assert _apart(command) == (["import-log", "l.csv", "--onto-existing"], "redis://:p@h")
    assert _apart(["warm", "--redis=redis://:p@h"]) == (["warm"], "redis://:p@h")
    assert _apart(["warm", "a"]) == (["warm", "a"], None)


# -- settings ------------------------------------------------------------------------------------


@pytest.mark.parametrize("odd", ODD)
def test_settings_that_are_refused(
    odd: str, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    keys = tmp_path / "keys"
    keys.write_bytes(f"{marked(odd)}\n".encode() + b"\xff\n")
    given = {
        "api_keys": marked(odd), "admin_keys": marked(odd), "api_keys_file": str(keys),
        "redis_url": f"redis://:{marked(odd)}@h", "max_batch": "0", "tracing": "true",
    }  # fmt: skip
    for name, value in given.items():
        monkeypatch.setenv(f"TIM4REC_{name.upper()}", value)
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", f"authorization=Bearer {marked(odd)};\x01")
    for arguments in ({"artefact": "a"}, {"artefact": "a"} | given):
        with pytest.raises(SettingsError) as raised:
            read_settings(arguments)
        untold(str(raised.value))
        assert "OTEL_EXPORTER_OTLP_HEADERS can't be read" in str(raised.value)
    monkeypatch.delenv("OTEL_EXPORTER_OTLP_HEADERS")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_ENDPOINT", f"http://u:{marked('/')}@h:4318")
    with pytest.raises(SettingsError, match="OTEL_EXPORTER_OTLP_ENDPOINT can't be read") as raised:
        read_settings({"artefact": "a"})
    untold(str(raised.value))


def test_headers_of_traces_that_can_be_read(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_HEADERS", "a=b, authorization=Bearer%20x,api-key=y= ,")
    monkeypatch.setenv("OTEL_EXPORTER_OTLP_TRACES_ENDPOINT", "https://u:p%2Fq@h:4318/v1/traces")
    assert read_settings({"artefact": "a", "tracing": True}).tracing


# -- a service -------------------------------------------------------------------------------------


@pytest.mark.slow
@pytest.mark.parametrize("embedded", [False, True])
def test_a_running_service(files: Path, folder: Path, embedded: bool) -> None:
    """Its answers, its log and the arguments of its processes; also when the store goes away."""
    secrets = [marked(odd) for odd in ODD if odd not in (",", "://")]
    password = "".join(ODD) + marked("/")
    (folder / "store").mkdir()
    port = free_port()
    store = ValkeyServer(folder / "store", "--port", str(port))
    store.start()
    with store.client() as client:
        client.execute_command("ACL", "SETUSER", marked("/"), "on", "~*", "+@all", f">{password}")
    keys = folder / "keys"
    keys.write_text("\n".join(secrets), encoding="utf-8")
    login = f"{quote(marked('/'), safe='')}:{quote(password, safe='')}"
    where = (
        {"data_dir": folder / "state"} if embedded
        else {"redis_url": f"redis://{login}@127.0.0.1:{port}"}
    )  # fmt: skip
    service = Service(
        files / "model", folder / "out", "--workers", "2", api_keys=",".join(secrets),
        api_keys_file=keys, admin_keys=",".join(secrets), admin_keys_file=keys, log_level="debug",
        log_requests="all", tracing=True, fresh=not embedded, models_dir=files, store_timeout_s=1,
        OTEL_EXPORTER_OTLP_ENDPOINT=f"http://{login}@127.0.0.1:{free_port()}",
        OTEL_EXPORTER_OTLP_HEADERS=f"authorization={quote(marked('/'))},x={quote(marked('@'))}",
        **where,
    )  # fmt: skip
    try:
        service.start()
        assert service.process is not None
        with service.client() as http:
            for key in (None, *secrets):
                headers = {} if key is None else {"X-API-Key": key.encode()}
                for path in (
                    "/metrics", "/readyz", "/livez", "/openapi.json", "/admin/model", "/nowhere",
                    "/recommend?user_id=u", f"/recommend?user_id={quote_plus('u')}&k=none",
                ):  # fmt: skip
                    answer = http.get(path, headers=headers)
                    assert answer.status_code != 500
                    untold(answer.text + str(answer.headers))
            good = {"X-API-Key": secrets[0].encode()}
            assert http.get("/users/u", headers=good).status_code == 404
            main = psutil.Process(service.process.pid)
            processes = [main, *main.children(recursive=True)]
            if embedded:
                pid = int((folder / "state" / "valkey.pid").read_text())
                processes.append(psutil.Process(pid))
            untold(" ".join(word for process in processes for word in process.cmdline()))
            if not embedded:
                store.kill()
                body = {"user_id": "u", "item_id": "a"}
                answer = http.post("/interactions", json=body, headers=good)
                assert answer.status_code == 503
                untold(answer.text)
        assert service.stop() == 0
    finally:
        service.kill()
        if store.lives:
            store.kill()
    until(lambda: "stopping" in service.said(), "it has not said that it stops")
    untold(service.said())
    (line,) = [r for r in service.logged() if r["message"].startswith("settings: ")]
    assert ("redis_url=redis://127.0.0.1:" in line["message"]) is not embedded
