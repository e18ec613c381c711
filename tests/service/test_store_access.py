"""Who may use the store, and over what: a user and a password in its URL, and TLS."""

from __future__ import annotations

import asyncio
import shutil
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any
from urllib.parse import quote

import pytest
import uvloop

from service.store.client import Store
from service.store.erasures import Erasures
from service.store.errors import StoreError
from service.store.event_log import EventLog, LogReply, LogRequest
from service.store.events import NewEvent, new_uid
from tests.ports import free_port
from tests.service.conftest import ClusterNode, ValkeyCluster, ValkeyServer
from tests.service.processes import Service, make_artefact

PASSWORD = "p@ss:w/rd?#% ü"
SECRETS = (PASSWORD, quote(PASSWORD, safe=""), "p@ss", "p%40ss", "not it", "not%20it")
RIGHTS = "on ~tim4rec:* +@read +@write -@dangerous +eval +evalsha +ping +time +info +client|setinfo"


@pytest.fixture
def guarded(folder: Path) -> Iterator[str]:
    """The host and port of a server on which only `svc` may do anything."""
    port = free_port()
    server = ValkeyServer(folder, "--port", str(port), "--appendonly", "yes")
    server.start()
    with server.client() as client:
        client.execute_command("ACL", "SETUSER", "svc", *RIGHTS.split(), f">{PASSWORD}")
        client.execute_command("ACL", "SETUSER", "reader", "on", "~*", "+@read", "+ping", ">r")
    yield f"127.0.0.1:{port}"
    server.kill()


def url(host: str, user: str, password: str, scheme: str = "redis") -> str:
    return f"{scheme}://{quote(user, safe='')}:{quote(password, safe='')}@{host}"


async def works(store_url: str, **options: Any) -> None:
    async with Store(store_url, **options, timeout_s=10) as store:
        await store.check()
        log = EventLog(store)
        users = [f"{number}" for number in range(12)]
        requests = [LogRequest(user, None, [NewEvent(new_uid(), "item")]) for user in users]
        for reply in await log.exchange(requests):
            assert isinstance(reply, LogReply), reply
        assert {user async for page in log.users() for user in page} == set(users)
        assert await Erasures(log).erase("1")


async def refusal(store_url: str) -> str:
    async with Store(store_url) as store:
        with pytest.raises(StoreError) as raised:
            await store.check()
        (answer,) = await EventLog(store).exchange(
            [LogRequest("u", None, [NewEvent(new_uid(), "item")])]
        )
        assert isinstance(answer, StoreError)
    said = f"{raised.value} {answer}"
    assert "\n" not in said
    return said


def test_a_user_and_a_password_in_the_url(run: Callable[..., Any], guarded: str) -> None:
    run(works(url(guarded, "svc", PASSWORD)))
    for user, password in (("svc", "not it"), ("nobody", PASSWORD)):
        said = run(refusal(url(guarded, user, password)))
        assert guarded in said
        assert "invalid username-password pair" in said
        assert "check the URL's credentials" in said
        assert not any(secret in said for secret in SECRETS)
    said = run(refusal(url(guarded, "reader", "r")))
    assert "no permissions" in said.lower()


def test_a_start_with_a_wrong_password_ends_with_a_line(
    guarded: str, artefact_folder: Path, tmp_path: Path
) -> None:
    service = Service(artefact_folder, tmp_path / "output", redis_url=url(guarded, "svc", "not it"))
    service.start(wait=False)
    assert service.process is not None
    try:
        assert service.process.wait(timeout=120) != 0
    finally:
        service.kill()
    said = service.said()
    assert f"store redis://{guarded}: invalid username-password pair" in said
    assert "check the URL's credentials" in said
    assert "Traceback" not in said
    assert not any(secret in said for secret in SECRETS)


REDIS, OPENSSL = shutil.which("redis-server"), shutil.which("openssl")
needs_tls = pytest.mark.skipif(
    REDIS is None or OPENSSL is None,
    reason="needs redis-server and openssl (Debian packages of these names)",
)


class TlsNode(ClusterNode):
    """A node that speaks TLS only: to clients, to the other nodes and to replicas."""

    binary = Path(REDIS or "")

    def __init__(self, folder: Path, *options: str) -> None:
        super().__init__(folder, *options, "--tls-cluster", "yes", "--tls-replication", "yes")
        self._options += ("--port", "0", "--tls-port", str(self.port))


@pytest.fixture(scope="module")
def tls_cluster(folder_of_module: Path) -> Iterator[ValkeyCluster]:
    assert OPENSSL is not None
    for name in ("ours", "other"):
        subprocess.run(
            [
                OPENSSL, "req", "-x509", "-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256",
                "-nodes", "-keyout", f"{name}.key", "-out", f"{name}.pem", "-days", "2",
                "-subj", "/CN=store", "-addext", "subjectAltName=IP:127.0.0.1",
            ],
            cwd=folder_of_module, check=True, capture_output=True,
        )  # fmt: skip
    files = [str(folder_of_module / name) for name in ("ours.pem", "ours.key")]
    cluster = ValkeyCluster(
        folder_of_module, "--tls-cert-file", files[0], "--tls-key-file", files[1],
        "--tls-ca-cert-file", files[0], "--tls-auth-clients", "no", kind=TlsNode,
    )  # fmt: skip
    try:
        cluster.start()
        for node in cluster.primaries:
            rights = [right for right in RIGHTS.split() if "setinfo" not in right]
            more = ("+cluster|slots", "+asking", f">{PASSWORD}")
            node.ask("ACL", "SETUSER", "svc", *rights, *more)
            node.ask("ACL", "SETUSER", "default", "off")
        yield cluster
    finally:
        cluster.kill()


def tls_url(cluster: ValkeyCluster, authority: Path) -> str:
    hosts = cluster.url.removeprefix("redis://")
    return url(hosts, "svc", PASSWORD, "rediss") + f"?ssl_ca_certs={quote(str(authority))}"


@needs_tls
@pytest.mark.parametrize("loop_factory", [None, uvloop.new_event_loop])
def test_a_cluster_over_tls(
    tls_cluster: ValkeyCluster, folder_of_module: Path, loop_factory: Any
) -> None:
    """Every node, not only the one of the URL, and each with the URL's user."""
    store_url = tls_url(tls_cluster, folder_of_module / "ours.pem")
    with asyncio.Runner(loop_factory=loop_factory) as runner:
        runner.run(works(store_url))


@pytest.mark.slow
@needs_tls
def test_a_server_of_another_authority_is_not_talked_to(
    run: Callable[..., Any], tls_cluster: ValkeyCluster, folder_of_module: Path
) -> None:
    said = run(refusal(tls_url(tls_cluster, folder_of_module / "other.pem")))
    assert "certificate verify failed" in said.lower()
    assert not any(secret in said for secret in SECRETS)


@pytest.fixture(scope="module")
def artefact_folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_artefact(tmp_path_factory.mktemp("access") / "model", ["a", "b"]).folder
