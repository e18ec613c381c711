"""What the metrics and stage times cost a request.

    python -m benchmarks.metrics_cost artefacts/ml-100k --json runs/metrics_cost.json

Two services of one process each, one that counts and one whose metrics do nothing, on one store,
with requests kept in flight; first with metrics in memory, then in files as with several workers.
They are loaded in turn, in short paired rounds, so that the machine's speed drifts alike for both;
a ratio is the median over rounds, with its quartiles. The CPU time of the process for one request
says more than the throughput, which shares the machine with the client and the store.

Beside that, and with less noise, the metrics alone: the middleware (which also gives a request its
id) and the spans of one GET in a loop, what is counted once a wave, and writing everything that
changed to the files. `at most` is their share of the CPU time of a request that is alone in its
wave.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import os
import random
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import SimpleNamespace
from typing import Annotated, Any

import httpx
import psutil  # type: ignore[import-untyped]
import torch
import typer
import uvicorn
from prometheus_client import Counter, Gauge, Histogram
from prometheus_client.parser import text_string_to_metric_families
from rich.table import Table
from starlette.types import ASGIApp, Message, Scope

from benchmarks.history_cost import free_port, wait_until_ready
from benchmarks.http_load import get, post
from cli.console import err, errors_without_traceback, out
from model.artefact import load_artefact
from service import app as application
from service.http.observer import ObserveRequests
from service.observe import metrics, stages, values
from service.observe.values import MULTIPROC_DIR
from service.settings import Settings
from service.store.embedded import EmbeddedStore

USERS = 1000
METHODS = ("GET", "POST")


# -- the services ------------------------------------------------------------------------


def serve(artefact: str, url: str, namespace: str, port: int, counts: bool) -> None:
    """One service in this process, until a signal stops it."""
    if not counts:
        for kind, method in ((Histogram, "observe"), (Counter, "inc"), (Gauge, "set")):
            setattr(kind, method, lambda *_: None)
        vars(metrics)["observe_request"] = lambda *_: None
    settings = Settings(
        artefact=artefact,
        redis_url=url,  # type: ignore[arg-type]
        namespace=namespace,
        exactness_every_s=0,
    )
    app = application.create_app(settings)
    uvicorn.run(app, port=port, access_log=False, log_level="error")


@contextmanager
def service(artefact: Path, url: str, namespace: str, counts: bool) -> Iterator[Running]:
    port = free_port()
    arguments = f"{str(artefact)!r}, {url!r}, {namespace!r}, {port}, {counts}"
    script = f"from benchmarks.metrics_cost import serve; serve({arguments})"
    process = subprocess.Popen([sys.executable, "-c", script])
    try:
        with httpx.Client(base_url=f"http://127.0.0.1:{port}", timeout=60) as client:
            wait_until_ready(client, process)
        yield Running(port, psutil.Process(process.pid))
    finally:
        process.send_signal(signal.SIGTERM)
        process.wait()


@dataclass
class Running:
    port: int
    process: psutil.Process

    def cpu_s(self) -> float:
        times = self.process.cpu_times()
        return float(times.user + times.system)

    def requests_a_wave(self) -> float:
        text = httpx.get(f"http://127.0.0.1:{self.port}/metrics").text
        found = {
            sample.name: sample.value
            for family in text_string_to_metric_families(text)
            for sample in family.samples
            if sample.name in ("tim4rec_wave_requests_sum", "tim4rec_wave_requests_count")
        }
        return found["tim4rec_wave_requests_sum"] / found["tim4rec_wave_requests_count"]


# -- the load ----------------------------------------------------------------------------


async def load(
    port: int, requests: Iterator[bytes], in_flight: int, seconds: float
) -> tuple[int, float]:
    """Requests answered, and the seconds that it took."""
    until = time.perf_counter() + seconds
    answered = 0

    async def caller() -> None:
        nonlocal answered
        reader, writer = await asyncio.open_connection("127.0.0.1", port)
        while time.perf_counter() < until:
            writer.write(next(requests))
            head = await reader.readuntil(b"\r\n\r\n")
            if not head.startswith(b"HTTP/1.1 200"):
                raise RuntimeError(head.decode())
            length = int(head.lower().partition(b"content-length:")[2].split(b"\r")[0])
            await reader.readexactly(length)
            answered += 1
        writer.close()
        await writer.wait_closed()

    started = time.perf_counter()
    await asyncio.gather(*(caller() for _ in range(in_flight)))
    return answered, time.perf_counter() - started


def requests_of(method: str, items: list[str]) -> Iterator[bytes]:
    """Raw HTTP requests without an end."""
    draw = random.Random(0)
    while True:
        user = f"u{draw.randrange(USERS)}"
        if method == "GET":
            yield get(f"/recommend?user_id={user}")
        else:
            yield post("/interactions", {"user_id": user, "item_id": draw.choice(items)})


@dataclass
class Side:
    """A service's rounds: requests answered a second, and CPU microseconds for each."""

    rate: list[float] = field(default_factory=list)
    cpu_us: list[float] = field(default_factory=list)


