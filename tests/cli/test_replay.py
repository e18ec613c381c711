"""`tim4rec replay` against a real service process."""

from __future__ import annotations

import json
import signal
import time
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import TYPE_CHECKING, Any

import httpx
import pytest

from tests.cli.conftest import BASE_MS, Service, Write, serving, tim4rec
from tests.cli.test_records import contents, history, post, record
from tests.waited import LONG_S
from tim4rec_client import retries

if TYPE_CHECKING:
    from tests.service.conftest import ValkeyServer

HOUR = 3_600_000
KEY = "a-key"


@pytest.fixture(scope="module")
def service(_shared_valkey: ValkeyServer, model_folder: Path) -> Iterator[Service]:
    with _shared_valkey.client() as client:
        client.flushall()  # others may have noted their settings
    with serving(
        model_folder, _shared_valkey.url, api_keys=KEY, dedup_window="20", max_batch_events="150"
    ) as service:
        yield service


@pytest.fixture(autouse=True)
def _empty(valkey: ValkeyServer) -> None:
    """Every test begins with an empty store, whose users the service may still have in memory."""


def send_through(patch: pytest.MonkeyPatch, transport: httpx.AsyncBaseTransport) -> None:
    client = httpx.AsyncClient
    patch.setattr(httpx, "AsyncClient", lambda **o: client(**(o | {"transport": transport})))


def send(service: Service, *arguments: object) -> Any:
    return tim4rec("replay", *arguments, "--url", service.url, TIM4REC_API_KEY=KEY)


def test_a_log_arrives_whole_and_in_order_as_an_import_would_write_it(
    service: Service, valkey: ValkeyServer, write: Write
) -> None:
    users = ["ann", ".", "..", "a/history", "b{o}b %3F?#&", "ü", "x" * 256]
    rows = [row for n, user in enumerate(users) for row in history(user, 1 + 40 * n)]
    rows += [("gaps", "i0", ""), ("gaps", "i1", BASE_MS), ("gaps", "new", ""), ("old", "i1", 5000)]
    log = write(rows)
    # Small batches: each user's interactions are in several.
    result = send(service, log, "--batch", 7, "--concurrency", 3, "--any-time")
    assert result.exit_code == 0, result.output
    assert f"{len(rows) - 1:,} applied, 1 unknown_item" in result.stdout
    store = ("--redis", valkey.url, "--namespace", "import")
    imported = tim4rec("import-log", log, "--any-time", *store)
    assert imported.exit_code == 0, imported.output
    for user in [*users, "gaps", "old"]:
        events = record(valkey.url, user)
        assert [(e.item_id, e.time_ms) for e in events] == contents(valkey.url, user, "import")
        assert [e.event_id for e in events] == [f"log.csv:{n + 1}" for n in range(len(events))]


def test_sending_again_applies_nothing_twice_beyond_the_dedup_window(
    service: Service, valkey: ValkeyServer, write: Write
) -> None:
    rows = [*history("ann", 120), *history("bob", 30), *history("cy", 2)]
    split = [row for row in rows if row[0] != "ann" or rows.index(row) < 50]
    first = send(service, write(split), "--batch", 40)
    assert first.exit_code == 0, first.output
    post(valkey.url, "cy", *["i3"] * 30)  # cy's two have left the window of 20 by others' doing
    result = send(service, write(rows), "--batch", 40)
    assert result.exit_code == 0, result.output
    assert f"{len(split)} duplicate, {len(rows) - len(split)} applied" in result.stdout
    assert [e.event_id for e in record(valkey.url, "ann")] == [
        f"log.csv:{n}" for n in range(1, 121)
    ]
    assert len(record(valkey.url, "bob")) == 30
    assert len(record(valkey.url, "cy")) == 32


