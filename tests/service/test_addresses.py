"""Where a service listens: addresses of either family, all of them, and names."""

from __future__ import annotations

import os
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import httpx
import pytest
from typer.testing import CliRunner

from cli import run
from cli.main import app
from cli.service_url import service_url
from service.listeners import AddressError, bound
from tests.ports import free_port
from tests.service.processes import ROOT, Service, make_artefact
from tests.waited import LONG_S, until


def _has_ipv6() -> bool:
    try:
        with socket.create_server(("::1", 0), family=socket.AF_INET6):
            return True
    except OSError:
        return False


needs_ipv6 = pytest.mark.skipif(not _has_ipv6(), reason="needs IPv6")


@pytest.fixture(scope="module")
def artefact_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artefact(tmp_path_factory.mktemp("addresses") / "model", ["a", "b"]).folder


@pytest.fixture
def start(artefact_folder: Path, folder: Path, store_url: str) -> Iterator[Callable[..., Service]]:
    started: list[Service] = []

    def begin(base: str, *arguments: str, **settings: object) -> Service:
        service = Service(
            artefact_folder,
            folder / "out",
            *arguments,
            "--redis",
            store_url,
            **{"allow_open": "true"} | settings,
        )
        service.url = f"{base}:{service.port}"
        started.append(service)
        service.start()
        return service

    yield begin
    for service in started:
        service.kill()


def health(**environment: object) -> subprocess.CompletedProcess[str]:
    given = {f"TIM4REC_{name.upper()}": str(value) for name, value in environment.items()}
    return subprocess.run(
        [sys.executable, "-m", "cli.main", "health"],
        cwd=ROOT, env=os.environ | given, capture_output=True, text=True, timeout=LONG_S,
    )  # fmt: skip


def answers(base: str, port: int, path: str = "/livez") -> int:
    """The status; 0: nobody listens there."""
    try:
        return httpx.get(f"{base}:{port}{path}", timeout=LONG_S).status_code
    except httpx.ConnectError:
        return 0


@pytest.mark.slow
@needs_ipv6
def test_an_address_of_ipv6(start: Callable[..., Service]) -> None:
    operations = free_port()
    service = start("http://[::1]", "--host", "[::1]", "--workers", "2", operations_port=operations)
    body = {"user_id": "u", "item_id": "a"}
    assert httpx.post(f"{service.url}/interactions", json=body).status_code == 200
    assert answers("http://[::1]", service.port, "/metrics") == 404
    assert answers("http://[::1]", operations, "/metrics") == 200
    assert answers("http://[::1]", operations, "/recommend?user_id=u") == 404
    assert answers("http://127.0.0.1", service.port) == 0
    until(lambda: len(service.printed()) >= 5, "it has not said where it is")
    assert service.printed()[0] == f"Ready on http://[::1]:{service.port}. Paste any of these:"
    done = health(host="::1", port=service.port, operations_port=operations)
    assert done.stdout == f"http://[::1]:{operations}/readyz: 200 ready\n", done.stderr
    assert service.stop() == 0


@pytest.mark.slow
@needs_ipv6
def test_all_addresses_of_both_families(start: Callable[..., Service]) -> None:
    service = start("http://127.0.0.1", "--host", "::")
    assert answers("http://127.0.0.1", service.port) == 200
    assert answers("http://[::1]", service.port) == 200
    until(lambda: len(service.printed()) >= 5, "it has not said where it is")
    assert service.printed()[0] == f"Ready on http://[::1]:{service.port}. Paste any of these:"
    done = health(host="::", port=service.port)
    assert done.stdout == f"http://[::1]:{service.port}/readyz: 200 ready\n", done.stderr


@pytest.mark.slow
def test_a_name(start: Callable[..., Service]) -> None:
    service = start("http://localhost", "--host", "localhost")
    found = socket.getaddrinfo("localhost", service.port, type=socket.SOCK_STREAM)
    for base in {"http://127.0.0.1", *(["http://[::1]"] if _has_ipv6() else [])}:
        named = any(base.removeprefix("http://").strip("[]") == address[4][0] for address in found)
        assert answers(base, service.port) == (200 if named else 0)
    done = health(host="localhost", port=service.port)
    assert done.stdout == f"http://localhost:{service.port}/readyz: 200 ready\n", done.stderr


