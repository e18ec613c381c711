"""The load generator against servers whose behaviour is known, and the benchmarks that use it."""

from __future__ import annotations

import asyncio
import itertools
import json
import socketserver
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import psutil
import pytest
import torch
import typer
from typer.testing import CliRunner

from benchmarks import against, http_load, service_load, step_vs_recompute, window_load
from benchmarks.http_load import closed_loop, get, open_loop
from benchmarks.running import Server
from benchmarks.window_app import Recomputing
from cli.console import CommandError
from model import ModelConfig, TiM4Rec
from model.artefact import load_artefact, save_artefact
from model.items import Items

OK = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"


class InFlight:
    """Counts the most at once."""

    def __init__(self) -> None:
        self.now = self.most = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self.now += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *error: object) -> None:
        with self._lock:
            self.now -= 1


@contextmanager
def answering(
    answer: Callable[[int], tuple[float, bytes]], in_flight: InFlight | None = None
) -> Iterator[int]:
    """A server whose nth request gets `answer(n)`: after so many seconds, these bytes (none: the
    connection is closed). Its port."""
    numbers = itertools.count()
    counting = in_flight or InFlight()

    class Handler(socketserver.StreamRequestHandler):
        def handle(self) -> None:
            while self.rfile.readline() and (line := self.rfile.readline()):
                while line.strip():
                    line = self.rfile.readline()
                with counting:
                    wait, content = answer(next(numbers))
                    time.sleep(wait)
                if not content:
                    break
                self.wfile.write(content[:20])  # in two pieces, as networks do
                self.wfile.write(content[20:])

    class Server(socketserver.ThreadingTCPServer):
        request_queue_size = 2000

    with Server(("127.0.0.1", 0), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        yield server.server_address[1]
        server.shutdown()
        thread.join()


def test_closed_loop_keeps_as_many_in_flight() -> None:
    at_once = InFlight()
    with answering(lambda _: (0.05, OK), at_once) as port:
        outcome = closed_loop(port, itertools.repeat(get("/")), in_flight=8, seconds=0.5)
    assert not outcome.failures
    assert at_once.most == 8
    assert 8 < len(outcome.latencies) <= 8 * (outcome.seconds / 0.05 + 1)
    assert min(outcome.latencies) >= 0.05


def test_closed_loop_ends_with_what_is_asked() -> None:
    with answering(lambda _: (0.0, OK)) as port:
        outcome = closed_loop(port, http_load.everyone(20), in_flight=8, seconds=60)
    assert len(outcome.latencies) == 20
    assert outcome.seconds < 30


def test_open_loop_counts_from_when_it_should_have_been_sent() -> None:
    """A server that stands still makes all late that come meanwhile, not just one."""
    begun: list[float] = []

    def stalls(_: int) -> tuple[float, bytes]:
        begun.append(time.monotonic())
        return max(0.0, begun[0] + 0.6 - time.monotonic()), OK

    with answering(stalls) as port:
        start = time.monotonic()
        outcome = open_loop(port, itertools.repeat(get("/")), rate=500, seconds=0.5)
        took_ms = 1000 * (time.monotonic() - start)
    assert len(outcome.latencies) == 250
    late = [seconds for seconds in outcome.latencies if seconds > 0.09]
    assert len(late) > 240
    assert 250 < outcome.ms(50) <= took_ms - 250  # the half that was due later waited less


@pytest.mark.slow
def test_open_loop_does_not_wait_for_the_next_tick() -> None:
    with answering(lambda _: (0.0, OK)) as port:
        for _ in range(3):
            outcome = open_loop(port, itertools.repeat(get("/")), rate=10, seconds=0.8)
            assert outcome.ms(50) < 50


def test_open_loop_does_not_slow_down_for_slow_answers() -> None:
    at_once = InFlight()
    with answering(lambda _: (0.3, OK), at_once) as port:
        outcome = open_loop(port, itertools.repeat(get("/")), rate=400, seconds=0.5)
    assert len(outcome.latencies) == 200
    assert at_once.most > 80
    assert outcome.summary()["failed"] == 0


def test_failures_are_told() -> None:
    refused = b"HTTP/1.1 503 Service Unavailable\r\ncontent-length: 2\r\n\r\nno"
    with answering(lambda n: (0.0, (OK, refused, b"")[n % 3])) as port:
        outcome = open_loop(port, itertools.repeat(get("/")), rate=300, seconds=0.3)
    assert len(outcome.latencies) == outcome.failures[503] == outcome.failures[None] == 30
    assert outcome.ms(99) == float("inf")
    assert outcome.ms(20) < float("inf")


def test_what_is_asked() -> None:
    asked = list(itertools.islice(http_load.mixed(10, ["a", "b"]), 2000))
    posts = [request for request in asked if request.startswith(b"POST /interactions ")]
    assert 300 < len(posts) < 500
    bodies = [json.loads(request.partition(b"\r\n\r\n")[2]) for request in posts]
    assert len({body["event_id"] for body in bodies}) == len(bodies)
    assert all(request.startswith((b"GET /recommend?user_id=user-", b"POST")) for request in asked)


@pytest.fixture(scope="module")
def artefact(tmp_path_factory: pytest.TempPathFactory) -> Path:
    torch.manual_seed(0)
    items = [f"i{n}" for n in range(50)]
    config = ModelConfig(n_items=len(items), d_model=16, head_dim=8, d_state=4, dropout=0.0)
    folder = tmp_path_factory.mktemp("load") / "model"
    popularity = torch.arange(len(items)).numpy()
    save_artefact(folder, TiM4Rec(config).eval(), Items(items, popularity, None), {}, "a test")
    return folder


def run(main: Callable[..., None], *arguments: str) -> str:
    command = typer.Typer()
    command.command()(main)
    result = CliRunner().invoke(command, arguments, catch_exceptions=False)
    assert result.exit_code == 0, result.output
    return result.output


@pytest.mark.slow
def test_service_load(artefact: Path, tmp_path: Path) -> None:
    report = tmp_path / "load.json"
    short = ["--users", "40", "--rounds", "1", "--seconds", "0.2", "--in-flight", "4"]
    run(service_load.main, str(artefact), *short, "--warm", "--rate", "40", "--rate-seconds", "0.5",
        "--fsync", "everysec", "--json", str(report))  # fmt: skip
    found = json.loads(report.read_text())
    assert [row["request"] for row in found["beside_fastapi"]] == [
        "GET /recommend",
        "POST /interactions",
    ]
    assert all(row["rate"] > 0 and row["constant_rate"] > 0 for row in found["beside_fastapi"])
    assert found["batches"][0]["events_s"] > 0
    (row,) = found["at_rates"]
    assert (row["asked"], row["failed"]) == (40, 0)
    assert 0 < row["p50_ms"] <= row["p90_ms"] <= row["p99_ms"] <= row["max_ms"]
    assert row["hits"] == 1.0


def test_a_checkout_is_of_the_commit_and_goes() -> None:
    with against.checkout("HEAD") as place:
        assert (place / "service" / "app.py").exists()
        assert place != against.ROOT
    assert not place.exists()
    with pytest.raises(CommandError, match="no such commit"), against.checkout("no such commit"):
        pass


def test_sides_are_measured_in_turn() -> None:
    """Who is first alternates."""
    asked: list[tuple[int, int]] = []

    def measure(one: Server, turn: int) -> int:
        asked.append((one.port, turn))
        return one.port

    then, now = (Server(port, psutil.Process()) for port in (1, 2))
    assert against.in_turn(then, now, 2, measure) == [(1, 2), (1, 2)]
    assert asked == [(2, 0), (1, 0), (1, 1), (2, 1)]


@pytest.mark.parametrize("slow", [1.0, 2.0])
def test_a_ratio_is_the_median_of_the_rounds(slow: float) -> None:
    """A round in which the machine was slow for both changes nothing."""
    row = against.compared("rate", [(100, 50), (100 / slow, 50 / slow), (10, 10), (200, 100)])
    assert (row.ratio, row.upper) == (0.5, 0.625)


@pytest.mark.slow
def test_window_load(artefact: Path, tmp_path: Path) -> None:
    report = tmp_path / "window.json"
    short = ["--users", "64", "--rounds", "1", "--seconds", "0.3", "--rate", "20"]
    run(window_load.main, str(artefact), *short, "--window", "12", "--json", str(report))
    states, window = json.loads(report.read_text())["rows"]
    assert (states["which"], window["which"]) == ("states", "window")
    for row in (states, window):
        assert row["failed"] == 0
        assert row["rate"] > 0
        assert 0 < row["p50_ms"] <= row["p99_ms"]


def test_the_other_service_recommends_the_same(artefact: Path) -> None:
    """As the model does in one pass, without what was seen."""
    loaded, loop = load_artefact(artefact), asyncio.new_event_loop()
    events = [f"i{n} {1_700_000_000_000 + n * 1000}".encode() for n in (3, 1, 4, 5, 9)]
    (ranking,) = Recomputing(loaded)._rankings([(events, 50, asyncio.Future(loop=loop))])
    loop.close()
    items, times = torch.tensor([[4, 2, 5, 6, 10]]), torch.tensor([[3, 1, 4, 5, 9]]) * 1000
    with torch.inference_mode():
        times += 1_700_000_000_000
        at = torch.full_like(times, int(time.time() * 1000))
        scores = loaded.model.scores(loaded.model(items, times, at)[0, -1])
    best = [i for i in scores.argsort(descending=True).tolist()[:-1] if i not in items[0].tolist()]
    assert ranking.items.tolist() == best


@pytest.mark.slow
def test_step_vs_recompute(artefact: Path, tmp_path: Path) -> None:
    report = tmp_path / "step.json"
    run(step_vs_recompute.main, str(artefact), "--length", "5", "--length", "600", "--rounds", "2",
        "--json", str(report))  # fmt: skip
    rows = json.loads(report.read_text())["rows"]
    assert [(row["batch"], row["history"]) for row in rows] == [
        (1, 5),
        (1, 600),
        (64, 5),
        (64, 600),
    ]
    assert rows[0]["over_shortest"] == 1
    assert all(row["times_cheaper"] > 1 for row in rows)