def test_the_first_time_nobody_is_looked_up(
    service: Service, valkey: ValkeyServer, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    asked = []

    class Noting(httpx.AsyncHTTPTransport):
        async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
            asked.append(request.url.path)
            return await super().handle_async_request(request)

    send_through(monkeypatch, Noting())
    log = write([*history("ann", 3), *history("bob", 3)])
    for count, status in ((0, "applied"), (2, "duplicate")):
        result = send(service, log, *(["--first-time"] if not count else []))
        assert f"6 {status}" in result.stdout, result.output
        users = {path for path in asked if path in ("/users/ann/history", "/users/bob/history")}
        assert len(users) == count
    assert len(record(valkey.url, "ann")) == 3


def test_another_log_under_the_same_tag_is_a_conflict(
    service: Service, valkey: ValkeyServer, write: Write
) -> None:
    rows = history("ann", 4)
    assert send(service, write(rows)).exit_code == 0
    changed = [*rows[:2], ("ann", "unknown", rows[2][2]), *rows[3:], *history("bob", 2)]
    log = write(changed)
    result = send(service, log)
    assert result.exit_code == 1
    assert "3 duplicate, 2 applied, 1 conflict" in result.stdout
    assert "user 'ann', row 3 in the user's order: item 'unknown': conflict" in result.stderr
    assert len(record(valkey.url, "ann")) == 4
    result = send(service, log, "--tag", "other")
    assert result.exit_code == 0, result.output
    assert len(record(valkey.url, "ann")) == 8


def test_kinds_go_through(service: Service, valkey: ValkeyServer, tmp_path: Path) -> None:
    log = tmp_path / "log.csv"
    head, first = "user_id,item_id,timestamp,kind,weight\n", f"ann,i1,{BASE_MS},view,2.5\n"
    log.write_text(f"{head}{first}ann,i2,{BASE_MS + 1},,\nann,i3,{BASE_MS + 2},,0\n")
    for count in ("3 applied", "3 duplicate"):
        result = send(service, log)
        assert result.exit_code == 0, result.output
        assert count in result.stdout
    found = [(event.kind, event.weight) for event in record(valkey.url, "ann")]
    assert found == [("view", 2.5), (None, None), (None, 0.0)]
    log.write_text(log.read_text().replace("view", "buy"))
    result = send(service, log)
    assert "2 duplicate, 1 conflict" in result.stdout
    assert ", kind view, weight 2.5)" in result.stderr


def test_rows_that_the_service_refuses_are_named_and_the_others_sent(
    service: Service, valkey: ValkeyServer, write: Write
) -> None:
    ahead = int(time.time() * 1000) + 10 * HOUR
    result = send(service, write([*history("ann", 3), ("ann", "i1", ahead), *history("bob", 3)]))
    assert result.exit_code == 1
    assert "6 applied, 1 future" in result.stdout
    assert "user 'ann', row 4 in the user's order: item 'i1': future" in result.stderr
    assert len(record(valkey.url, "ann")) == 3


def test_a_rate_is_kept(service: Service, write: Write) -> None:
    log = write([*history("ann", 30), *history("bob", 30)])
    started = time.monotonic()
    result = send(service, log, "--rate", 60)
    assert result.exit_code == 0, result.output
    # The last batch of 6 goes out 54 events after the first.
    assert time.monotonic() - started >= 54 / 60


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            ["--api-key", "wrong"],
            "401 Unauthorized: X-API-Key is missing or not one of this service's keys",
        ),
        (["--batch", "151"], ": interactions: at most 150 in one request, not 151"),
        (["--tag", "x" * 300], "--tag: "),
        (["--url", "http://127.0.0.1:1"], "no service answers at http://127.0.0.1:1"),
        (["--url", "127.0.0.1:1"], "no service answers at"),
        (["--url", "http://x:y"], "--url can't be read: give http://HOST:PORT"),
    ],
)
def test_what_cannot_work_is_said_in_one_line(
    service: Service, write: Write, arguments: list[str], said: str
) -> None:
    log = write([(f"u{n}", "i1", BASE_MS) for n in range(160)])
    given = {"--url": service.url, "--concurrency": "1"} | dict([arguments])
    pairs = [text for pair in given.items() for text in pair]
    result = tim4rec("replay", log, *pairs, TIM4REC_API_KEY=KEY)
    assert result.exit_code == 1
    assert said in result.stderr
    assert result.stderr.rpartition("error: ")[2].count("\n") == 1


class _Unreliable(httpx.AsyncBaseTransport):
    """Loses every third request on the way there, every fourth answer on the way back, and
    answers others with 503 and with batches that failed in part."""

    def __init__(self, gone_after: int = 10**9) -> None:
        self.real = httpx.AsyncHTTPTransport()
        self.requests, self.gone_after = 0, gone_after

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        self.requests += 1
        if request.url.path == "/readyz" and self.requests <= self.gone_after:
            return await self.real.handle_async_request(request)
        if self.requests > self.gone_after or self.requests % 3 == 0:
            raise httpx.ConnectError("lost on the way there", request=request)
        if self.requests % 5 == 0:
            return httpx.Response(503, json={"detail": "busy"})
        response = await self.real.handle_async_request(request)
        if self.requests % 4 == 0:
            await response.aread()
            raise httpx.ReadError("lost on the way back", request=request)
        return response

    async def aclose(self) -> None:
        await self.real.aclose()