@dataclass
class Result:
    """One row: `rate` and `cpu_us` are medians; a ratio is counting over not counting."""

    metrics: str
    method: str
    rate: float
    rate_without: float
    rate_ratio: tuple[float, float, float]
    cpu_us: float
    cpu_us_without: float
    cpu_ratio: tuple[float, float, float]
    wave: float


def compare(
    artefact: Path, shared: bool, in_flight: int, rounds: int, seconds: float
) -> list[Result]:
    """Loads the two services in turn; a row for each method."""
    items = load_artefact(artefact).items.ids
    found: dict[str, tuple[Side, Side]] = {method: (Side(), Side()) for method in METHODS}
    with tempfile.TemporaryDirectory(prefix="tim4rec-") as name:
        folder = Path(name)
        os.environ.pop(MULTIPROC_DIR, None)
        if shared:
            os.environ[MULTIPROC_DIR] = str(folder / "metrics")
        with (
            EmbeddedStore(folder / "state", fsync="everysec") as url,
            service(artefact, url, "counting", True) as counting,
            service(artefact, url, "silent", False) as silent,
        ):
            pair = counting, silent
            for method in ("POST", "GET"):  # every user known, every path warm
                for one in pair:
                    asyncio.run(load(one.port, requests_of(method, items), in_flight, 2))
            for turn in range(rounds):
                for method, place in itertools.product(METHODS, (0, 1)):
                    which = (place + turn) % 2
                    before = pair[which].cpu_s()
                    asked = requests_of(method, items)
                    answered, took = asyncio.run(load(pair[which].port, asked, in_flight, seconds))
                    side = found[method][which]
                    side.rate.append(answered / took)
                    side.cpu_us.append((pair[which].cpu_s() - before) / answered * 1e6)
            wave = counting.requests_a_wave()
    kind = "in files" if shared else "in memory"
    return [_result(kind, method, *sides, wave) for method, sides in found.items()]


def _result(kind: str, method: str, counting: Side, silent: Side, wave: float) -> Result:
    return Result(
        kind,
        method,
        statistics.median(counting.rate),
        statistics.median(silent.rate),
        _quartiles(counting.rate, silent.rate),
        statistics.median(counting.cpu_us),
        statistics.median(silent.cpu_us),
        _quartiles(counting.cpu_us, silent.cpu_us),
        wave,
    )


def _quartiles(ours: list[float], theirs: list[float]) -> tuple[float, float, float]:
    """Lower quartile, median and upper quartile of the paired ratios."""
    ratios = [a / b for a, b in zip(ours, theirs, strict=True)]
    low, middle, high = statistics.quantiles(ratios, method="inclusive")
    return low, middle, high


# -- the metrics alone -------------------------------------------------------------------


@dataclass
class Alone:
    """Microseconds: of one GET, of one wave, and of one write of everything that changed."""

    metrics: str
    request_us: float
    wave_us: float
    write_us: float


async def _answer(scope: Scope, receive: Any, send: Any) -> None:
    """A GET without its work: the spans that it gets, and the messages of its answer."""
    timeline = stages.current.get()
    if timeline is not None:
        now = time.perf_counter()
        timeline.add(stages.QUEUE, now, now + 1e-4)
        timeline.add(stages.LOG, now + 1e-4, now + 1e-3)
        timeline.add(stages.QUEUE, now + 1e-3, now + 2e-3)
        timeline.spans += _ARITHMETIC
    await send({"type": "http.response.start", "status": 200})
    await send({"type": "http.response.body"})


_ARITHMETIC = [(stages.STEP, 2e9, 2e9 + 1e-3), (stages.RETRIEVE, 2e9 + 1e-3, 2e9 + 2e-3)]


def _wave() -> None:
    """What the engine counts once for all requests of a wave of both kinds."""
    metrics.QUEUE.set(3)
    metrics.WAVE_REQUESTS.observe(3)
    metrics.POOL_LOOKUPS["hit"].inc(2)
    metrics.POOL_LOOKUPS["miss"].inc(1)
    metrics.STORE_UP.set(1)
    metrics.STORE_DURATION["exchange"].observe(1e-3)
    metrics.EVENTS["applied"].inc()
    metrics.RECOMMENDATIONS["model"].inc(2)
    metrics.RECOMMENDATIONS["popular"].inc(0)
    metrics.FALLBACKS["unknown_user"].inc(0)
    metrics.FALLBACKS["no_known_item"].inc(0)
    metrics.REBUILDS["snapshot"].inc(0)
    metrics.REBUILDS["log"].inc(1)
    metrics.APPLIED["step"].inc(1)
    metrics.APPLIED["prefill"].inc(0)
    metrics.SNAPSHOTS["unfit"].inc(0)
    metrics.SNAPSHOTS["unsound"].inc(0)
    metrics.POOL_USERS.set(7)
    metrics.QUEUE.set(0)


