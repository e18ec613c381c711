"""deploy/nginx's configuration, run by nginx before servers that tell which of them was asked."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import httpx
import pytest

from benchmarks import replicas
from benchmarks.nginx import CONFIGURATION, find_nginx, nginx
from tests.benchmarks.test_load import artefact, run

__all__ = ["artefact"]

pytestmark = pytest.mark.skipif(
    find_nginx() is None, reason="needs nginx (Debian package nginx)"
)  # fmt: skip

USERS = [f"user-{n}" for n in range(40)]


@contextmanager
def replica(status: int = 200) -> Iterator[int]:
    """A server that answers every request with its own port."""

    class Handler(BaseHTTPRequestHandler):
        protocol_version = "HTTP/1.1"

        def do_GET(self) -> None:
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            body = str(self.server.server_address[1]).encode()
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        do_POST = do_DELETE = do_GET

        def log_message(self, *arguments: object) -> None:
            pass

    class Server(ThreadingHTTPServer):
        daemon_threads = True

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


@contextmanager
def front(*statuses: int, sticky: bool = True) -> Iterator[tuple[httpx.Client, list[int]]]:
    """A client of nginx before replicas that answer with these statuses, and their ports."""
    with ExitStack() as stack:
        ports = [stack.enter_context(replica(status)) for status in statuses]
        port = stack.enter_context(nginx(ports, sticky=sticky))
        yield stack.enter_context(httpx.Client(base_url=f"http://127.0.0.1:{port}")), ports


@pytest.mark.slow
def test_a_user_is_always_sent_to_the_same_replica() -> None:
    with front(200, 200, 200) as (client, ports):
        homes = []
        for user in USERS:
            named = {"X-User-Id": user}
            answers = [
                client.get("/recommend", params={"user_id": user, "k": 3}),
                client.get("/recommend", params={"user_id": "another"}, headers=named),
                client.get(f"/users/{user}"),
                client.get(f"/users/{user}/history?limit=3"),
                client.delete(f"/users/{user}"),
                client.post("/interactions", json={"user_id": user}, headers=named),
            ]
            (home,) = {int(answer.text) for answer in answers}
            homes.append(home)
        for port in ports:
            assert homes.count(port) > 4


def test_without_a_user_every_replica_is_used() -> None:
    with front(200, 200) as (client, ports):
        answers = {int(client.post("/interactions/batch", json={}).text) for _ in range(40)}
        assert answers == set(ports)


@pytest.mark.slow
def test_a_replica_more_moves_only_its_share_of_the_users() -> None:
    with ExitStack() as stack:
        ports = [stack.enter_context(replica()) for _ in range(3)]
        homes = []
        for count in (2, 3):
            port = stack.enter_context(nginx(ports[:count], sticky=True))
            with httpx.Client(base_url=f"http://127.0.0.1:{port}") as client:
                homes.append([int(client.get(f"/users/{user}").text) for user in USERS])
        moved = [after for before, after in zip(*homes, strict=True) if before != after]
        assert set(moved) == {ports[2]}
        assert len(moved) < len(USERS) * 0.7


@pytest.mark.slow
def test_a_get_goes_elsewhere_when_its_replica_is_overloaded_a_post_does_not() -> None:
    with front(503, 200) as (client, _):
        named = [{"X-User-Id": user} for user in USERS]
        gets = {client.get("/recommend", headers=header).status_code for header in named}
        posts = {client.post("/interactions", headers=header).status_code for header in named}
    assert gets == {200}
    assert posts == {200, 503}


def test_metrics_of_one_at_random_are_not_served() -> None:
    with front(200) as (client, _):
        assert client.get("/metrics").status_code == 404


@pytest.mark.slow
def test_replicas_answer_alike_and_by_user_the_pools_hold_all(
    artefact: Path, tmp_path: Path
) -> None:
    """Two real replicas, each with room for about its own half of the users only."""
    report = tmp_path / "replicas.json"
    run(replicas.main, str(artefact), "--users", "120", "--pool", "80", "--in-flight", "4",
        "--seconds", "1", "--compared", "10", "--way", "by user",
        "--json", str(report))  # fmt: skip
    (found,) = json.loads(report.read_text())["rows"]
    assert (found["failed"], found["differing"], found["compared"]) == (0, 0, 10)
    assert found["largest_difference"] < 1e-4
    assert found["hits"] == 1.0


def test_the_configuration_names_two_replicas() -> None:
    """They are what the benchmark and these tests put others in place of."""
    assert CONFIGURATION.read_text().count("server replica-") == 2