def test_what_is_lost_is_sent_again_under_the_same_event_ids(
    service: Service, valkey: ValkeyServer, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    rows = [row for n in range(6) for row in history(f"u{n}", 20)]
    unreliable = _Unreliable()
    send_through(monkeypatch, unreliable)
    monkeypatch.setattr(retries, "FIRST_PAUSE_S", 0.001)
    monkeypatch.setattr(retries, "LONGEST_PAUSE_S", 0.002)
    result = send(service, write(rows), "--batch", 9, "--concurrency", 2)
    assert result.exit_code == 0, result.output
    assert unreliable.requests > 30
    for n in range(6):
        events = record(valkey.url, f"u{n}")
        assert [e.event_id for e in events] == [f"log.csv:{k}" for k in range(1, 21)]


def test_a_service_that_stays_away_is_given_up_and_the_rest_sent_the_next_time(
    service: Service, valkey: ValkeyServer, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    log = write(history("ann", 60))
    with monkeypatch.context() as patched:
        send_through(patched, _Unreliable(gone_after=9))
        patched.setattr(retries, "FIRST_PAUSE_S", 0.001)
        result = send(service, log, "--batch", 10, "--retry-for", 0.3)
    assert result.exit_code == 1
    assert "10 failed" in result.stdout
    assert " not sent" in result.stdout
    assert "given up: POST /interactions/batch: lost on the way there" in result.stderr
    assert 0 < len(record(valkey.url, "ann")) < 60
    assert send(service, log).exit_code == 0
    assert [e.event_id for e in record(valkey.url, "ann")] == [f"log.csv:{k}" for k in range(1, 61)]


class _Failing(httpx.AsyncHTTPTransport):
    """Answers for a service whose store fails for ann's interactions from the third on."""

    async def handle_async_request(self, request: httpx.Request) -> httpx.Response:
        if request.method != "POST":
            return await super().handle_async_request(request)
        rows = json.loads(request.content)["interactions"]
        fails = [r["user_id"] == "ann" and int(r["event_id"].split(":")[1]) > 2 for r in rows]
        passed = [row for row, fail in zip(rows, fails, strict=True) if not fail]
        results: Iterator[Any] = iter([])
        if passed:
            headers = {"X-API-Key": KEY}
            part = httpx.Request(
                "POST", request.url, json={"interactions": passed}, headers=headers
            )
            answer = await super().handle_async_request(part)
            results = iter(json.loads(await answer.aread())["results"])
        failed = {"status": "failed", "version": None, "timestamp": None, "detail": "no space"}
        return httpx.Response(
            200, json={"results": [failed if fail else next(results) for fail in fails]}
        )


def test_a_user_who_keeps_failing_holds_nobody_else_up(
    service: Service, valkey: ValkeyServer, write: Write, monkeypatch: pytest.MonkeyPatch
) -> None:
    send_through(monkeypatch, _Failing())
    log = write([*history("ann", 6), *history("bob", 30)])
    result = send(service, log, "--batch", 4, "--concurrency", 1, "--retry-for", 0.3)
    assert result.exit_code == 1
    assert len(record(valkey.url, "bob")) == 30
    assert len(record(valkey.url, "ann")) == 2
    assert "32 applied" in result.stdout
    assert "user 'ann', row 3 in the user's order" in result.stderr
    assert "failed (no space)" in result.stderr
    assert "4 interactions are not in the service" in result.stderr


@pytest.mark.slow
def test_a_killed_service_loses_nothing_and_doubles_nothing(
    service: Service, valkey: ValkeyServer, write: Write
) -> None:
    """kill -9 in the middle of a replay, another process in its place a moment later."""
    rows = [row for n in range(40) for row in history(f"u{n:02}", 100)]
    log = write(rows)
    with ThreadPoolExecutor(1) as thread:
        replaying = thread.submit(
            send, service, log, "--batch", 50, "--concurrency", 4, "--rate", 3000
        )
        with valkey.client() as client:
            until = time.monotonic() + LONG_S
            while int(client.hget("tim4rec:u:u00", "n") or 0) < 20:
                assert not replaying.done()
                assert time.monotonic() < until
        service.end(signal.SIGKILL)
        assert not replaying.done(), "killed too late"
        service.start()
        result = replaying.result(180)
    assert result.exit_code == 0, result.output
    for n in range(40):
        user = f"u{n:02}"
        assert contents(valkey.url, user) == [(i, t) for u, i, t in rows if u == user]