async def alone(shared: bool, times: int = 2000) -> Alone:
    """The metrics of one request, timed in this process."""
    route = SimpleNamespace(path="/recommend")
    scope = {"type": "http", "method": "GET", "headers": [], "route": route}

    async def send(message: Message) -> None:
        pass

    async def asked(app: ASGIApp) -> float:
        started = time.perf_counter()
        for _ in range(times):
            await app(dict(scope), send, send)  # type: ignore[arg-type]
        return (time.perf_counter() - started) / times * 1e6

    def each(call: Callable[[], None]) -> float:
        started = time.perf_counter()
        for _ in range(times):
            call()
        return (time.perf_counter() - started) / times * 1e6

    async with _sharing(shared):
        timed = ObserveRequests(_answer, log_requests="none")
        whole, bare, waves, writes = [], [], [], []
        for _ in range(50):
            whole.append(await asked(timed))
            bare.append(await asked(_answer))
            waves.append(each(_wave))
        for _ in range(100):
            await timed(dict(scope), send, send)  # type: ignore[arg-type]
            _wave()
            started = time.perf_counter()
            values.write()
            writes.append((time.perf_counter() - started) * 1e6)
    kind = "in files" if shared else "in memory"
    # What disturbs a loop only adds to it.
    return Alone(kind, min(whole) - min(bare), min(waves), statistics.median(writes))


@asynccontextmanager
async def _sharing(shared: bool) -> AsyncIterator[None]:
    os.environ.pop(MULTIPROC_DIR, None)
    with tempfile.TemporaryDirectory(prefix="tim4rec-") as folder:
        if shared:
            os.environ[MULTIPROC_DIR] = folder
        async with values.shared():
            yield


# -- the command -------------------------------------------------------------------------


def main(
    artefact: Annotated[Path, typer.Argument(help="Folder of the model to serve.")],
    in_flight: Annotated[int, typer.Option(min=1, help="Requests at once.")] = 64,
    rounds: Annotated[int, typer.Option(min=2, help="Paired rounds.")] = 10,
    seconds: Annotated[float, typer.Option(help="Length of a round.")] = 0.8,
    json_file: Annotated[
        Path | None, typer.Option("--json", help="Write the figures here too.")
    ] = None,
) -> None:
    """Measure what the metrics cost a request."""
    with errors_without_traceback():
        each = [asyncio.run(alone(shared)) for shared in (False, True)]
        results = [
            result
            for shared in (False, True)
            for result in compare(artefact, shared, in_flight, rounds, seconds)
        ]
    table = Table("metrics", "", "req/s", "over none", "CPU, µs", "over none", "in a wave")
    for result in results:
        table.add_row(
            result.metrics,
            result.method,
            f"{result.rate:,.0f}",
            _spread(result.rate_ratio),
            f"{result.cpu_us:,.0f}",
            _spread(result.cpu_ratio),
            f"{result.wave:.1f}",
        )
    out.print(table)
    table = Table("metrics alone", "GET, µs", "wave, µs", "write, µs", "at most", "in waves")
    for one in each:
        own = [r for r in results if r.metrics == one.metrics and r.method == "GET"]
        whole, wave = own[0].cpu_us_without, own[0].wave
        writing = one.write_us / values.WRITE_EVERY_S * whole / 1e6
        most = one.request_us + one.wave_us + writing
        usual = one.request_us + one.wave_us / wave + writing
        table.add_row(
            one.metrics,
            f"{one.request_us:.1f}",
            f"{one.wave_us:.1f}",
            f"{one.write_us:.0f}",
            f"{most / whole:.2%}",
            f"{usual / whole:.2%}",
        )
    out.print(table)
    if json_file is not None:
        machine = {"cores": os.cpu_count(), "torch": torch.__version__}
        rows = {"load": [asdict(r) for r in results], "alone": [asdict(one) for one in each]}
        json_file.write_text(json.dumps({"machine": machine, **rows}, indent=2) + "\n")
        err.print(f"written to {json_file}", markup=False, highlight=False, soft_wrap=True)


def _spread(ratio: tuple[float, float, float]) -> str:
    low, middle, high = ratio
    return f"{middle:.3f} ({low:.2f}–{high:.2f})"


if __name__ == "__main__":
    typer.run(main)