@pytest.mark.parametrize(
    ("host", "part"),
    [
        ("192.0.2.1", "host 192.0.2.1: no address of this machine"),
        ("2001:db8::1", "host 2001:db8::1: no address of this machine"),
        ("nowhere.invalid", "host nowhere.invalid: neither an address nor a name that is known"),
        ("127.0.0.1:8000", "host 127.0.0.1:8000: neither an address nor a name"),
        ("http://127.0.0.1", "neither an address nor a name"),
        ("::g", "neither an address nor a name"),
        ("x" * 300, "neither an address nor a name"),
    ],
)
def test_what_is_no_address_here_is_one_line(artefact_folder: Path, host: str, part: str) -> None:
    serve = ["serve", str(artefact_folder), "--port", str(free_port()), "--host", host]
    result = CliRunner().invoke(app, serve)
    assert result.exit_code == 1
    assert result.output.startswith("error: host ")
    assert result.output.count("\n") == 1
    assert part in result.output
    assert "give 127.0.0.1, ::1, 0.0.0.0 (all of IPv4), ::" in result.output


@needs_ipv6
def test_a_port_that_is_taken_in_one_family_is_taken(artefact_folder: Path) -> None:
    for address, family, host in (
        ("::1", socket.AF_INET6, "::1"), ("127.0.0.1", socket.AF_INET, "127.0.0.1"),
        ("::1", socket.AF_INET6, "::"), ("0.0.0.0", socket.AF_INET, "::"),
    ):  # fmt: skip
        with socket.create_server((address, 0), family=family) as busy:
            port = busy.getsockname()[1]
            serve = ["serve", str(artefact_folder), "--host", host, "--port"]
            result = CliRunner().invoke(app, [*serve, str(port)])
            assert f"error: port {port} is in use" in result.output
            assert result.output.rstrip().rpartition(" ")[2].isdecimal(), "one that is free"
            operations = ["--operations-port", str(port)]
            result = CliRunner().invoke(app, [*serve, str(free_port()), *operations])
            assert f"error: port {port} is in use" in result.output
            assert "for instance: --operations-port " in result.output


def test_sockets_that_are_not_to_be_had_are_closed() -> None:
    port = free_port()
    with socket.create_server(("127.0.0.1", port)), pytest.raises(AddressError) as raised:
        bound("127.0.0.1", port)
    assert raised.value.in_use
    for listener in bound("127.0.0.1", port):
        listener.close()


@pytest.mark.parametrize(
    ("host", "url"),
    [
        ("127.0.0.1", "http://127.0.0.1:80"), ("0.0.0.0", "http://127.0.0.1:80"),
        ("::", "http://[::1]:80"), ("[::]", "http://[::1]:80"), ("0::0", "http://[::1]:80"),
        ("::1", "http://[::1]:80"), ("2001:db8::1", "http://[2001:db8::1]:80"),
        ("fe80::1%eth0", "http://[fe80::1%25eth0]:80"), ("10.0.0.5", "http://10.0.0.5:80"),
        ("box.example", "http://box.example:80"),
    ],
)  # fmt: skip
def test_where_a_service_is_asked(host: str, url: str) -> None:
    assert service_url(host, 80) == url


def test_run_hands_the_address_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "shop.csv").write_text("user_id,item_id,timestamp\nann,shoes,1714555800\n")
    seen: list[dict[str, Any]] = []
    monkeypatch.setattr(run, "served_with", lambda given, user: seen.append(given))
    monkeypatch.setattr(run, "_tim4rec", lambda *words: None)
    port = free_port()
    run.run(port=port, data=Path("shop.csv"), host="localhost")
    assert (seen[0]["port"], seen[0]["host"]) == (port, "localhost")
    monkeypatch.setenv("TIM4REC_HOST", "192.0.2.1")
    with pytest.raises(BaseException) as raised:  # noqa: PT011
        run.run(port=port, data=Path("shop.csv"))
    assert getattr(raised.value, "exit_code", None) == 1
